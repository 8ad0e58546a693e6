"""What files, disks and callers may do wrong: each is refused in words of its own, naming where."""

import errno
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gradfix.checkpoints import CheckpointWriter, TensorSpec, read_manifest
from gradfix.checkpoints.expressions import Sum
from gradfix.checkpoints.files import resolve_output
from gradfix.checkpoints.fingerprint import file_digest
from gradfix.checkpoints.lora.config import read_lora_config
from gradfix.checkpoints.reading import json_files
from gradfix.checkpoints.reading.file_reader import PositionedFile
from gradfix.checkpoints.vocabulary import read_tokens
from gradfix.checkpoints.writing import atomic, layout
from gradfix.checkpoints.writing.background import HashingFile
from gradfix.checkpoints.writing.lock import OutputLock
from gradfix.errors import GradfixError

SPECS = {"weight": TensorSpec(torch.float32, (2,))}


def fails(*_: object, **__: object) -> Any:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


@pytest.mark.parametrize(
    ("call", "read"),
    [
        ("pread", lambda file: file.read_bytes(0, 4)),
        ("preadv", lambda file: file.read_into(torch.zeros(4, dtype=torch.uint8), 0, "a tensor")),
    ],
)
def test_a_device_that_fails_is_named(
    call: str, read: Callable[[PositionedFile], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"1234")
    file = PositionedFile(path)
    monkeypatch.setattr(os, call, fails)
    with pytest.raises(GradfixError, match=r"file: .*cannot be read \(Input/output error\): check the disk"):
        read(file)


def test_a_file_that_is_gone_has_no_digest(tmp_path: Path) -> None:
    with pytest.raises(GradfixError, match=r"gone: cannot be hashed \(No such file or directory\)"):
        file_digest(tmp_path / "gone")


def test_json_of_a_checkpoint_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"key": "word"}))
    assert json_files.read_json_object(path) == {"key": "word"}
    monkeypatch.setattr(json_files, "MAX_BYTES", 4)
    with pytest.raises(GradfixError, match="is too long: at most 4 bytes expected"):
        json_files.read_json_object(path)


def test_a_tokenizer_that_nothing_can_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(GradfixError, match="the tokenizer can't be read"):
        read_tokens(tmp_path)


@pytest.mark.parametrize("key", ["rank_pattern", "alpha_pattern"])
def test_a_pattern_of_an_adapter_is_an_object(key: str, tmp_path: Path) -> None:
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["query"], key: [1]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(GradfixError, match=f"{key}: expected an object, found"):
        read_lora_config(tmp_path / "adapter_config.json")


@pytest.mark.parametrize("key", ["base_model_name_or_path", "revision"])
@pytest.mark.parametrize("value", [["a"], {"x": "a"}, 5, True])
def test_where_an_adapters_base_is_must_be_a_text(key: str, value: object, tmp_path: Path) -> None:
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["query"], key: value}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(GradfixError, match=f"{key}: expected a text, found"):
        read_lora_config(tmp_path / "adapter_config.json")


def test_a_sum_that_leaves_the_range_is_refused_where_it_is_made() -> None:
    class Large:
        specs = SPECS

        def read(self, name: str, rows: slice | None = None) -> torch.Tensor:
            return torch.full((2,), 3e38)

    with pytest.raises(GradfixError, match=r"the sum of task vectors.*weight"):
        Sum([(1.0, Large()), (1.0, Large())]).read("weight")  # type: ignore[list-item]


def test_an_output_below_a_file_is_told_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(GradfixError, match="file is not a directory; choose another output"):
        resolve_output(tmp_path / "file" / "out")


