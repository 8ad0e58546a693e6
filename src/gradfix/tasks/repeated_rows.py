"""Rows given twice: a sample votes once, however often it was pasted."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from gradfix.tasks.data import Row, origin, row_hash
from gradfix.tasks.data import Rows as DataRows

Rows = Sequence[Mapping[str, Any]]


def distinct(
    rows: Rows, columns: Callable[[Mapping[str, Any]], Collection[str]], *, known: Rows = ()
) -> tuple[Rows, list[tuple[str, str]]]:
    """Leave out rows that say the same as an earlier one.

    Args:
        rows: The samples.
        columns: Those of a row that count.
        known: Rows that come before these; they are not returned.

    Returns:
        The rows that are left, each knowing where it comes from, and for each one left out its own origin with that
        of the row it repeats.
    """
    first: dict[str, str] = {}
    for number, row in enumerate(known):
        first.setdefault(row_hash(row, columns(row)), origin(row, number))
    kept: list[int] = []
    repeats: list[tuple[str, str]] = []
    for number, row in enumerate(rows):
        here = origin(row, number)
        digest = row_hash(row, columns(row))
        if digest in first:
            repeats.append((here, first[digest]))
        else:
            first[digest] = here
            kept.append(number)
    if not repeats:
        return rows, []
    if isinstance(rows, DataRows):  # with the classes that the data declare
        return rows.select(kept), repeats
    return [Row(rows[number], origin(rows[number], number)) for number in kept], repeats
