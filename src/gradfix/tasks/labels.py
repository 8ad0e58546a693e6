"""Class labels: their names, and the ids that a model gives them."""

from collections.abc import Mapping, Sequence
from typing import Any

from gradfix.errors import GradfixError, listed
from gradfix.tasks.data import origin


def label_names(rows: Sequence[Mapping[str, Any]], column: str = "label") -> list[str]:
    """The classes that data name, for models that know none.

    Args:
        rows: The samples.
        column: The column with the labels.

    Returns:
        The names of a ``ClassLabel`` column in their order, else the distinct labels in alphabetical order.

    Raises:
        GradfixError: If a row has no name as its label.
    """
    declared: Mapping[str, list[str]] = getattr(rows, "class_names", {})
    if column in declared:
        return list(declared[column])
    names = set()
    for position, row in enumerate(rows):
        if not isinstance(row.get(column), str):
            raise GradfixError(
                f"{origin(row, position)}: column {column!r}: expected the name of a class, "
                f"found {row.get(column)!r}; give the names with labels="
            )
        names.add(row[column])
    return sorted(names)


class Labels:
    """The classes of a model, by id and by name.

    Args:
        names: Their names in the order of the ids, or ``id2label`` as a configuration holds it.
    """

    def __init__(self, names: Sequence[str] | Mapping[Any, str]) -> None:
        if isinstance(names, Mapping):
            by_id = {int(key): str(name) for key, name in names.items()}
            if sorted(by_id) != list(range(len(by_id))):
                raise GradfixError(f"id2label: expected the ids 0 to {len(by_id) - 1}, found {sorted(by_id)}")
            names = [by_id[index] for index in range(len(by_id))]
        self.names = [str(name) for name in names]
        if len(self.names) < 2:
            raise GradfixError(
                f"labels: expected at least two classes, found {len(self.names)} ({listed(self.names)}); "
                "a model with one output is a regression, which is no task here"
            )
        self._ids = {name: index for index, name in enumerate(self.names)}
        if len(self._ids) != len(self.names):
            twice = sorted({name for name in self.names if self.names.count(name) > 1})
            raise GradfixError(
                f"labels: every class needs a name of its own, found twice: {', '.join(twice)}"
            )

    def __len__(self) -> int:
        return len(self.names)

    @property
    def id2label(self) -> dict[int, str]:
        """The mapping that a model's configuration holds."""
        return dict(enumerate(self.names))

    @property
    def label2id(self) -> dict[str, int]:
        """The inverse mapping that a model's configuration holds."""
        return dict(self._ids)

    def id_of(self, value: Any, where: str) -> int:
        """The id of a label as data spell it.

        A name is looked up; so is an integer whose digits are a name (classes "1" to "5"). Any other integer
        must be an id.

        Args:
            value: A name or an integer.
            where: How an error names the row.

        Returns:
            The id.

        Raises:
            GradfixError: If no class is meant by it.
        """
        if isinstance(value, float) and value.is_integer():  # csv with a gap reads integers as floats
            value = int(value)
        if value is not None and str(value) in self._ids:
            return self._ids[str(value)]
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(self.names):
            return value
        if value is None:
            raise GradfixError(f"{where}: has no label")
        raise GradfixError(
            f"{where}: unknown label {value!r}; the model's labels are {listed(self.names, 20)}"
        )
