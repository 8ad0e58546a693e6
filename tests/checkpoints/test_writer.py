"""What CheckpointWriter and write_safetensors write is what safetensors reads."""

import json
import os
import stat
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from gradfix.checkpoints import CheckpointWriter, TensorSpec, read_manifest, write_safetensors
from gradfix.errors import GradfixError

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int8, torch.int64, torch.bool]


def specs_of(tensors):
    return {name: TensorSpec(tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}


def write_all(output, tensors, *, rows=2, **options):
    with CheckpointWriter(output, specs_of(tensors), **{"identity": {"alpha": 1.0}, **options}) as writer:
        for name, tensor in tensors.items():
            writer.write(name, tensor.split(rows) if tensor.dim() else [tensor])
        writer.add_file("config.json", b"{}")


def read_back(directory):
    found = {}
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            assert file.metadata() == {"format": "pt"}
            for name in file.keys():  # noqa: SIM118 - not a mapping
                assert name not in found
                found[name] = (path.name, file.get_tensor(name))
    return found


@st.composite
def tensor_dicts(draw):
    count = draw(st.integers(0, 6))
    tensors = {}
    for number in range(count):
        shape = draw(st.lists(st.integers(0, 5), max_size=3))
        dtype = draw(st.sampled_from(DTYPES))
        values = torch.randint(0, 256, (*shape, dtype.itemsize), dtype=torch.uint8)
        if dtype == torch.bool:
            values %= 2
        name = draw(st.sampled_from(["layer.weight", "größe", 'a"b', "x"])) + f".{number}"
        tensors[name] = values.view(dtype).reshape(shape)
    return tensors


@settings(max_examples=60, deadline=None)
@given(tensors=tensor_dicts(), shard_size=st.sampled_from([1, 40, 200, 10**9]), rows=st.integers(1, 4))
def test_safetensors_reads_what_was_written(tmp_path_factory, tensors, shard_size, rows):
    parent = tmp_path_factory.mktemp("random")
    output = parent / "out"
    write_all(output, tensors, rows=rows, shard_size=shard_size)
    assert os.listdir(parent) == ["out"]
    found = read_back(output)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        stored = found[name][1]
        assert stored.dtype == tensor.dtype
        assert stored.shape == tensor.shape
        assert stored.reshape(-1).view(torch.uint8).equal(tensor.reshape(-1).view(torch.uint8))
    files = sorted(path.name for path in output.glob("*.safetensors"))
    if len(files) == 1:
        assert files == ["model.safetensors"]
        assert not (output / "model.safetensors.index.json").exists()
    else:
        assert files == [f"model-{i + 1:05d}-of-{len(files):05d}.safetensors" for i in range(len(files))]
        index = json.loads((output / "model.safetensors.index.json").read_text())
        assert index["weight_map"] == {name: file for name, (file, _) in found.items()}
        assert index["metadata"] == {"total_size": sum(spec.nbytes for spec in specs_of(tensors).values())}
        for file in files:
            sizes = [tensors[name].nbytes for name, (where, _) in found.items() if where == file]
            assert sum(sizes) <= shard_size or len([size for size in sizes if size]) == 1


def test_every_tensor_starts_at_a_multiple_of_its_element_size(tmp_path):
    tensors = {"a": torch.ones(3, dtype=torch.int8), "b": torch.ones(3), "c": torch.ones(1).double()}
    write_all(tmp_path / "out", tensors)
    content = (tmp_path / "out" / "model.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    assert (8 + length) % 8 == 0
    for name, tensor in tensors.items():
        assert header[name]["data_offsets"][0] % tensor.dtype.itemsize == 0


def test_transformers_loads_the_directory(tmp_path):
    from transformers import BertConfig, BertModel

    config = BertConfig(
        hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, vocab_size=20
    )
    model = BertModel(config)
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    with CheckpointWriter(tmp_path / "out", specs_of(tensors), identity={}, shard_size=2000) as writer:
        for name, tensor in tensors.items():
            writer.write(name, [tensor])
        writer.add_file("config.json", config.to_json_string().encode())
    loaded = BertModel.from_pretrained(tmp_path / "out").state_dict()
    assert all(loaded[name].equal(tensor) for name, tensor in tensors.items())


def test_manifest_is_the_golden_file(tmp_path):
    tensors = {
        "a": torch.arange(6.0).reshape(2, 3),
        "b": torch.arange(4).bfloat16(),
        "c": torch.tensor(7, dtype=torch.int64),
    }
    with CheckpointWriter(
        tmp_path / "out", specs_of(tensors), identity={"alpha": 0.5, "target": "sha256:00"}, shard_size=24
    ) as writer:
        for name, tensor in tensors.items():
            writer.write(name, [tensor])
            writer.facts[name] = {"lost": 0}
        writer.add_file("config.json", b"{}")
    golden = Path(__file__).with_name("golden_manifest.json")
    assert (tmp_path / "out" / "gradfix-manifest.json").read_text() == golden.read_text()
    manifest = read_manifest(tmp_path / "out")
    assert manifest is not None
    assert manifest.complete
    assert manifest.identity == {"alpha": 0.5, "target": "sha256:00"}


def test_the_bits_of_a_nan_are_kept(tmp_path):
    raw = bytes([0x01, 0x7F, 0xC1, 0xFF])  # two bfloat16 NaNs with payloads
    write_all(tmp_path / "out", {"a": torch.frombuffer(bytearray(raw), dtype=torch.bfloat16)})
    assert (tmp_path / "out" / "model.safetensors").read_bytes().endswith(raw)


def test_a_view_that_is_not_contiguous_is_written_in_row_major_order(tmp_path):
    tensor = torch.arange(12.0).reshape(3, 4).T
    write_all(tmp_path / "out", {"a": tensor}, rows=3)
    assert read_back(tmp_path / "out")["a"][1].equal(tensor)


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ([torch.ones(2, 3, dtype=torch.float64)], "a: expected torch.float32, got torch.float64"),
        ([torch.ones(4, 2)], r"a: expected rows of shape \(4, 3\), got \(4, 2\)"),
        ([torch.ones(4)], r"a: expected rows of shape \(4, 3\), got \(4,\)"),
        ([torch.ones(3, 3)], "a: expected 4 rows, got 3"),
        ([torch.ones(3, 3), torch.ones(2, 3)], "a: expected 4 rows, got at least 5"),
        ([], "a: expected 4 rows, got 0"),
    ],
)
def test_wrong_blocks_are_refused_by_name(tmp_path, blocks, message):
    specs = {"a": TensorSpec(torch.float32, (4, 3))}
    with (
        pytest.raises(GradfixError, match=message),
        CheckpointWriter(tmp_path / "out", specs, identity={}) as writer,
    ):
        writer.write("a", blocks)
    with pytest.raises(GradfixError, match=message):
        write_safetensors(tmp_path / "one.safetensors", specs, lambda name: blocks, {})
    assert os.listdir(tmp_path) == []


