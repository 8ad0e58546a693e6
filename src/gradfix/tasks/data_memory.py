"""Rows that a program already has: lists, data sets of ``datasets`` and torch, frames of pandas and polars."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from gradfix.errors import GradfixError
from gradfix.tasks.data import Rows, row_hash
from gradfix.tasks.data_library import table_of
from gradfix.tasks.data_table import Table


class RowSource(Protocol):
    """What may stand in place of a location: rows by number, or a frame of pandas or polars."""

    def __len__(self) -> int:
        """Count the rows."""

    def __getitem__(self, index: Any, /) -> Any:
        """Give a row: a mapping of column names to values, or a tuple whose parts ``columns`` names."""


LABELS = ("label", "labels", "target")
"""Columns whose numbers are the places of a data set's ``classes``, as torchvision has them."""


def rows_in_memory(
    value: Any, name: str, columns: Sequence[str] = (), *, class_names: bool = True
) -> Sequence[Mapping[str, Any]]:
    """Make rows of whatever holds them.

    Args:
        value: A list of mappings; a ``datasets.Dataset``; a frame of pandas or polars; or anything with a length
            whose items are mappings or tuples, such as a torch ``Dataset``.
        name: The option, for messages.
        columns: What the parts of a tuple are, such as ``("image", "label")``.
        class_names: Give classes by the names that the data declare (``ClassLabel``, ``classes``), not by number.

    Returns:
        Rows by position; read when they are asked for.

    Raises:
        GradfixError: If it is nothing of the kind, can be read once only, or gives other values each time.
    """
    if isinstance(value, Rows):
        return value
    table = _known(value, name)
    if table is not None:
        return Rows(table if class_names else _numbered(table), f"the rows of {name}")
    if isinstance(value, Mapping):
        raise GradfixError(
            f"{name}: expected rows, found a mapping of {', '.join(map(repr, list(value)[:5]))}; give a list with a "
            "mapping a row, or one split of a DatasetDict, as data['train']"
        )
    if not hasattr(value, "__getitem__") or not hasattr(value, "__len__"):
        where = "the data set of a DataLoader" if type(value).__name__ == "DataLoader" else "list(rows)"
        raise GradfixError(
            f"{name}: a {type(value).__name__} has no rows by number; give a list or a data set, such as {where}"
        )
    if isinstance(value, list | tuple) and (not value or isinstance(value[0], Mapping)):
        return value  # a later row that is no mapping is named by whoever reads it
    return _indexed(value, name, columns, class_names)


def _known(value: Any, name: str) -> Table | None:
    """What the libraries of tables make; none of them is imported, since who gives their objects did that."""
    datasets, pandas, polars = (sys.modules.get(library) for library in ("datasets", "pandas", "polars"))
    if datasets is not None and isinstance(value, datasets.Dataset):
        return table_of(value.with_format(None))
    if pandas is not None and isinstance(value, pandas.DataFrame):
        missing = value.isna().to_numpy()
        records = [
            {
                key: None if gone else cell
                for gone, (key, cell) in zip(missing[number], row.items(), strict=True)
            }
            for number, row in enumerate(value.rename(columns=str).to_dict("records"))
        ]
        return Table(records, [str(column) for column in value.columns])
    if polars is not None and isinstance(value, polars.DataFrame):
        return Table(value.to_dicts(), value.columns)
    return None


def _numbered(table: Table) -> Table:
    return Table(table.records, table.columns, {}, table.typed)


def _indexed(value: Any, name: str, columns: Sequence[str], class_names: bool) -> Rows:
    if not len(value):
        return Rows(Table([], list(columns)), f"the rows of {name}")
    first = value[0]
    if isinstance(first, Mapping):
        records, found = value, list(map(str, first))
    elif isinstance(first, list | tuple):
        if len(columns) != len(first):
            given = f"columns= names {len(columns)}" if columns else "nothing says what they are"
            example = (
                ("image", "label") if len(first) == 2 else tuple(f"part {n + 1}" for n in range(len(first)))
            )
            raise GradfixError(
                f"{name}: its rows are tuples of {len(first)} parts and {given}; give columns={example!r}"
            )
        records, found = _Named(value, columns), list(columns)
    else:
        raise GradfixError(
            f"{name}: expected rows that are mappings or tuples, found {type(first).__name__}; give a mapping of "
            "column names to values a row"
        )
    _refuse_random(records, name)
    names = _declared(value) if class_names else []
    return Rows(
        Table(records, found, {key: names for key in found if names and key in LABELS}), f"the rows of {name}"
    )


class _Named(Sequence[dict[str, Any]]):
    """Tuples as rows."""

    def __init__(self, values: Any, columns: Sequence[str]) -> None:
        self._values, self._columns = values, tuple(columns)

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, index: Any) -> Any:
        row = dict(zip(self._columns, self._values[index], strict=True))
        return {key: _plain_number(value) if key in LABELS else value for key, value in row.items()}


def _plain_number(value: Any) -> Any:
    """A label as a tensor or array of one number is that number."""
    return value.item() if hasattr(value, "item") and getattr(value, "ndim", 1) == 0 else value


def _declared(value: Any) -> list[str]:
    """The names of a data set's classes, as torchvision keeps them; of a ``Subset`` those of what it is of."""
    names = getattr(value, "classes", None)
    if isinstance(names, list | tuple) and all(isinstance(name, str) for name in names):
        return list(names)
    inner = getattr(value, "dataset", None)
    return [] if inner is None else _declared(inner)


def _refuse_random(records: Sequence[Mapping[str, Any]], name: str) -> None:
    """Rows are read several times: whoever chose on one image must be judged on the same one."""
    try:
        same = row_hash(records[0]) == row_hash(records[0])
    except TypeError:
        return  # what can't be hashed is refused by the task, which knows the columns that count
    if not same:
        raise GradfixError(
            f"{name}: its first row is another one each time it is read; give a data set without random transforms"
        )
