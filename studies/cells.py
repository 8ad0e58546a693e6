"""From records to cells with intervals, and from cells to Markdown and CSV."""

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gradfix.evaluation.intervals import Interval, mean_interval, paired_difference
from gradfix.transport.comparison import BASELINES, FEW_SHOT, FULL, LABELS, ORACLE, ZERO_SHOT
from studies.units import Record

Cell = Interval | None
ORDER = (ZERO_SHOT, *BASELINES, FEW_SHOT, ORACLE, FULL)


@dataclass(frozen=True)
class Table:
    """A table as it is printed.

    Attributes:
        title: Above it.
        corner: What the rows are.
        columns: Column headings.
        rows: Cells by row heading.
        points: Whether values are differences, printed in percentage points with a sign.
    """

    title: str
    corner: str
    columns: Sequence[str]
    rows: Mapping[str, Sequence[Cell]]
    points: bool = False

    def markdown(self) -> str:
        """Print the table.

        Returns:
            Markdown: mean ± half-width of the 95 % interval; differences whose interval excludes 0 in bold.
        """
        lines = [f"**{self.title}**", "", f"| {self.corner} | " + " | ".join(self.columns) + " |"]
        lines.append("|---" * (len(self.columns) + 1) + "|")
        for name, cells in self.rows.items():
            lines.append(f"| {name} | " + " | ".join(self._cell(cell) for cell in cells) + " |")
        return "\n".join(lines) + "\n"

    def _cell(self, cell: Cell) -> str:
        if cell is None:
            return ""
        if not self.points:
            half = "" if cell.low is None else f" ± {(cell.value - cell.low) * 100:.1f}"
            return f"{cell.value * 100:.1f}{half}"
        text = points(cell)
        return f"**{text}**" if cell.excludes_zero else text


def points(cell: Interval) -> str:
    """Print a difference in percentage points.

    Args:
        cell: The difference, of shares.

    Returns:
        Signed, with the half-width of its interval.
    """
    half = "" if cell.low is None else f" ± {(cell.value - cell.low) * 100:.1f}"
    return f"{cell.value * 100:+.1f}".replace("-", "−") + half


def by_draw(records: Iterable[Record], method: str, value: str = "score") -> dict[int, float]:
    """Pick one value of one method.

    Args:
        records: Of one cell.
        method: Which.
        value: Which field.

    Returns:
        Values by draw; empty where it was not measured.
    """
    return {
        record["draw"]: record[value]
        for record in records
        if record.get("method") == method and record.get(value) is not None
    }


def mean_of(values: Mapping[int, float]) -> Cell:
    """Average over draws.

    Args:
        values: By draw.

    Returns:
        The mean with its 95 % interval; None of nothing.
    """
    return mean_interval(list(values.values())) if values else None


def paired(values: Mapping[int, float], baseline: Mapping[int, float]) -> Cell:
    """Average a difference over the draws that both have.

    Args:
        values: By draw.
        baseline: By draw.

    Returns:
        The mean of values − baseline with its 95 % interval; None where no draw is in both.
    """
    both = sorted(values.keys() & baseline.keys())
    if not both:
        return None
    return paired_difference([values[draw] for draw in both], [baseline[draw] for draw in both])


def where(records: Iterable[Record], **wanted: Any) -> list[Record]:
    """Pick records.

    Args:
        records: Any.
        **wanted: Values that fields must have; of a tuple, any.

    Returns:
        Those that have them.
    """
    return [
        record
        for record in records
        if all(
            record.get(key) in value if isinstance(value, tuple) else record.get(key) == value
            for key, value in wanted.items()
        )
    ]


def methods_in(records: Iterable[Record]) -> list[str]:
    """List the methods that were measured.

    Args:
        records: Any.

    Returns:
        In the order of tables; those that no table knows come last, as they came.
    """
    found = dict.fromkeys(record["method"] for record in records if "method" in record)
    return [name for name in ORDER if name in found] + [name for name in found if name not in ORDER]


def method_table(
    title: str,
    columns: Mapping[str, Sequence[Record]],
    *,
    against: str | None = None,
    value: str = "score",
    labels: Mapping[str, str] = LABELS,
    methods: Sequence[str] | None = None,
    corner: str = "samples a class",
) -> Table:
    """Lay out methods over cells.

    Args:
        title: Above it.
        columns: Records by column heading.
        against: Print differences to this method, paired by draw, in place of scores.
        value: Which field.
        labels: What methods are called.
        methods: Which; all that were measured by default.
        corner: What the columns are.

    Returns:
        The table; rows without any cell are left out.
    """
    every = [record for records in columns.values() for record in records]

    def cell(records: Sequence[Record], method: str) -> Cell:
        values = by_draw(records, method, value)
        return mean_of(values) if against is None else paired(values, by_draw(records, against, value))

    rows: dict[str, list[Cell]] = {}
    for method in methods if methods is not None else methods_in(every):
        cells = [cell(records, method) for records in columns.values()]
        if method != against and any(cell is not None for cell in cells):
            rows[labels.get(method, method)] = cells
    return Table(title, corner, list(columns), rows, points=against is not None)


def grouped(records: Iterable[Record], key: Callable[[Record], Any]) -> dict[Any, list[Record]]:
    """Group records, keys in ascending order.

    Args:
        records: Any.
        key: Of each.

    Returns:
        Records by key.
    """
    groups: dict[Any, list[Record]] = {}
    for record in records:
        groups.setdefault(key(record), []).append(record)
    return dict(sorted(groups.items()))


def budgets(records: Iterable[Record]) -> dict[str, list[Record]]:
    """Group records by samples a class.

    Args:
        records: Any.

    Returns:
        Records by the number as text, ascending.
    """
    return {str(budget): found for budget, found in grouped(records, lambda record: record["budget"]).items()}


def validated(records: Iterable[Record]) -> list[Record]:
    """Choose each draw's α of each method on validation images: the paper's protocol, which needs more labels.

    Args:
        records: Of the experiment that measures every α.

    Returns:
        One record a draw and method: at the α with the smallest validation loss, 0 being a candidate.
    """
    chosen = []
    for cell in grouped(
        where(records, experiment="alphas"), lambda r: (r["pair"], r["task"], r["budget"], r["draw"])
    ).values():
        start = where(cell, method=ZERO_SHOT)
        for method in methods_in(cell):
            tried = start if method == ZERO_SHOT else start + where(cell, method=method)
            best = min(tried, key=lambda record: (record["validation_loss"], record["alpha"]))
            chosen.append({**best, "method": method, "experiment": "validated"})
    return chosen


def raw_csv(records: Sequence[Record]) -> str:
    """Print every record, for other tools.

    Args:
        records: Of one study.

    Returns:
        CSV with a header; settings are spread over columns.
    """
    flat = []
    for record in records:
        setting = record.get("setting") or {}
        flat.append({key: item for key, item in {**record, **setting}.items() if key != "setting"})
    columns = list(dict.fromkeys(key for record in flat for key in record))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows(flat)
    return text.getvalue()
