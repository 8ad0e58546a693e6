"""Labelled rows from files and data sets, each with a stable hash of its content.

A file or a folder is read as it says, with nothing guessed (`data_files`, `data_folders`); what ``datasets`` wrote,
and data sets of the Hub, are read through ``datasets`` (`data_library`). Local files leave no cache behind; a data
set of the Hub stays in the Hub's own cache, where people expect it.

Images stay encoded (bytes or a path) until a task encodes them, so an unreadable one is reported with its
row.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

from gradfix.errors import GradfixError
from gradfix.tasks.data_files import FILE_KINDS, kind_of, read_file
from gradfix.tasks.data_folders import SPLITS, is_declared, read_folder
from gradfix.tasks.data_hub import read_declared
from gradfix.tasks.data_library import is_saved, read_saved, sliced
from gradfix.tasks.data_table import Readers, Table
from gradfix.text_files import require_regular

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


class Row(dict[str, Any]):
    """One sample, that knows where it came from.

    Attributes:
        origin: How an error names this row: its line in a file of text, else its number in the data, counted from 0.
    """

    def __init__(self, values: Mapping[str, Any], origin: str) -> None:
        super().__init__(values)
        self.origin = origin


class Rows(Sequence[Row]):
    """An indexable sequence of rows on top of a table.

    Integers of a column whose classes the data declare, lists of them included, are given as their names; images are
    given undecoded.

    Args:
        table: The rows.
        location: Where they came from, as the caller wrote it.
        numbers: The rows of ``table`` to show, in order; all of them by default.
    """

    def __init__(self, table: Table, location: str, numbers: Sequence[int] | None = None) -> None:
        self._table = table
        self.location = location
        self.numbers: Sequence[int] = range(len(table.records)) if numbers is None else numbers
        self.column_names = list(table.columns)
        self.class_names = {column: list(names) for column, names in table.class_names.items()}
        self.typed = table.typed

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, index: int) -> Row: ...

    @overload
    def __getitem__(self, index: slice) -> "Rows": ...

    def __getitem__(self, index: int | slice) -> "Row | Rows":
        if isinstance(index, slice):
            return Rows(self._table, self.location, self.numbers[index])
        number = self.numbers[index]
        values = dict(self._table.records[number])
        for column, names in self.class_names.items():
            value = values[column]
            several = isinstance(value, list | tuple)
            values[column] = [_named(each, names) for each in value] if several else _named(value, names)
        return Row(values, self._table.origin(number, self.location))

    def select(self, indices: Iterable[int]) -> "Rows":
        """Some of these rows, in the order given.

        Args:
            indices: Positions in this sequence.

        Returns:
            The chosen rows; each keeps the number it had in the data set.
        """
        return Rows(self._table, self.location, [self.numbers[index] for index in indices])


def _named(value: Any, names: Sequence[str]) -> Any:
    """A class by name; −1 is how data sets mark an unlabelled row, and the task says that the label is missing."""
    if isinstance(value, str):
        return value
    return names[value] if value is not None and 0 <= value < len(names) else None


def load_rows(
    location: str | Path,
    *,
    split: str | None = None,
    configuration: str | None = None,
    encoding: str | None = None,
) -> Rows:
    """Read labelled rows.

    Args:
        location: A ``.jsonl``, ``.json``, ``.csv``, ``.tsv`` (each also as ``.gz``) or ``.parquet`` file; a
            directory of images with one folder a class, or of such files; a directory written by ``datasets``; or
            the id of a Hub data set. A name is taken as it is, whatever characters it has.
        split: Which split, in the notation of ``datasets`` ("train", "test[:100]"); needed where there are
            several.
        configuration: The configuration of a Hub data set that has several.
        encoding: Of csv, tsv and json files; UTF-8 by default.

    Returns:
        The rows, in the order of the data.

    Raises:
        GradfixError: If the data cannot be read, is empty, or has several splits and none was named.
    """
    table, numbers = _chosen(
        _readers(Path(location), str(location), configuration, encoding), split, str(location)
    )
    if not len(table.records) or (numbers is not None and not len(numbers)):
        raise GradfixError(f"{location}: holds no rows")
    return Rows(table, str(location), numbers)


def _readers(path: Path, location: str, configuration: str | None, encoding: str | None) -> Readers:
    """What reads each split of a location; under None where there are no splits."""
    if path.is_file():
        return {None: lambda: read_file(path, encoding)}
    if not path.is_dir():
        require_regular(path)
        if kind_of(path) in FILE_KINDS or not _HUB_ID.fullmatch(location):
            raise GradfixError(f"{location}: no such file or directory")
        return read_declared(location, configuration, encoding=encoding)
    if is_saved(path):
        return read_saved(path)
    if configuration is not None or is_declared(path):
        return read_declared(path, configuration, encoding=encoding)
    return read_folder(path, encoding)


def _chosen(readers: Readers, split: str | None, location: str) -> tuple[Table, Sequence[int] | None]:
    """The split asked for, or the only one, and which of its rows."""
    if None in readers:
        if split is not None:
            raise GradfixError(f"{location}: has no splits, so leave out the split {split!r}")
        return readers[None](), None
    names = ", ".join(map(str, readers))
    if split is None:
        if len(readers) == 1:
            return next(iter(readers.values()))(), None
        raise GradfixError(f"{location}: has several splits ({names}); name one")
    asked, _, part = split.partition("[")
    # The Hub's name of a split stands for the folder's own, such as validation for val.
    known: list[str | None] = [name for name in readers if name == asked]
    known = known or [name for name in readers if SPLITS.get(str(name).lower()) == asked]
    if len(known) != 1:
        raise GradfixError(f"{location}: has no split {asked!r}, only {names}")
    table = readers[known[0]]()
    if not part:
        return table, None
    return table, sliced(f"{asked}[{part}", asked, len(table.records))


def origin(row: Mapping[str, Any], position: int) -> str:
    """How an error names a row.

    Args:
        row: Any mapping; a `Row` knows its origin.
        position: The row's place in what the caller was given, for rows that don't.

    Returns:
        For example ``line 18 of support.jsonl``.
    """
    return row.origin if isinstance(row, Row) else f"row {position}"


def row_hash(row: Mapping[str, Any], columns: Iterable[str] | None = None) -> str:
    """Hash what a task reads of a row, so that the chosen samples can be recognised later.

    Args:
        row: The row; images as ``datasets`` gives them (bytes or path), paths, PIL images or bytes.
        columns: The columns that count; all by default.

    Returns:
        sha256, in hexadecimal, of the columns in alphabetical order as JSON. Images count by their encoded
        bytes, wherever they lie.
    """
    chosen = sorted(row if columns is None else columns)
    content = {column: _canonical(row[column]) for column in chosen}
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _canonical(value: Any) -> Any:
    """The value as JSON can say it, with binary content replaced by its own hash."""
    if isinstance(value, Mapping):
        if set(value) == {"bytes", "path"}:
            data = value["bytes"] if value["bytes"] is not None else Path(value["path"]).read_bytes()
            return {"sha256": hashlib.sha256(data).hexdigest()}
        return {str(key): _canonical(item) for key, item in value.items()}
    if isinstance(value, bytes):
        return {"sha256": hashlib.sha256(value).hexdigest()}
    if isinstance(value, Path):
        return {"sha256": hashlib.sha256(value.read_bytes()).hexdigest()}
    if isinstance(value, list | tuple):
        return [_canonical(item) for item in value]
    if hasattr(value, "detach"):  # a tensor, of whatever element type
        import torch

        whole = value.detach().cpu().contiguous()
        content = whole.flatten().view(torch.uint8).numpy().tobytes()
        return {
            "values": hashlib.sha256(content).hexdigest(),
            "dtype": str(whole.dtype),
            "shape": list(whole.shape),
        }
    if hasattr(value, "tobytes"):  # a PIL image or an array: its pixels, since the encoded bytes are gone
        shape = getattr(value, "size", None) if hasattr(value, "mode") else getattr(value, "shape", None)
        pixels = value.tobytes()
        if hasattr(value, "getpalette"):  # the same numbers are other colours in another mode or palette
            pixels += f"{value.mode} {value.getpalette()}".encode()
        return {"pixels": hashlib.sha256(pixels).hexdigest(), "shape": list(shape or ())}
    return value
