"""Directories, indexes, files of torch.save and Hub models are opened, or refused in one line."""

import json
import os
import threading
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import errors
from safetensors.torch import save_file

from gradfix.checkpoints import Checkpoint, TensorSpec
from gradfix.checkpoints.reading import hub
from gradfix.errors import GradfixError
from tests import models

INDEX = "model.safetensors.index.json"


def _refused(location: Path | str, message: str, **options: Any) -> str:
    with pytest.raises(GradfixError, match=message) as refusal:
        Checkpoint.open(location, **options)
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    save_file({"a": torch.ones(2), "b": torch.zeros(3)}, tmp_path / "model-1.safetensors")
    save_file({"c": torch.full((4,), 2.0)}, tmp_path / "model-2.safetensors")
    _index(tmp_path, {"a": "model-1.safetensors", "b": "model-1.safetensors", "c": "model-2.safetensors"})
    return tmp_path


def _index(directory: Path, weight_map: object) -> None:
    (directory / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def test_directory_file_and_index_are_the_same_model(tmp_path: Path) -> None:
    model = models.tiny_llama()
    model.save_pretrained(tmp_path / "one")
    model.save_pretrained(tmp_path / "many", max_shard_size="10KB")
    one, many = Checkpoint.open(tmp_path / "one"), Checkpoint.open(str(tmp_path / "many"))
    file = Checkpoint.open(tmp_path / "one" / "model.safetensors")
    index = Checkpoint.open(tmp_path / "many" / INDEX)
    assert (one.kind, many.kind) == ("safetensors file", "sharded safetensors")
    assert len(many.files) > 2
    for checkpoint in (one, many, file, index):
        assert checkpoint.config["model_type"] == "llama"
        assert checkpoint.directory in (tmp_path / "one", tmp_path / "many")
        assert checkpoint.nbytes == 4 * sum(p.numel() for p in model.parameters())
        assert checkpoint.dtypes == {torch.float32: checkpoint.nbytes // 4}
        assert set(checkpoint) == set(model.state_dict())
        for name, tensor in model.state_dict().items():
            assert torch.equal(checkpoint[name], tensor)
    assert one.digest() == file.digest()
    assert one.digest() != many.digest()
    assert "lm_head.weight" in one
    assert "nothing" not in one
    with pytest.raises(KeyError):
        one["nothing"]


def test_a_file_without_config_has_no_directory(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(2)}, tmp_path / "any.safetensors")
    for location in (tmp_path / "any.safetensors", tmp_path):
        checkpoint = Checkpoint.open(location)
        assert checkpoint.config == {}
        assert checkpoint.location == str(location)
        assert checkpoint.specs == {"x": TensorSpec(torch.float32, (2,))}
    assert Checkpoint.open(tmp_path / "any.safetensors").directory is None


@pytest.mark.parametrize("name", ["../b.safetensors", "/etc/passwd", "x/../../b", "..\\b", "a\0b"])
def test_an_index_cannot_point_outside(sharded: Path, name: str) -> None:
    _index(sharded, {"a": name})
    _refused(sharded, r"tensor 'a': names the file .* outside its directory")


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({}, "weight_map: expected an object of tensor name to file, found an empty one"),
        ([], "weight_map: expected an object of tensor name to file, found list"),
        ({"a": 3}, "tensor 'a': expected the name of a file, found 3"),
        ({"a": "model-3.safetensors"}, "names the shard 'model-3.safetensors', which is missing"),
        ({"z": "model-1.safetensors"}, r"tensor 'z' is not in the shard 'model-1.safetensors' .*\(1 such\)"),
    ],
)
def test_a_wrong_index_is_refused(sharded: Path, weight_map: object, message: str) -> None:
    _index(sharded, weight_map)
    _refused(sharded, message)


def test_a_broken_index_is_refused(sharded: Path) -> None:
    (sharded / INDEX).write_text('{"weight_map": {"a": "x", "a": "y"}}')
    _refused(sharded, "duplicate key 'a'")
    (sharded / INDEX).write_text("version https://git-lfs.github.com/spec/v1")
    _refused(sharded, "Git LFS pointer")
    (sharded / INDEX).write_text("{")
    _refused(sharded, "is not valid JSON")


def test_a_fifo_as_a_shard_does_not_hang(sharded: Path) -> None:
    (sharded / "model-2.safetensors").unlink()
    os.mkfifo(sharded / "model-2.safetensors")
    _refused(sharded, "model-2.safetensors: is not a regular file")


def test_the_index_decides_between_copies(sharded: Path) -> None:
    save_file({"c": torch.full((4,), 2.0), "a": torch.full((2,), 9.0)}, sharded / "model-2.safetensors")
    checkpoint = Checkpoint.open(sharded)
    assert torch.equal(checkpoint["a"], torch.ones(2))
    assert any("1 stored tensors are not placed by the index" in note for note in checkpoint.notes)


