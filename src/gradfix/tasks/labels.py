"""Class labels: their names, and the ids that a model gives them."""

from collections.abc import Mapping, Sequence
from typing import Any

from gradfix.errors import GradfixError, listed, option
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
    remedy = f"give the names of the classes with {option('label', python='labels')}"
    names: set[str] = set()
    for position, row in enumerate(rows):
        found = row.get(column)
        for value in found if isinstance(found, list | tuple) else [found]:
            if not isinstance(value, str) or not value.strip():
                raise GradfixError(
                    f"{origin(row, position)}: column {column!r}: expected the name of a class, found {value!r}; "
                    f"{remedy}"
                )
            names.add(value)
    # In a csv file a class's number looks like a name, and as a name it would say nothing.
    if not getattr(rows, "typed", True) and all(name.isdecimal() for name in names):
        raise GradfixError(
            f"{getattr(rows, 'location', 'the data')}: column {column!r}: holds numbers ({listed(sorted(names), 3)}); "
            f"{remedy}"
        )
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
                "a model with one output is a regression: give the task regression"
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

        A name is looked up as it is written; a number or a truth value as json writes it, too. Where no class is
        called by a number, a whole number is an id: of classes "1" to "5" it would be anybody's guess which 0 means.

        Args:
            value: A name, a number or a truth value.
            where: How an error names the row.

        Returns:
            The id.

        Raises:
            GradfixError: If no class is meant by it.
        """
        if value is None or (isinstance(value, str) and not value.strip() and value not in self._ids):
            raise GradfixError(f"{where}: has no label")
        for name in _spellings(value):
            if name in self._ids:
                return self._ids[name]
        number = _whole(value)
        if number is not None and 0 <= number < len(self.names) and not any(map(_is_number, self.names)):
            return number
        raise GradfixError(
            f"{where}: unknown label {value!r}; the model's labels are {listed(self.names, 20)}"
        )


def _spellings(value: Any) -> list[str]:
    """How data and configurations write a label."""
    if isinstance(value, bool):
        return [str(value).lower(), str(value)]
    if (
        isinstance(value, float) and value.is_integer()
    ):  # what a column of integers with a gap becomes in pandas
        return [str(value), str(int(value))]
    return [str(value)]


def _whole(value: Any) -> int | None:
    """The whole number that a value is, or is written as: csv has no other way to say one."""
    if isinstance(value, bool):
        return None
    if isinstance(value, str):
        return int(value) if value.isascii() and value.isdecimal() and str(int(value)) == value else None
    if isinstance(value, int):
        return value
    return int(value) if isinstance(value, float) and value.is_integer() else None


def _is_number(name: str) -> bool:
    try:
        float(name)
    except ValueError:
        return False
    return name.strip().lower().lstrip("+-") not in {"nan", "inf", "infinity"}
