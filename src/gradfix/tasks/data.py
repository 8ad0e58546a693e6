"""Labelled rows from files and data sets, each with a stable hash of its content.

Everything is read through ``datasets``: jsonl, json, csv, tsv, parquet, a folder of images by class, a
directory that ``datasets`` wrote, or a data set of the Hub. Local files leave no cache behind: they are held
in memory and the working directory is removed; a data set of the Hub stays in the Hub's own cache, where
people expect it.

Images stay encoded (bytes or a path) until a task encodes them, so an unreadable one is reported with its
row.
"""

import hashlib
import json
import logging
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, overload

from gradfix.errors import GradfixError, listed

FILE_KINDS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet"}
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})


class Row(dict[str, Any]):
    """One sample, that knows where it came from.

    Attributes:
        origin: How an error names this row: the data set and the row's number in it, counted from 0.
    """

    def __init__(self, values: Mapping[str, Any], origin: str) -> None:
        super().__init__(values)
        self.origin = origin


class Rows(Sequence[Row]):
    """An indexable sequence of rows on top of a ``datasets.Dataset``.

    Integers of a ``ClassLabel`` column are given as their names; images are given undecoded.

    Args:
        dataset: The ``datasets.Dataset``, with images set to ``decode=False``.
        location: Where it came from, as the caller wrote it.
        numbers: The rows of ``dataset`` to show, in order; all of them by default.
    """

    def __init__(self, dataset: Any, location: str, numbers: Sequence[int] | None = None) -> None:
        self._dataset = dataset
        self.location = location
        self.numbers: Sequence[int] = range(len(dataset)) if numbers is None else numbers
        self.column_names: list[str] = list(dataset.column_names)
        self.class_names: dict[str, list[str]] = {
            column: list(feature.names)
            for column, feature in dataset.features.items()
            if type(feature).__name__ == "ClassLabel"
        }

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, index: int) -> Row: ...

    @overload
    def __getitem__(self, index: slice) -> "Rows": ...

    def __getitem__(self, index: int | slice) -> "Row | Rows":
        if isinstance(index, slice):
            return Rows(self._dataset, self.location, self.numbers[index])
        number = self.numbers[index]
        values = self._dataset[number]
        for column, names in self.class_names.items():
            value = values[column]
            # -1 is how data sets mark an unlabelled row; the task then says that the label is missing.
            values[column] = names[value] if value is not None and 0 <= value < len(names) else None
        return Row(values, f"row {number} of {self.location}")

    def select(self, indices: Iterable[int]) -> "Rows":
        """Some of these rows, in the order given.

        Args:
            indices: Positions in this sequence.

        Returns:
            The chosen rows; each keeps the number it had in the data set.
        """
        return Rows(self._dataset, self.location, [self.numbers[index] for index in indices])


def load_rows(location: str | Path, *, split: str | None = None, configuration: str | None = None) -> Rows:
    """Read labelled rows.

    Args:
        location: A ``.jsonl``, ``.json``, ``.csv``, ``.tsv`` or ``.parquet`` file; a directory of images with
            one folder a class, or of such files; a directory written by ``datasets``; or the id of a Hub data
            set.
        split: Which split, in the notation of ``datasets`` ("train", "test[:100]"); needed where there are
            several.
        configuration: The configuration of a Hub data set that has several.

    Returns:
        The rows, in the order of the data.

    Raises:
        GradfixError: If the data cannot be read, is empty, or has several splits and none was named.
    """
    path = Path(location)
    if not path.exists() and (path.suffix in FILE_KINDS or path.is_absolute()):
        raise GradfixError(f"{location}: no such file or directory")
    import datasets

    with _quiet(datasets), tempfile.TemporaryDirectory(prefix="gradfix-data-") as scratch:
        try:
            loaded = _load(datasets, path, str(location), configuration, scratch)
            if isinstance(loaded, datasets.DatasetDict):
                loaded = _pick(datasets, loaded, split, str(location))
            elif split is not None:
                raise GradfixError(f"{location}: has no splits, so leave out the split {split!r}")
        # What reading can raise differs by format; all of it means that this location is not readable data.
        except (OSError, ValueError, KeyError, StopIteration, datasets.exceptions.DatasetsError) as error:
            raise GradfixError(f"{location}: cannot be read as data ({_reason(path, error)})") from error
        for column, feature in loaded.features.items():
            if isinstance(feature, datasets.Image):
                loaded = loaded.cast_column(column, datasets.Image(decode=False))
    if len(loaded) == 0:
        raise GradfixError(f"{location}: holds no rows")
    return Rows(loaded, str(location))


