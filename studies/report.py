"""What reports of studies are made of: tables, a figure, a note, and the pieces that several share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gradfix.evaluation.intervals import Interval
from gradfix.recipes.settings import SETTINGS
from gradfix.transport.comparison import CONTROL, FEW_SHOT, FULL, LABELS, ORACLE, ZERO_SHOT
from studies.cells import Table, budgets, by_draw, mean_of, method_table, where
from studies.figures import Curves, Figure, Panel
from studies.units import Record

Records = Sequence[Record]
CHOSEN = "α and, for fine-tuning, learning rate and steps are chosen by cross-fitting on the support set."
FEW_SHOT_NOTE = (
    f"Few-shot fine-tuning begins with learning rates of {' and '.join(f'{rate:g}' for rate in SETTINGS.rates)} and "
    f"{', '.join(map(str, SETTINGS.stops))} steps of AdamW on at most 16 samples, goes on where the best is at an end "
    f"of these, and may do nothing; on {SETTINGS.folds} folds up to {SETTINGS.few} samples, on two above."
)


@dataclass(frozen=True)
class Report:
    """A study's part of the page.

    Attributes:
        tables: In order.
        figure: The figure, or None where nothing is measured yet.
        note: What a reader must know to read them.
    """

    tables: Sequence[Table]
    figure: Figure | None
    note: str


def percent(cell: Interval) -> Interval:
    """Scale a share to per cent.

    Args:
        cell: A share with its interval.

    Returns:
        The same times 100.
    """
    low, high = (None if end is None else 100 * end for end in (cell.low, cell.high))
    return Interval(100 * cell.value, low, high, cell.n, cell.method)


def curve(columns: Mapping[str, Records], method: str) -> list[tuple[float, Interval]]:
    """Make a curve of one method.

    Args:
        columns: Records by the number on the x axis, as text.
        method: Which.

    Returns:
        Points with their intervals, in %.
    """
    cells = [(float(x), mean_of(by_draw(records, method))) for x, records in columns.items()]
    return [(x, percent(cell)) for x, cell in cells if cell is not None]


def level(records: Records, method: str) -> dict[str, float]:
    """Make a horizontal line of one method's mean over all records.

    Args:
        records: Any.
        method: Which.

    Returns:
        Its height in % by what the legend calls it; empty where it was not measured.
    """
    scores = [record["score"] for record in where(records, method=method)]
    return {LABELS.get(method, method): 100 * sum(scores) / len(scores)} if scores else {}


def intervals(
    records: Records, methods: Sequence[str], labels: Mapping[str, str] = LABELS, value: str = "score"
) -> dict[str, Interval]:
    """Make the dots of one panel.

    Args:
        records: Of one cell.
        methods: In order.
        labels: What methods are called.
        value: Which field.

    Returns:
        Intervals in % by label, of the methods that were measured.
    """
    cells = {labels.get(method, method): mean_of(by_draw(records, method, value)) for method in methods}
    return {label: percent(cell) for label, cell in cells.items() if cell is not None}


def panel(title: str, records: Records) -> Panel:
    """Make a panel of the methods that matter most.

    Args:
        title: Above it.
        records: Of one task on one pair.

    Returns:
        Curves over samples a class, with what needs no samples as lines.
    """
    columns = budgets(records)
    series = {
        LABELS[name]: curve(columns, name) for name in ("gradfix", "mean", CONTROL, "naive", FEW_SHOT, ORACLE)
    }
    levels = {**level(records, ZERO_SHOT), **level(records, FULL)}
    return Panel(title, {label: points for label, points in series.items() if points}, levels)


def curves(panels: Sequence[Panel]) -> Curves | None:
    """Put panels over samples a class side by side.

    Args:
        panels: Some or none.

    Returns:
        The figure; None of nothing.
    """
    return Curves(panels, "samples a class", "accuracy, %") if panels else None


def three(title: str, records: Records) -> list[Table]:
    """Make the three tables of one task on one pair.

    Args:
        title: Of what.
        records: Of the baselines.

    Returns:
        Scores, differences to the new base, and differences to the control.
    """
    columns = budgets(records)
    return [
        method_table(f"{title}: accuracy, %", columns),
        method_table(f"{title}: difference to the new base as it is, points", columns, against=ZERO_SHOT),
        method_table(
            f"{title}: difference to the shuffled control, points",
            columns,
            against=CONTROL,
            methods=["mean", "force", "soft", "gradfix", FEW_SHOT],
        ),
    ]