def test_a_single_file_beside_another_index_is_ambiguous(sharded: Path) -> None:
    save_file({"a": torch.zeros(2)}, sharded / "model.safetensors")
    _refused(sharded, f"holds both model.safetensors and {INDEX}")
    assert torch.equal(Checkpoint.open(sharded / "model.safetensors")["a"], torch.zeros(2))
    assert torch.equal(Checkpoint.open(sharded / INDEX)["a"], torch.ones(2))
    _index(sharded, {"a": "model.safetensors"})
    assert torch.equal(Checkpoint.open(sharded)["a"], torch.zeros(2))


def test_safetensors_come_before_pickles(tmp_path: Path) -> None:
    torch.save({"x": torch.ones(2)}, tmp_path / "pytorch_model.bin")
    assert Checkpoint.open(tmp_path).kind == "PyTorch file"
    save_file({"x": torch.zeros(2)}, tmp_path / "model.safetensors")
    assert torch.equal(Checkpoint.open(tmp_path)["x"], torch.zeros(2))


def test_nothing_to_open_is_said(tmp_path: Path) -> None:
    _refused(tmp_path, "holds no weights: expected model.safetensors")
    _refused(tmp_path / "absent", "no such file or directory")
    _refused("absent.safetensors", "no such file or directory")
    (tmp_path / "adapter_config.json").write_text("{}")
    _refused(tmp_path, "has adapter_config.json but neither of")
    (tmp_path / "config.json").write_text("{}")
    _refused(tmp_path / "config.json", "is no file with weights")
    (tmp_path / "adapter_config.json").unlink()
    for name in ("a", "b"):
        save_file({"x": torch.zeros(2)}, tmp_path / f"{name}.safetensors")
    _refused(tmp_path, r"found 2 files \*.safetensors \(a.safetensors, …\)")
    _refused(tmp_path, "this is a local path, which has none", revision="main")


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model_state_dict"])
@pytest.mark.parametrize("zipped", [True, False])
def test_files_of_torch_save(tmp_path: Path, wrapper: str | None, zipped: bool) -> None:
    tied = torch.randn(5, 3)
    state = {"a": tied, "b": tied, "part": tied[1:3], "across": torch.randn(4, 6).T, "n": torch.tensor(3)}
    saved = {wrapper: state, "epoch": 3} if wrapper else state
    torch.save(saved, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    checkpoint = Checkpoint.open(tmp_path / "x.pt")
    assert checkpoint.kind == "PyTorch file"
    assert checkpoint.ties == {"b": "a"}
    assert set(checkpoint) == {"a", "part", "across", "n"}
    for name, tensor in state.items():
        assert torch.equal(checkpoint[name], tensor)
        if tensor.ndim:
            out = torch.empty(100, dtype=torch.uint8)
            assert torch.equal(checkpoint.read(name, slice(1, 2), out=out), tensor[1:2])
    checkpoint["a"].zero_()
    assert torch.equal(checkpoint["a"], tied)
    assert any("weights taken from its" in note for note in checkpoint.notes) == (wrapper is not None)
    assert any("held in memory whole" in note for note in checkpoint.notes) != zipped


def test_sharded_torch_files(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "pytorch_model-1.bin")
    torch.save({"b": torch.zeros(2)}, tmp_path / "pytorch_model-2.bin")
    weight_map = {"a": "pytorch_model-1.bin", "b": "pytorch_model-2.bin"}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    checkpoint = Checkpoint.open(tmp_path)
    assert checkpoint.kind == "sharded PyTorch"
    assert torch.equal(checkpoint["a"], torch.ones(2))


class Payload:
    """Something that only code could rebuild."""


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_needs_code_is_refused(tmp_path: Path, zipped: bool) -> None:
    torch.save({"x": Payload()}, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    message = r"needs code to be read \([\w.]*Payload\).*save the state_dict as safetensors"
    _refused(tmp_path / "x.pt", message)


def test_other_contents_of_torch_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    torch.save([torch.zeros(2)], path)
    _refused(path, "holds a list, expected a mapping of names to tensors")
    torch.save({"optimizer": {"lr": 1}}, path)
    _refused(path, r"holds no tensors at its top level \(keys: 'optimizer'\)")
    torch.save({"x": torch.zeros(4).to_sparse()}, path)
    _refused(path, "'x': expected a dense tensor, found a torch.sparse_coo")
    torch.save({"x": torch.zeros(4), "extra": 3}, path)
    assert any("1 entries are no tensors and not read: extra" in note for note in Checkpoint.open(path).notes)
    path.write_bytes(b"hello")
    _refused(path, "is no PyTorch file")
    path.write_bytes(b"<html>")
    _refused(path, "is an HTML page")


@pytest.mark.parametrize("zipped", [True, False])
def test_truncated_torch_files_are_refused(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "x.pt"
    torch.save({"x": torch.zeros(1000)}, path, _use_new_zipfile_serialization=zipped)
    size = path.stat().st_size
    for length in (3, 100, size // 2, size - 20):
        os.truncate(path, length)
        with pytest.raises(GradfixError) as refusal:
            Checkpoint.open(path)
        assert "\n" not in str(refusal.value)
        torch.save({"x": torch.zeros(1000)}, path, _use_new_zipfile_serialization=zipped)
    checkpoint = Checkpoint.open(path)
    os.truncate(path, size // 2)
    with pytest.raises(GradfixError, match="'x': the file was cut while it was read"):
        checkpoint["x"]


def _anonymous() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="counts memory as Linux shows it")
@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_reading_by_rows_takes_no_more_memory_than_the_rows(tmp_path: Path, suffix: str) -> None:
    tensor = torch.ones(4096, 4096)
    path = tmp_path / f"x.{suffix}"
    if suffix == "pt":
        torch.save({"x": tensor}, path)
    else:
        save_file({"x": tensor}, path)
    del tensor
    checkpoint = Checkpoint.open(path)
    before, peak, total = _anonymous(), 0, 0.0
    for rows in checkpoint.specs["x"].row_blocks():
        total += float(checkpoint.read("x", rows).sum())
        peak = max(peak, _anonymous() - before)
    assert total == 4096 * 4096
    assert peak < 24 << 20


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Hub cache with one model, as the Hub's library lays it out, and no connection."""
    commit = "c" * 40
    repository = tmp_path / "hub" / "models--org--tiny"
    snapshot = repository / "snapshots" / commit
    (repository / "blobs").mkdir(parents=True)
    (repository / "refs").mkdir()
    snapshot.mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    models.tiny_llama().save_pretrained(tmp_path / "saved")
    for number, name in enumerate(("model.safetensors", "config.json")):
        blob = repository / "blobs" / (f"{number}" * 64 if name.endswith("tensors") else f"{number}" * 40)
        blob.write_bytes((tmp_path / "saved" / name).read_bytes())
        (snapshot / name).symlink_to(Path("../../blobs") / blob.name)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_hub_model_is_read_from_the_cache_offline(cache: Path) -> None:
    checkpoint = Checkpoint.open("org/tiny")
    assert checkpoint.location == f"org/tiny@{'c' * 40}"
    assert checkpoint.config["model_type"] == "llama"
    assert torch.equal(checkpoint["lm_head.weight"], models.tiny_llama().state_dict()["lm_head.weight"])
    by_commit = Checkpoint.open("org/tiny", revision="c" * 40)
    assert by_commit.digest() == Checkpoint.open("org/tiny@main").digest() == checkpoint.digest()
    # the blob's name is trusted to be its hash
    blob = next((cache / "hub" / "models--org--tiny" / "blobs").glob("000*"))
    assert blob.name == "0" * 64
    assert checkpoint.digest() != Checkpoint.open(cache / "saved").digest()


def test_a_local_path_wins_over_the_hub(cache: Path) -> None:
    (cache / "org" / "tiny").mkdir(parents=True)
    save_file({"x": torch.zeros(1)}, cache / "org" / "tiny" / "model.safetensors")
    assert list(Checkpoint.open("org/tiny")) == ["x"]


def test_absent_from_the_cache_offline(cache: Path) -> None:
    _refused(
        "org/other", "org/other: is no local path and not in the Hub's cache, and the Hub can't be reached"
    )
    _refused("org/tiny", r"org/tiny \(revision v2\): is no local path and not", revision="v2")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (errors.RepositoryNotFoundError, "is neither a local path nor a model on the Hub that you may read"),
        (errors.GatedRepoError, "is gated: accept its terms"),
        (errors.RevisionNotFoundError, "has no such revision"),
    ],
)
def test_refusals_of_the_hub_are_one_line(
    cache: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception], message: str
) -> None:
    def refuse(*_: object, **__: object) -> None:
        refusal = error.__new__(error)
        raise refusal

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", refuse)
    _refused("org/tiny", message)


@pytest.mark.parametrize(
    ("files", "patterns"),
    [
        (
            ["model.safetensors.index.json", "model-1.safetensors"],
            ["model.safetensors", "model-*.safetensors"],
        ),
        (["pytorch_model.bin", "x.safetensors"], ["pytorch_model.bin"]),
        (["adapter_model.safetensors", "adapter_config.json"], ["adapter_model.safetensors"]),
        (["readme.txt"], []),
    ],
)
def test_the_format_chosen_is_the_one_opened(files: list[str], patterns: list[str]) -> None:
    assert hub.weight_patterns(files) == patterns


def test_opening_is_safe_from_threads(sharded: Path) -> None:
    checkpoint = Checkpoint.open(sharded)
    found: list[bool] = []
    threads = [
        threading.Thread(target=lambda: found.append(torch.equal(checkpoint["a"], torch.ones(2))))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 8
