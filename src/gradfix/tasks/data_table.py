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
    """

    records: Sequence[Mapping[str, Any]]
    columns: Sequence[str]
    class_names: Mapping[str, Sequence[str]] = field(default_factory=dict)
    typed: bool = True


Readers = Mapping[str | None, Callable[[], Table]]
"""By split, what reads its rows; under None where there are no splits."""
