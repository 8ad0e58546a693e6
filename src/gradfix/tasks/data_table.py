"""What reading gives: rows with the names of their columns."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Table:
    """Rows with the names of their columns.

    Attributes:
        records: The rows, by position.
        columns: Every column that a row has, in the order of first appearance.
        class_names: By column, the names of the classes that the data declare.
        typed: Whether the data say which values are numbers; a csv file does not.
        lines: The line of its file that each row begins on, counted from 1; None where rows have no lines.
        files: The file of each row, where a folder holds several.
    """

    records: Sequence[Mapping[str, Any]]
    columns: Sequence[str]
    class_names: Mapping[str, Sequence[str]] = field(default_factory=dict)
    typed: bool = True
    lines: Sequence[int] | None = None
    files: Sequence[str] | None = None

    def origin(self, number: int, location: str) -> str:
        """How an error names a row: as an editor counts its lines, else as Python counts, from 0.

        Args:
            number: The row's.
            location: Of the whole table.

        Returns:
            For example ``line 18 of support.jsonl`` or ``row 17 of support.parquet``.
        """
        if self.lines is None:
            return f"row {number} of {location}"
        return f"line {self.lines[number]} of {location if self.files is None else self.files[number]}"


Readers = Mapping[str | None, Callable[[], Table]]
"""By split, what reads its rows; under None where there are no splits."""
