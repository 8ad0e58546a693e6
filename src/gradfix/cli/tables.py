"""Tables for the terminal."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from gradfix.evaluation.evaluate import Interval
    from gradfix.transport.comparison import Line


def comparison_table(lines: "Sequence[Line]", caption: str) -> "Table":
    """Lay out a comparison, narrow enough for 80 columns.

    Args:
        lines: Its rows.
        caption: What stands below.

    Returns:
        A table of means and half-widths of intervals in per cent and points, a section for each number of samples;
        retention only where there is any.
    """
    from rich import box
    from rich.table import Table

    retained = any(line.retained is not None for line in lines)
    several = len({line.budget for line in lines}) > 1
    table = Table(box=box.SIMPLE_HEAD, caption=caption, caption_justify="left", pad_edge=False)
    table.add_column("method", no_wrap=True)
    for name in ("score, %", "over the\nnew base", "over the\ncontrol", *(["retained"] if retained else [])):
        table.add_column(name, justify="right", no_wrap=True)
    budget = None
    for line in lines:
        if several and budget != line.budget:
            table.add_section()
            table.add_row(f"{line.budget} samples a class", style="italic")
        budget = line.budget
        cells = [_cell(line.score), _cell(line.gain, signed=True), _cell(line.over_control, signed=True)]
        cells += [_cell(line.retained)] if retained else []
        style = "bold" if line.method == "auto" else None
        table.add_row(line.label, *cells, style=style)
    return table


def _cell(interval: "Interval | None", *, signed: bool = False) -> str:
    if interval is None:
        return ""
    value = f"{interval.value * 100:{'+' if signed else ''}.1f}".replace("-", "−")
    return value if interval.low is None else f"{value} ± {(interval.value - interval.low) * 100:.1f}"