def test_order_and_completeness_are_checked(tmp_path):
    tensors = {"a": torch.ones(2), "b": torch.ones(2)}
    with (
        pytest.raises(GradfixError, match="expected 'a', got 'b'"),
        CheckpointWriter(tmp_path / "out", specs_of(tensors), identity={}) as writer,
    ):
        writer.write("b", [tensors["b"]])
    with (
        pytest.raises(GradfixError, match="1 of 2 tensors were not written, the first is 'b'"),
        CheckpointWriter(tmp_path / "out", specs_of(tensors), identity={}) as writer,
    ):
        writer.write("a", [tensors["a"]])
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "relative",
    [
        "../x",
        "/etc/x",
        "",
        ".",
        "a/../../x",
        "a\\b",
        "model.safetensors",
        "gradfix-manifest.json",
        "x/",
        "a//b",
    ],
)
def test_extra_files_stay_inside_and_do_not_collide(tmp_path, relative):
    with CheckpointWriter(tmp_path / "out", {}, identity={}) as writer, pytest.raises(GradfixError):
        writer.add_file(relative, b"")
    assert sorted(os.listdir(tmp_path / "out")) == ["gradfix-manifest.json", "model.safetensors"]


def test_extra_files_are_copied_through_links_but_only_from_regular_files(tmp_path):
    (tmp_path / "blob").write_bytes(b"tokens")
    (tmp_path / "tokenizer.json").symlink_to("blob")
    os.mkfifo(tmp_path / "fifo")
    with CheckpointWriter(tmp_path / "out", {}, identity={}) as writer:
        writer.add_file("onnx/tokenizer.json", tmp_path / "tokenizer.json")
        with pytest.raises(GradfixError, match="not a regular file"):
            writer.add_file("fifo", tmp_path / "fifo")
        with pytest.raises(GradfixError, match="No such file"):
            writer.add_file("absent", tmp_path / "absent")
        with pytest.raises(GradfixError, match="taken"):
            writer.add_file("onnx/tokenizer.json", b"")
    copied = tmp_path / "out" / "onnx" / "tokenizer.json"
    assert copied.read_bytes() == b"tokens"
    assert not copied.is_symlink()
    assert not (tmp_path / "out" / "fifo").exists()


def test_modes_follow_the_umask(tmp_path):
    old = os.umask(0o027)
    try:
        write_all(tmp_path / "out", {"a": torch.ones(2)})
        write_safetensors(tmp_path / "one.safetensors", {}, lambda name: [], {})
    finally:
        os.umask(old)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")}
    assert modes.pop("out") == 0o750
    assert set(modes.values()) == {0o640}


def test_write_safetensors_refuses_or_replaces_an_existing_file(tmp_path):
    path = tmp_path / "one.safetensors"
    for value, overwrite in ((1.0, False), (2.0, True)):
        tensor = torch.full((3, 2), value)
        write_safetensors(
            path, specs_of({"a": tensor}), lambda name, t=tensor: t.split(1), {"k": "v"}, overwrite=overwrite
        )
        with safe_open(path, "pt") as file:
            assert file.get_tensor("a").equal(tensor)
            assert file.metadata() == {"k": "v"}
    with pytest.raises(GradfixError, match="exists already"):
        write_safetensors(path, {}, lambda name: [], {})
    (tmp_path / "link").symlink_to("one.safetensors")
    with pytest.raises(GradfixError, match="not a regular file"):
        write_safetensors(tmp_path / "link", {}, lambda name: [], {}, overwrite=True)
    assert sorted(os.listdir(tmp_path)) == ["link", "one.safetensors"]


def test_names_and_dtypes_the_format_lacks_are_refused(tmp_path):
    for name, dtype in (("__metadata__", torch.float32), ("a", torch.complex128)):
        with pytest.raises(GradfixError, match="safetensors"):
            CheckpointWriter(tmp_path / "out", {name: TensorSpec(dtype, (1,))}, identity={})
    with pytest.raises(GradfixError, match="positive"):
        CheckpointWriter(tmp_path / "out", {}, identity={}, shard_size=0)