MANIFEST = {
    "format": "gradfix-manifest",
    "version": 1,
    "identity": {},
    "layout": {},
    "shards": {},
    "facts": {},
    "files": {},
    "complete": True,
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 99}, "version 99, this gradfix reads 1"),
        ({"layout": []}, "a section is not an object"),
        ({"shards": {"a": 1}}, "a shard's hashes are not an object"),
        ({"format": "else"}, "not a gradfix manifest"),
    ],
)
def test_what_is_wrong_with_a_manifest_is_told(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "gradfix-manifest.json"
    path.write_text(json.dumps(MANIFEST))
    assert read_manifest(tmp_path) is not None
    path.write_text(json.dumps({**MANIFEST, **change}))
    with pytest.raises(GradfixError, match=message):
        read_manifest(tmp_path)


def test_a_manifest_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text(json.dumps(MANIFEST))
    (tmp_path / "gradfix-manifest.json").symlink_to("elsewhere")
    with pytest.raises(GradfixError, match="not a regular file"):
        read_manifest(tmp_path)


def test_nothing_is_renamed_over_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atomic, "_renameat2", lambda *_: False)
    for name in ("source", "empty", "full"):
        (tmp_path / name).mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    with pytest.raises(FileExistsError):  # rename(2) itself would put a folder over an empty one
        atomic.publish(tmp_path / "source", tmp_path / "empty")
    monkeypatch.setattr(os.path, "lexists", lambda _: False)  # it came after the look
    with pytest.raises(FileExistsError):
        atomic.publish(tmp_path / "source", tmp_path / "full")
    assert stat.S_ISDIR((tmp_path / "source").lstat().st_mode)
    assert (tmp_path / "full" / "file").read_text() == "mine"


@pytest.mark.skipif(atomic.libc_function("renameat2") is None, reason="the C library has no renameat2")
def test_an_exchange_that_fails_is_not_taken_for_one_the_system_lacks(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "file").write_text("mine")
    missing, target = tmp_path / "missing", tmp_path / "target"
    with pytest.raises(FileNotFoundError):
        atomic._renameat2(missing, target, atomic._RENAME_EXCHANGE)
    with pytest.raises(FileNotFoundError):
        atomic.exchange(missing, target)
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


class TestWriter:
    def test_an_extra_file_that_is_missing_is_named_for_what_it_is_needed(self, tmp_path: Path) -> None:
        with (
            CheckpointWriter(tmp_path / "out", {}, identity={}) as writer,
            pytest.raises(GradfixError, match=r"it is needed as words\.txt"),
        ):
            writer.add_file("words.txt", tmp_path / "missing")

    def test_a_header_longer_than_readers_take_is_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(layout, "MAX_HEADER_BYTES", 10)
        with (
            pytest.raises(GradfixError, match="the limit is 10; use smaller shards"),
            CheckpointWriter(tmp_path / "out", SPECS, identity={}),
        ):
            pass

    def test_it_writes_inside_its_block_alone(self, tmp_path: Path) -> None:
        writer = CheckpointWriter(tmp_path / "out", SPECS, identity={})
        with pytest.raises(GradfixError, match="use the writer inside its with-block"):
            writer.add_file("words.txt", b"")

    def test_an_output_that_appears_before_the_lock_is_held_stays(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def enter(lock: OutputLock) -> OutputLock:
            (tmp_path / "out").mkdir()
            return held(lock)

        held = OutputLock.__enter__
        monkeypatch.setattr(OutputLock, "__enter__", enter)
        with (
            pytest.raises(GradfixError, match="exists already"),
            CheckpointWriter(tmp_path / "out", SPECS, identity={}),
        ):
            raise AssertionError("nothing is written")
        assert [path.name for path in tmp_path.iterdir()] == ["out"]

    def test_a_shard_of_another_size_is_not_called_whole(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real = HashingFile.sync
        monkeypatch.setattr(HashingFile, "sync", lambda file: real(file) - 1)
        with (
            pytest.raises(GradfixError, match="bytes after writing"),
            CheckpointWriter(tmp_path / "out", SPECS, identity={}) as writer,
        ):
            writer.write("weight", [torch.ones(2)])
        assert not (tmp_path / "out").exists()
