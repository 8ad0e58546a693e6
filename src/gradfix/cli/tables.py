"""Tables for the terminal."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from gradfix.comparison import Line
    from gradfix.evaluation import Interval


def comparison_table(lines: "Sequence[Line]", caption: str) -> "Table":
    """Lay out a comparison.

    Args:
        lines: Its rows.
        caption: What stands below.

    Returns:
        A table with means and half-widths of intervals; the retention column only where there is retention.
    """
    from rich.table import Table

    retained = any(line.retained is not None for line in lines)
    columns = ["samples a class", "method", "score", "over the new base", "over the control"]
    table = Table(*columns, *(["retained"] if retained else []), caption=caption)
    for line in lines:
        cells = [line.score, line.gain, line.over_control, *([line.retained] if retained else [])]
        table.add_row(str(line.budget), line.label, *(_cell(interval) for interval in cells))
    return table


def _cell(interval: "Interval | None") -> str:
    if interval is None:
        return ""
    return f"{interval.value:.3f}" + (
        "" if interval.low is None else f" ± {interval.value - interval.low:.3f}"
    )
