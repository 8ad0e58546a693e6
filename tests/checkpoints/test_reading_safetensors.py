"""Safetensors files are read by rows, and what is broken is named for what it is."""

import json
import os
import struct
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from gradfix.checkpoints import Checkpoint, SafetensorsFile, TensorSpec
from gradfix.checkpoints.reading import file_reader
from gradfix.checkpoints.reading.file_reader import PositionedFile
from gradfix.errors import GradfixError

DTYPES = [
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.uint16,
    torch.int16,
    torch.uint32,
    torch.int32,
    torch.uint64,
    torch.int64,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2fnuz,
    torch.float8_e8m0fnu,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.complex64,
]


def _bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _random(dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    count = TensorSpec(dtype, shape).nbytes
    values = torch.randint(0, 2 if dtype == torch.bool else 256, (count,), dtype=torch.uint8)
    return values.view(dtype).view(shape)


def _write(path: Path, header: object, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def _tensor(begin: int, end: int, shape: list[Any] | None = None, dtype: str = "U8") -> dict[str, Any]:
    return {"dtype": dtype, "shape": [end - begin] if shape is None else shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_is_read_to_the_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {str(shape): _random(dtype, shape) for shape in [(), (0, 3), (5,), (7, 3), (4, 2, 3)]}
    save_file(tensors, tmp_path / "a.safetensors", {"made": "here"})
    file = SafetensorsFile(tmp_path / "a.safetensors")
    assert file.metadata == {"made": "here"}
    buffer = torch.empty(1000, dtype=torch.uint8)
    for name, tensor in tensors.items():
        assert file.specs[name] == TensorSpec(dtype, tuple(tensor.shape))
        for out in (None, buffer):
            found = file.read(name, out=out)
            assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape)
            assert _bits(found) == _bits(tensor)
            reused = found.untyped_storage().data_ptr() == buffer.data_ptr()
            assert reused == (out is not None)


@given(rows=st.integers(0, 6), start=st.none() | st.integers(-8, 8), stop=st.none() | st.integers(-8, 8))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
def test_rows_are_pythons_slices(tmp_path: Path, rows: int, start: int | None, stop: int | None) -> None:
    tensor = torch.randn(rows, 3)
    save_file({"x": tensor, "after": torch.zeros(4)}, tmp_path / "a.safetensors")
    part = SafetensorsFile(tmp_path / "a.safetensors").read("x", slice(start, stop))
    assert torch.equal(part, tensor[start:stop])


def test_misuse_is_a_value_error(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(4, 2), "scalar": torch.tensor(1.0)}, tmp_path / "a.safetensors")
    file = SafetensorsFile(tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="contiguous range, got step 2"):
        file.read("x", slice(0, 4, 2))
    with pytest.raises(ValueError, match="a scalar has no rows"):
        file.read("scalar", slice(0, 1))
    with pytest.raises(ValueError, match="out holds 3 bytes, 32 are needed"):
        file.read("x", out=torch.empty(3, dtype=torch.uint8))
    with pytest.raises(ValueError, match="out must be a contiguous uint8 CPU vector"):
        file.read("x", out=torch.empty(8))
    with pytest.raises(KeyError):
        file.read("y")


HEADERS = [
    pytest.param([1], r"its header: expected a JSON object, found a list", id="list"),
    pytest.param(b"\xff\xfe{}", r"its header: is not UTF-8 \(byte 0\)", id="utf-8"),
    pytest.param(b'{"a": ', r"its header: is not valid JSON \(Expecting value", id="json"),
    pytest.param(b"[" * 100_000, r"its header: is nested deeper than", id="deep"),
    pytest.param(b'{"a": 1, "a": 2}', r"its header: duplicate key 'a'", id="duplicate"),
    pytest.param({"a": {"dtype": "U8"}}, r"'a': expected exactly dtype, shape and data_offsets", id="fields"),
    pytest.param({"a": 3}, r"'a': expected exactly dtype, shape and data_offsets, found 3", id="number"),
    pytest.param({"a": _tensor(0, 4, dtype="F4")}, r"'a': dtype 'F4' is not one gradfix reads", id="dtype"),
    pytest.param({"a": _tensor(0, 4, [-4])}, r"'a': expected a shape of integers ≥ 0", id="negative"),
    pytest.param({"a": _tensor(0, 4, [4.0])}, r"'a': expected a shape of integers ≥ 0", id="float"),
    pytest.param({"a": _tensor(0, 1, [True])}, r"'a': expected a shape of integers ≥ 0", id="bool"),
    pytest.param({"a": _tensor(0, 0, [0, 2**62, 4])}, r"'a': expected a shape of integers ≥ 0", id="huge"),
    pytest.param({"a": _tensor(4, 0, [4])}, r"'a': expected data_offsets of two ascending", id="descending"),
    pytest.param(
        {"a": _tensor(0, 4, [5])}, r"'a': expected 5 bytes for U8 of shape \[5\], found 4", id="size"
    ),
    pytest.param(
        {"a": _tensor(0, 4), "b": _tensor(3, 8)}, r"'b' overlaps .* at offset 4, found 3", id="overlap"
    ),
    pytest.param(
        {"a": _tensor(0, 4), "b": _tensor(5, 8)}, r"'b' leaves a hole .* at offset 4, found 5", id="hole"
    ),
    pytest.param({"a": _tensor(0, 9)}, r"out of range: expected 9 bytes of data, found 8", id="range"),
    pytest.param({"a": _tensor(0, 7)}, r"no tensor owns: expected 7 bytes of data, found 8", id="rest"),
    pytest.param({"__metadata__": {"x": 1}, "a": _tensor(0, 8)}, "must map text to text", id="metadata"),
    pytest.param(b'{"\\ud800": 1}', r"holds half of a character", id="surrogate"),
]


@pytest.mark.parametrize(("header", "message"), HEADERS)
def test_a_broken_header_is_refused(tmp_path: Path, header: object, message: str) -> None:
    path = _write(tmp_path / "a.safetensors", header, bytes(8))
    with pytest.raises(GradfixError, match=message) as refusal:
        SafetensorsFile(path)
    assert str(refusal.value).startswith(f"{path}: ")
    assert "\n" not in str(refusal.value)
    str(refusal.value).encode()


FILES = [
    pytest.param(b"", r"is empty \(0 bytes\)", id="empty"),
    pytest.param(b"abc", r"truncated: expected at least 8 bytes, found 3", id="short"),
    pytest.param(
        struct.pack("<Q", 100) + b"{}", r"truncated: expected a header of 100 bytes, found 2", id="cut"
    ),
    pytest.param(
        struct.pack("<Q", 2**60) + b"{}", r"header too long: .* 1152921504606846976 announced", id="long"
    ),
    pytest.param(
        b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n",
        r"Git LFS pointer.*git lfs pull",
        id="lfs",
    ),
    pytest.param(b"\xef\xbb\xbf\n<!DOCTYPE html><html>", r"is an HTML page", id="html"),
    pytest.param(b"PK\x03\x04" + bytes(30), r"is a PyTorch file, expected a safetensors file", id="zip"),
    pytest.param(b"GGUF" + bytes(30), r"is a GGUF file", id="gguf"),
]


@pytest.mark.parametrize(("content", "message"), FILES)
def test_a_wrong_file_is_named_for_what_it_is(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(GradfixError, match=message) as refusal:
        SafetensorsFile(path)
    assert "\n" not in str(refusal.value)


def test_what_is_no_regular_file_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(GradfixError, match="is not a regular file"):
        SafetensorsFile(tmp_path / "fifo")
    with pytest.raises(GradfixError, match="is not a regular file"):
        SafetensorsFile(tmp_path)
    with pytest.raises(GradfixError, match="no such file"):
        SafetensorsFile(tmp_path / "absent")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(GradfixError, match="cannot be opened"):
        SafetensorsFile(tmp_path / "loop")


def test_a_large_tensor_is_read_by_several_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_reader, "READ_BYTES", 100)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    path, stored = tmp_path / "x.safetensors", torch.randn(77, 13)
    save_file({"x": stored}, path)
    file, readers = SafetensorsFile(path), set()
    fill = PositionedFile._fill

    def watched(*arguments: Any) -> None:
        readers.add(threading.current_thread())
        fill(*arguments)

    monkeypatch.setattr(PositionedFile, "_fill", watched)
    assert torch.equal(file.read("x"), stored)
    assert torch.equal(file.read("x", slice(3, 76)), stored[3:76])
    assert len(readers) > 2
    os.truncate(path, file.files[0].stat().st_size - 1)
    with pytest.raises(GradfixError, match="'x': the file was cut while it was read"):
        file.read("x")


def test_a_file_cut_after_opening_is_an_error_not_a_crash(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"x": torch.ones(100_000)}, path)
    file = SafetensorsFile(path)
    size = path.stat().st_size
    os.truncate(path, size // 2)
    assert torch.equal(file.read("x", slice(0, 10)), torch.ones(10))
    with pytest.raises(GradfixError, match=f"'x': the file was cut while it was read: expected {size} bytes"):
        file.read("x")
    assert torch.equal(file.pick("x", [0, 10]), torch.ones(2))
    with pytest.raises(GradfixError, match=f"'x': the file was cut while it was read: expected {size} bytes"):
        file.pick("x", [0, 99_999])


def test_a_replaced_file_is_read_as_it_was_checked(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"x": torch.ones(10)}, path)
    file = SafetensorsFile(path)
    save_file({"x": torch.zeros(3)}, tmp_path / "b.safetensors")
    os.replace(tmp_path / "b.safetensors", path)
    assert torch.equal(file.read("x"), torch.ones(10))


