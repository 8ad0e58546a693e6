"""Rows of a folder: images by class, or data files; what is a split and what a class is read off whole names only."""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from gradfix.errors import GradfixError, listed
from gradfix.tasks.data_files import FILE_KINDS, kind_of, read_file, read_files
from gradfix.tasks.data_table import Readers, Table
from gradfix.text_files import MAX_YAML_BYTES, parse_yaml, read_bytes

SPLITS = {
    **dict.fromkeys(["train", "training"], "train"),
    **dict.fromkeys(["test", "testing", "eval", "evaluation"], "test"),
    **dict.fromkeys(["validation", "valid", "val", "dev"], "validation"),
}
"""Names of splits, with what the Hub calls them. A name is a split's only as a whole: ``latest`` is no test."""

_DECLARING = frozenset({"configs", "dataset_info"})
_SHARD = re.compile(r"-\d{5}-of-\d{5}$")
_DESCRIPTIONS = frozenset({"dataset_info.json", "dataset_infos.json"})


def is_declared(path: Path) -> bool:
    """Whether a folder says itself how it is to be read, as data sets of the Hub do in their README.

    Args:
        path: The folder.

    Returns:
        Whether its README.md names configurations or features.

    Raises:
        GradfixError: If what it says of itself can't be read: guessing instead would give other rows.
    """
    readme = path / "README.md"
    if not readme.is_file():
        return False
    text = read_bytes(readme, MAX_YAML_BYTES).decode("utf-8", "replace")
    found = re.match(r"---\r?\n(.*?)\r?\n---", text, re.DOTALL)
    if found is None or not any(key in found.group(1) for key in _DECLARING):
        return False
    head = parse_yaml(found.group(1), str(readme))
    return isinstance(head, dict) and bool(head.keys() & _DECLARING)


def read_folder(path: Path, encoding: str | None = None) -> Readers:
    """Find what a folder holds.

    Args:
        path: The folder.
        encoding: Of data files that are text.

    Returns:
        What reads each split.

    Raises:
        GradfixError: If it holds no data, or it is not plain what is a class and what a split.
    """
    files = list(_visible(path))
    suffixes = image_suffixes()
    images = [file for file in files if file.suffix.lower() in suffixes]
    data = [file for file in files if kind_of(file) in FILE_KINDS and file.name not in _DESCRIPTIONS]
    tables = [file for file in data if _stem(file) == "metadata"]
    if images and tables:
        return _by_split(path, tables, lambda chosen: partial(_listed_images, path, chosen, encoding))
    if images:
        stray = [file.relative_to(path).as_posix() for file in data]
        if stray and any(file.parent == path for file in images):
            raise GradfixError(
                f"{path}: holds images and data files ({listed(stray, 3)}); name the file, or call it metadata with "
                "a column file_name"
            )
        return _image_folders(path, images)
    if not data:
        raise GradfixError(
            f"{path}: cannot be read as data (it holds neither images nor {listed(FILE_KINDS)} files)"
        )
    return _by_split(path, data, lambda chosen: partial(read_files, chosen, encoding))


def _stem(file: Path) -> str:
    """The name before everything that says what kind of file it is: ``train`` of ``train.jsonl.gz``."""
    return Path(file.stem).stem if file.suffix.lower() == ".gz" else file.stem


def image_suffixes() -> frozenset[str]:
    """Suffixes of the files that Pillow opens.

    Returns:
        In lower case, with the dot.
    """
    from PIL import Image

    return frozenset(
        suffix
        for suffix, kind in Image.registered_extensions().items()
        if kind in Image.OPEN and suffix != ".pdf"
    )


def _visible(path: Path, above: frozenset[Path] = frozenset()) -> Iterator[Path]:
    """Files below a folder, in the order of their names; hidden ones and what macOS adds to archives left out."""
    above = above | {path.resolve()}
    for entry in sorted(path.iterdir()):
        if entry.name.startswith(".") or entry.name == "__MACOSX":
            continue
        if entry.is_file():
            yield entry
        elif entry.is_dir() and entry.resolve() not in above:  # a link may lead back up
            yield from _visible(entry, above)


