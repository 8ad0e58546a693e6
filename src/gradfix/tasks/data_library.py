"""What ``datasets`` wrote, and what it knows of a table; its bars, messages and errors kept in check."""

import logging
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from gradfix.errors import GradfixError
from gradfix.tasks.data_table import Readers, Table


def is_saved(path: Path) -> bool:
    """Whether a folder was written by ``save_to_disk`` of ``datasets``.

    Args:
        path: The folder.

    Returns:
        Whether it has the file that says so.
    """
    return (path / "state.json").exists() or (path / "dataset_dict.json").exists()


def read_saved(path: Path) -> Readers:
    """Read a folder that ``datasets`` wrote.

    Args:
        path: The folder.

    Returns:
        What gives the rows of each split.

    Raises:
        GradfixError: If it can't be read.
    """
    import datasets

    with quiet(), explained(path), _plainly_named(path) as plain:
        return readers_of(datasets.load_from_disk(str(plain), keep_in_memory=True))


def table_of(dataset: Any) -> Table:
    """Give what ``datasets`` reads as a table, with images left encoded.

    Args:
        dataset: A ``datasets.Dataset``, or a ``pyarrow.Table`` with what it says of itself.

    Returns:
        The same rows.
    """
    import datasets

    if not isinstance(dataset, datasets.Dataset):
        dataset = datasets.Dataset(datasets.table.InMemoryTable(dataset))
    for column, feature in dataset.features.items():
        if isinstance(feature, datasets.Image):
            dataset = dataset.cast_column(column, datasets.Image(decode=False))
    names = {
        column: list(kind.names)
        for column, feature in dataset.features.items()
        if isinstance(kind := getattr(feature, "feature", feature), datasets.ClassLabel)
    }
    return Table(dataset, list(dataset.column_names), names)


def sliced(split: str, name: str, rows: int) -> range:
    """Read a split's slice as ``datasets`` writes it.

    Args:
        split: Such as ``test[:10%]``.
        name: The split's name alone.
        rows: How many rows it has.

    Returns:
        The rows it means.

    Raises:
        GradfixError: If it is not written so.
    """
    import datasets

    try:
        instruction = datasets.ReadInstruction.from_spec(split).to_absolute({name: rows})[0]
    except (ValueError, AssertionError) as error:
        raise GradfixError(f"split {split!r}: {' '.join(str(error).split())}") from error
    return range(instruction.from_ or 0, rows if instruction.to is None else instruction.to)


def readers_of(loaded: Any) -> Readers:
    """Give what ``datasets`` loaded as tables.

    Args:
        loaded: A ``DatasetDict``, by split, or a single ``Dataset``.

    Returns:
        What gives the rows of each split.
    """
    if isinstance(loaded, Mapping):
        return {str(name): partial(table_of, dataset) for name, dataset in loaded.items()}
    return {None: partial(table_of, loaded)}


@contextmanager
def _plainly_named(path: Path) -> Iterator[Path]:
    """A path without the characters that ``datasets`` takes for patterns and addresses: if need be a link to it."""
    if re.fullmatch(r"[\w./ \\-]*", str(path.absolute())):
        yield path.absolute()
        return
    with tempfile.TemporaryDirectory(prefix="gradfix-data-") as folder:
        link = Path(folder) / "data"
        link.symlink_to(path.absolute(), target_is_directory=True)
        yield link


@contextmanager
def explained(location: str | Path) -> Iterator[None]:
    """Turn what reading raises, which differs by format, into one line.

    Args:
        location: What is read.

    Yields:
        Nothing.

    Raises:
        GradfixError: In place of what was raised.
    """
    try:
        yield
    except GradfixError:
        raise
    except Exception as error:
        cause = error.__cause__ or error
        words = " ".join(str(cause).split())
        raise GradfixError(
            f"{location}: cannot be read as data ({type(cause).__name__}: {words[:300]})"
        ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the bars and messages of ``datasets`` for one call: the command line draws its own.

    Yields:
        Nothing.
    """
    import datasets

    shown, level = not datasets.utils.are_progress_bars_disabled(), datasets.logging.get_verbosity()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        datasets.logging.set_verbosity(level)
        if shown:
            datasets.enable_progress_bars()