def test_threads_read_without_disturbing_each_other(tmp_path: Path) -> None:
    tensors = {str(i): torch.full((500, 40), float(i)) for i in range(8)}
    save_file(tensors, tmp_path / "a.safetensors")
    file = SafetensorsFile(tmp_path / "a.safetensors")
    wrong: list[str] = []

    def read(name: str) -> None:
        buffer = torch.empty(100_000, dtype=torch.uint8)
        for start in range(0, 500, 7):
            rows = slice(start, start + 7)
            if not torch.equal(file.read(name, rows, out=buffer), tensors[name][rows]):
                wrong.append(name)

    threads = [threading.Thread(target=read, args=(name,)) for name in tensors]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@given(data=st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=300)
def test_corruption_gives_an_error_or_the_data(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "a.safetensors"
    save_file(
        {"x": torch.arange(6).float().view(2, 3), "y": torch.ones(4, dtype=torch.int16)}, path, {"k": "v"}
    )
    whole = bytearray(path.read_bytes())
    header_end = 8 + struct.unpack("<Q", whole[:8])[0]
    for _ in range(data.draw(st.integers(1, 3))):
        action = data.draw(st.sampled_from(["flip", "insert", "delete", "cut", "grow"]))
        at = data.draw(st.integers(0, max(0, min(header_end, len(whole)) - 1)))
        if action == "flip" and whole:
            whole[at] = data.draw(st.sampled_from(list(b'0123456789{}[]",:-FI8a\x00\xff')))
        elif action == "insert":
            whole[at:at] = data.draw(st.binary(max_size=3))
        elif action == "delete":
            del whole[at : at + 2]
        elif action == "cut":
            del whole[data.draw(st.integers(0, len(whole))) :]
        else:
            whole += b"\0" * data.draw(st.integers(1, 9))
    path.write_bytes(whole)
    file, message = None, ""
    try:
        file = SafetensorsFile(path)
    except GradfixError as error:
        message = str(error)
    assert "\n" not in message
    if file is None:
        return
    for name, spec in file.specs.items():
        tensor = file.read(name)
        assert tuple(tensor.shape) == spec.shape
        assert _bits(tensor) in bytes(whole)


@pytest.mark.parametrize("length", [0x280, 0x280 + 0x10000])
def test_a_header_whose_length_looks_like_a_pickle_is_read(tmp_path: Path, length: int) -> None:
    header = b'{"weight":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'.ljust(length)
    file = tmp_path / "model.safetensors"
    file.write_bytes(length.to_bytes(8, "little") + header + b"\x07")
    assert SafetensorsFile(file).read("weight").tolist() == [7]


def test_the_system_is_asked_to_read_a_tensor_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, ...]] = []
    monkeypatch.setattr(os, "posix_fadvise", lambda _, *told: asked.append(told), raising=False)
    monkeypatch.setattr(os, "POSIX_FADV_WILLNEED", 3, raising=False)
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(5), "b": torch.ones(2, 3)}, path)
    checkpoint = Checkpoint.open(path)
    assert checkpoint.expect("b")
    content = path.read_bytes()
    assert asked == [(content.index(torch.ones(6).numpy().tobytes()), 24, 3)]
    monkeypatch.delattr(os, "posix_fadvise")
    assert not checkpoint.expect("b")


def test_a_pickled_tensor_is_not_read_ahead(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(5)}, tmp_path / "model.pt")
    assert not Checkpoint.open(tmp_path / "model.pt").expect("a")
