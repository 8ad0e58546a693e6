"""Figures of the studies: the same numbers always give the same bytes."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gradfix.evaluation.intervals import Interval
from gradfix.report.style import COLOURS, MARKERS, MUTED, saved, static

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TICKS = 6
ACROSS = 3


@dataclass(frozen=True)
class Panel:
    """One set of axes.

    Attributes:
        title: Above it.
        series: Points (x, interval) by what the legend calls them.
        levels: Horizontal lines by what the legend calls them.
    """

    title: str
    series: Mapping[str, Sequence[tuple[float, Interval]]]
    levels: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Curves:
    """Curves over a number, with 95 % intervals.

    Attributes:
        panels: Side by side, in rows, with a shared y axis.
        x: Label of the x axis, with its unit.
        y: Label of the y axis, with its unit.
        logarithmic: Whether x is.
    """

    panels: Sequence[Panel]
    x: str
    y: str
    logarithmic: bool = True


@dataclass(frozen=True)
class Dots:
    """A dot a row with its 95 % interval: unlike bars, they need no axis from 0.

    Attributes:
        values: Interval by row within each panel, by panel.
        x: Label of the value axis, with its unit.
    """

    values: Mapping[str, Mapping[str, Interval]]
    x: str


Figure = Curves | Dots


def draw(figure: Figure) -> dict[str, bytes]:
    """Draw a figure.

    Args:
        figure: What it shows.

    Returns:
        Its PNG and SVG, by extension.
    """
    with static():
        from matplotlib.figure import Figure as Canvas

        if isinstance(figure, Curves):
            across = 2 if len(figure.panels) == 4 else min(ACROSS, len(figure.panels))
            down = -(-len(figure.panels) // across)
            canvas = Canvas(figsize=(1.9 + 2.9 * across, 0.4 + 2.8 * down), layout="constrained")
            axes = canvas.subplots(down, across, sharey=True, squeeze=False).flatten()
            # One look a label in all panels, also where some panel lacks it.
            labels = list(dict.fromkeys(label for panel in figure.panels for label in panel.series))
            for each, panel in zip(axes, figure.panels, strict=False):
                _curves(each, panel, figure, labels)
            for unused in axes[len(figure.panels) :]:
                unused.set_axis_off()
            canvas.supylabel(figure.y, fontsize=9)
            _legend(canvas, axes)
        else:
            # All panels have the same rows, also where some panel lacks one.
            rows = list(dict.fromkeys(label for dots in figure.values.values() for label in dots))
            count = len(figure.values)
            canvas = Canvas(figsize=(2.2 + 2.6 * count, 0.8 + 0.28 * len(rows)), layout="constrained")
            axes = canvas.subplots(1, count, sharey=True, sharex=True, squeeze=False)[0]
            for each, (title, dots) in zip(axes, figure.values.items(), strict=True):
                _dots(each, title, dots, rows, figure)
        return saved(canvas, svg=True)


def _curves(axes: "Axes", panel: Panel, figure: Curves, labels: Sequence[str]) -> None:
    for label, points in panel.series.items():
        number = labels.index(label)
        xs = [x for x, _ in points]
        values = [interval.value for _, interval in points]
        errors = [
            interval.value - (interval.value if interval.low is None else interval.low)
            for _, interval in points
        ]
        axes.errorbar(
            xs,
            values,
            yerr=errors,
            label=label,
            color=COLOURS[number % len(COLOURS)],
            marker=MARKERS[number % len(MARKERS)],
            markersize=4,
            linewidth=1.2,
            capsize=2,
        )
    for number, (label, value) in enumerate(panel.levels.items()):
        axes.axhline(value, label=label, color=MUTED, linewidth=1, linestyle=("--", ":", "-.")[number % 3])
    if figure.logarithmic:
        axes.set_xscale("log")
        ticks = sorted({x for points in panel.series.values() for x, _ in points})
        if len(ticks) > TICKS:
            ticks = ticks[:: -(-len(ticks) // TICKS)]
        axes.set_xticks(ticks, [f"{x:g}" for x in ticks])
        axes.minorticks_off()
    axes.set_xlabel(figure.x)
    axes.set_title(panel.title, fontsize=9)


def _dots(axes: "Axes", title: str, dots: Mapping[str, Interval], rows: Sequence[str], figure: Dots) -> None:
    heights = dict(zip(rows, range(len(rows))[::-1], strict=True))
    places = [heights[label] for label in dots]
    values = [interval.value for interval in dots.values()]
    errors = [i.value - (i.value if i.low is None else i.low) for i in dots.values()]
    axes.errorbar(values, places, xerr=errors, color=COLOURS[0], fmt="o", markersize=4, capsize=2)
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    axes.set_yticks(list(heights.values()), list(heights))
    axes.set_ylim(-0.5, len(rows) - 0.5)
    axes.set_xlabel(figure.x)
    axes.set_title(title, fontsize=9)


def _legend(canvas: Any, axes: "Iterable[Axes]") -> None:
    handles: dict[str, Any] = {}
    for each in axes:
        for handle, label in zip(*each.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    canvas.legend(handles.values(), handles.keys(), loc="outside right center", frameon=False, fontsize=8)
