"""Rows given twice: a sample votes once, however often it was pasted."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from gradfix.tasks.data import Row, origin, row_hash

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
    first = {row_hash(row, columns(row)): origin(row, number) for number, row in enumerate(known)}
    kept: list[Row] = []
    repeats: list[tuple[str, str]] = []
    for number, row in enumerate(rows):
        here = origin(row, number)
        earlier = first.setdefault(row_hash(row, columns(row)), here)
        if earlier is here:
            kept.append(row if isinstance(row, Row) else Row(row, here))
        else:
            repeats.append((here, earlier))
    return (kept if repeats else rows), repeats
