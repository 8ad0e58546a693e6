"""Folders of small files: whole or not at all."""

from pathlib import Path

import pytest

from gradfix.checkpoints.writing.atomic import write_folder
from gradfix.errors import GradfixError


def test_a_folder_appears_whole_and_is_changed_only_when_allowed(tmp_path: Path) -> None:
    write_folder(tmp_path / "out", {"a.txt": "1", "b.bin": b"2"})
    (tmp_path / "out" / "mine.txt").write_text("kept")
    with pytest.raises(GradfixError, match="--overwrite"):
        write_folder(tmp_path / "out", {"a.txt": "3"})
    assert (tmp_path / "out" / "a.txt").read_text() == "1"
    write_folder(tmp_path / "out", {"a.txt": "3"}, overwrite=True)
    contents = {path.name: path.read_text() for path in (tmp_path / "out").iterdir()}
    assert contents == {"a.txt": "3", "b.bin": "2", "mine.txt": "kept"}


def test_a_failure_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        write_folder(tmp_path / "out", {"a.txt": "1", "b.txt": None})  # type: ignore[dict-item]
    with pytest.raises(GradfixError, match="missing"):
        write_folder(tmp_path / "missing" / "out", {"a.txt": "1"})
    assert not list(tmp_path.iterdir())