def _by_split(
    path: Path, files: Sequence[Path], reader: Callable[[list[Path]], Callable[[], Table]]
) -> Readers:
    """Group files by the split that a whole name says: of the file, less its shard's number, or of a folder."""
    groups: dict[str | None, list[Path]] = {}
    for file in files:
        relative = file.relative_to(path)
        names = {
            name for name in (*relative.parts[:-1], _SHARD.sub("", _stem(file))) if name.lower() in SPLITS
        }
        if len(names) > 1:
            raise GradfixError(
                f"{path}: {relative.as_posix()} names several splits ({listed(sorted(names))}); name it"
            )
        groups.setdefault(next(iter(names), None), []).append(file)
    if None in groups and len(groups) > 1:
        split = next(name for name in groups if name is not None)
        raise GradfixError(
            f"{path}: {groups[split][0].name} is of the split {split!r}, {groups[None][0].name} of none; name the file"
        )
    return {split: reader(chosen) for split, chosen in groups.items()}


def _listed_images(path: Path, tables: Sequence[Path], encoding: str | None) -> Table:
    """Images with what tables called metadata say of each."""
    records: list[dict[str, Any]] = []
    found = [read_file(table, encoding) for table in tables]
    for source, table in zip(tables, found, strict=True):
        for number, record in enumerate(table.records):
            name = record.get("file_name")
            image = Path(os.path.normpath(source.parent / name)) if isinstance(name, str) and name else None
            if image is None or not image.is_relative_to(path) or not image.is_file():
                raise GradfixError(
                    f"{table.origin(number, str(source))}: file_name: no image {name!r} in this folder"
                )
            rest = {key: value for key, value in record.items() if key != "file_name"}
            records.append({"image": _undecoded(image), **rest})
    columns = dict.fromkeys(column for table in found for column in table.columns if column != "file_name")
    return Table(records, ["image", *columns], found[0].class_names, all(table.typed for table in found))


def _image_folders(path: Path, images: Sequence[Path]) -> Readers:
    """One folder a class, perhaps within one folder a split; without any, images that nobody labelled."""
    depths = {len(image.relative_to(path).parts) for image in images}
    tops = sorted({image.relative_to(path).parts[0] for image in images})
    if depths == {1}:
        return {None: partial(Table, [{"image": _undecoded(image)} for image in images], ["image"])}
    if depths == {2}:
        return {None: partial(_classes, path, images)}
    if depths == {3} and all(top.lower() in SPLITS for top in tops):
        return {
            top: partial(_classes, path / top, [i for i in images if i.is_relative_to(path / top)])
            for top in tops
        }
    odd = next(image for image in images if len(image.relative_to(path).parts) != 2)
    raise GradfixError(
        f"{path}: expected one folder a class with its images in it, found {odd.relative_to(path).as_posix()}; "
        "give the folder that holds the classes"
    )


def _classes(path: Path, images: Sequence[Path]) -> Table:
    names = sorted({image.parent.name for image in images})
    for folder in sorted(entry for entry in path.iterdir() if entry.is_dir()):
        strangers = [] if folder.name in names else list(_visible(folder))
        if strangers and not folder.name.startswith(".") and folder.name != "__MACOSX":
            raise GradfixError(
                f"{folder}: none of its files is an image that Pillow opens (found {strangers[0].name}); "
                "convert them, or move the folder away"
            )
    records = [{"image": _undecoded(image), "label": image.parent.name} for image in images]
    return Table(records, ["image", "label"], {"label": names})


def _undecoded(image: Path) -> dict[str, Any]:
    """An image as ``datasets`` gives it undecoded, so that an unreadable one is reported with its row."""
    return {"bytes": None, "path": str(image)}