def _load(datasets: Any, path: Path, location: str, configuration: str | None, scratch: str) -> Any:
    """Hand the location to the loader of ``datasets`` that fits it, keeping local data in memory."""
    local = {"cache_dir": scratch, "keep_in_memory": True}
    if path.is_file():
        kind = FILE_KINDS.get(path.suffix)
        if kind is None:
            raise GradfixError(
                f"{location}: unknown kind of file {path.suffix!r}; expected {listed(sorted(FILE_KINDS))}"
            )
        extra = {"sep": "\t"} if path.suffix == ".tsv" else {}
        return datasets.load_dataset(kind, data_files=str(path.absolute()), **extra, **local)
    if not path.is_dir():
        return datasets.load_dataset(location, configuration)
    if (path / "state.json").exists() or (path / "dataset_dict.json").exists():
        return datasets.load_from_disk(str(path), keep_in_memory=True)
    if any(file.suffix.lower() in IMAGE_SUFFIXES for file in path.rglob("*")):
        return datasets.load_dataset("imagefolder", data_dir=str(path.absolute()), **local)
    return datasets.load_dataset(str(path.absolute()), configuration, **local)


def _reason(path: Path, error: BaseException) -> str:
    """Why data cannot be read: the line of a jsonl file, which ``datasets`` does not tell, or its own words."""
    if path.suffix == ".jsonl" and path.is_file():
        for number, line in enumerate(path.read_bytes().splitlines(), start=1):
            try:
                if line.strip() and not isinstance(json.loads(line), dict):
                    return f"line {number}: expected an object in braces"
            except ValueError as mistake:
                return f"line {number}: {mistake}"
    cause = error.__cause__ or error
    words = " ".join(str(cause).split())
    return f"{type(cause).__name__}: {words}" if words else "it holds no row"


def _pick(datasets: Any, splits: Mapping[str, Any], split: str | None, location: str) -> Any:
    """The split asked for, or the only one."""
    names = ", ".join(splits)
    if split is None:
        if len(splits) == 1:
            return next(iter(splits.values()))
        raise GradfixError(f"{location}: has several splits ({names}); name one")
    name, _, part = split.partition("[")
    if name not in splits:
        raise GradfixError(f"{location}: has no split {name!r}, only {names}")
    chosen = splits[name]
    if not part:
        return chosen
    # The same slicing notation as load_dataset(split=…), which cannot be asked after loading.
    instruction = datasets.ReadInstruction.from_spec(split).to_absolute({name: len(chosen)})[0]
    return chosen.select(
        range(instruction.from_ or 0, len(chosen) if instruction.to is None else instruction.to)
    )


@contextmanager
def _quiet(datasets: Any) -> Iterator[None]:
    """Silence the bars and messages of ``datasets`` for one call: the command line draws its own."""
    shown, level = not datasets.utils.are_progress_bars_disabled(), datasets.logging.get_verbosity()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        datasets.logging.set_verbosity(level)
        if shown:
            datasets.enable_progress_bars()


def origin(row: Mapping[str, Any], position: int) -> str:
    """How an error names a row.

    Args:
        row: Any mapping; a `Row` knows its origin.
        position: The row's place in what the caller was given, for rows that don't.

    Returns:
        For example ``row 17 of support.jsonl``.
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
        return {"pixels": hashlib.sha256(value.tobytes()).hexdigest(), "shape": list(shape or ())}
    return value
