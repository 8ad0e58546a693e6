"""Single files belong to one run at a time, and only a run that was told to replaces one."""

import os
from pathlib import Path

import pytest
import torch

from gradfix.checkpoints import SafetensorsFile, TensorSpec, write_safetensors
from gradfix.checkpoints.writing.atomic import write_folder
from gradfix.checkpoints.writing.lock import OutputLock
from gradfix.checkpoints.writing.single import claimed, write_text
from gradfix.errors import GradfixError

SPECS = {"w": TensorSpec(torch.float32, (2,))}


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_has_one_writer_at_a_time(tmp_path: Path, overwrite: bool) -> None:
    path = tmp_path / "out"
    with claimed(path, overwrite=overwrite):
        for other in (
            lambda: claimed(path, overwrite=overwrite).__enter__(),
            lambda: write_safetensors(path, SPECS, lambda _: [torch.ones(2)], {}, overwrite=overwrite),
            lambda: write_folder(path, {"a": "text"}),
        ):
            with pytest.raises(GradfixError, match="is writing this output"):
                other()
    assert os.listdir(tmp_path) == []


def test_what_appeared_meanwhile_is_replaced_with_overwrite_alone(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with claimed(path, overwrite=False) as target:
        path.write_text("somebody's")
        with pytest.raises(GradfixError, match="out: cannot write"):
            write_text(target, "ours", overwrite=False)
    assert path.read_text() == "somebody's"
    with pytest.raises(GradfixError, match="exists already"), claimed(path, overwrite=False):
        pass
    with claimed(path, overwrite=True) as target:
        write_text(target, "ours", overwrite=True)
    assert path.read_text() == "ours"
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("kind", ["directory", "link", "pipe"])
def test_only_files_are_replaced(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "out"
    {"directory": path.mkdir, "link": lambda: path.symlink_to("x"), "pipe": lambda: os.mkfifo(path)}[kind]()
    with pytest.raises(GradfixError, match="not a regular file"), claimed(path, overwrite=True):
        pass


def test_a_file_of_weights_says_nothing_of_its_lock(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "out", SPECS, lambda _: [torch.ones(2)], {})
    assert os.listdir(tmp_path) == ["out"]
    with OutputLock(tmp_path / "out"):
        pass


@pytest.mark.parametrize("lasting", [True, False])
def test_only_what_is_to_last_waits_for_the_disk(
    lasting: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited = []
    monkeypatch.setattr(os, "fsync", waited.append)
    path = tmp_path / "out"
    write_safetensors(path, SPECS, lambda _: [torch.ones(2)], {}, lasting=lasting)
    assert bool(waited) == lasting
    assert torch.equal(SafetensorsFile(path).read("w"), torch.ones(2))
    assert os.listdir(tmp_path) == ["out"]
