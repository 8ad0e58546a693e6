"""The rows of a study's tasks: those that have a label, named as prompts say them."""

from collections.abc import Mapping, Sequence
from typing import Any, overload

from gradfix.errors import GradfixError, listed, option
from gradfix.paper.study import StudyTask
from gradfix.tasks.data import Row, Rows, load_rows, origin
from gradfix.tasks.sampling import spread

VALIDATION_SHARE = 5
"""Of so many training samples one at most is for validation."""


def task_rows(task: StudyTask, *, test: bool, most: int | None = None) -> Sequence[Row]:
    """Read the samples of a task.

    Args:
        task: The task.
        test: Those to judge on, not those to draw from.
        most: How many at most, drawn once, as evenly over classes as it goes.

    Returns:
        The rows that have a label, in the order of the data.

    Raises:
        GradfixError: If they can't be read.
    """
    found = _labelled(task, test=test)
    return found if most is None else _drawn(task, found, most, seed=0)[0]


def training_rows(task: StudyTask, *, pool: int, validation: int) -> tuple[Sequence[Row], Sequence[Row]]:
    """Draw what a table needs of a task's training samples, none of them twice.

    Args:
        task: The task.
        pool: How many to draw support sets from, at most.
        validation: How many to choose α on; fewer where they would be more than one in five.

    Returns:
        Those to draw support sets from, and those for validation.

    Raises:
        GradfixError: If they can't be read.
    """
    rows = _labelled(task, test=False)
    held, others = _drawn(task, rows, min(validation, len(rows) // VALIDATION_SHARE), seed=1)
    return _drawn(task, others, pool, seed=0)[0], held


def _labelled(task: StudyTask, *, test: bool) -> "Rows | _Renamed":
    location, split = (task.test or task.data, task.test_split) if test else (task.data, task.split)
    rows = load_rows(location, split=split, configuration=task.configuration)
    column = _label(task)
    if column not in rows.column_names:
        raise GradfixError(
            f"{location}: has no column {column!r}, only {listed(rows.column_names, 10)}; give a study of your own "
            f"({option('study')}) with its name under columns"
        )
    found = rows.select([number for number, row in enumerate(rows) if row.get(column) is not None])
    return _Renamed(found, column, task.names) if task.names else found


def _drawn(
    task: StudyTask, rows: "Rows | _Renamed", count: int, *, seed: int
) -> tuple["Rows | _Renamed", "Rows | _Renamed"]:
    """Some rows, as evenly over classes as it goes, and the others."""
    classes: dict[str, int] = {}
    kinds = [classes.setdefault(str(row[_label(task)]), len(classes)) for row in rows]
    chosen = spread(kinds, count, seed)
    others = sorted(set(range(len(rows))) - set(chosen))
    return rows.select(chosen), rows.select(others)


def _label(task: StudyTask) -> str:
    return task.columns.get("label", "label")


class _Renamed(Sequence[Row]):
    """Rows whose labels have other names, which are given as rows are asked for: images are large."""

    def __init__(self, rows: Rows, column: str, names: Mapping[str, str]) -> None:
        self.rows, self.column, self.names = rows, column, names

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Row: ...

    @overload
    def __getitem__(self, index: slice) -> "_Renamed": ...

    def __getitem__(self, index: int | slice) -> "Row | _Renamed":
        if isinstance(index, slice):
            return _Renamed(self.rows[index], self.column, self.names)
        row = self.rows[index]
        where, label = origin(row, index), row[self.column]
        return Row({**row, self.column: self._named(label, where)}, where)

    def select(self, indices: Sequence[int]) -> "_Renamed":
        return _Renamed(self.rows.select(indices), self.column, self.names)

    def _named(self, label: Any, where: str) -> str:
        if str(label) not in self.names:
            raise GradfixError(
                f"{where} of {self.rows.location}: column {self.column!r}: found {label!r}, which the study's names "
                f"lack; they are of {listed(self.names, 10)}"
            )
        return self.names[str(label)]
