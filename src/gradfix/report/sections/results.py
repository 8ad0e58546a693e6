"""How the new model does beside what it could be mistaken for: the table and its picture."""

from collections.abc import Iterable, Mapping, Sequence
from textwrap import wrap
from typing import Any

from gradfix.recipes.fields import BEST_ON_TEST, BY_VALIDATION
from gradfix.report.elements import Cell, Figure, Section, Table, label
from gradfix.report.facts import Evaluation, Interval, Judgement
from gradfix.report.numbers import between, metric_name, number, percent, points, score_unit, shown_score
from gradfix.report.record import Line, TransportRecord
from gradfix.report.style import ACCENT, COLOURS, DASHES, INK, MUTED, SYMBOLS, layout

MODELS = {
    "base": "new base",
    "naive": "naive addition",
    "transported": "this transport",
    "control": "control: shuffled",
}
"""What a record's models are called, in the order of the table."""

SCORES = ", %"
"""The unit of an axis of scores, which ends at 0 and 100."""

FINE_TUNED = ("few-shot", "oracle", "full")


def measured(judgement: Judgement) -> dict[str, Evaluation]:
    """Give the measurements of a judgement.

    Args:
        judgement: A record's.

    Returns:
        Those of ``MODELS``, in the order of the table.
    """
    return {name: found for name in MODELS if (found := getattr(judgement, name)) is not None}


def transport_results(record: TransportRecord) -> Section | None:
    """Lay out a transport's judgement.

    Args:
        record: What ``gradfix.json`` holds.

    Returns:
        The section; None where nothing was judged.
    """
    return None if record.judgement is None else judgement_results(record.judgement)


def judgement_results(judgement: Judgement) -> Section:
    """Lay out a judgement.

    Args:
        judgement: A record's.

    Returns:
        The section.
    """
    found = measured(judgement)
    base, metric = judgement.base.score, metric_name(judgement.base.metric)
    rows = [
        [
            Cell(MODELS[key]),
            Cell(shown_score(result.score, metric), result.score),
            Cell(between(result.interval, signed=False, metric=metric), result.interval.low),
            Cell("" if key == "base" else points(result.score - base), result.score - base),
            Cell(between(judgement.gain if key == "transported" else None)),
            Cell(number(result.loss), result.loss),
        ]
        for key, result in found.items()
    ]
    caption = (
        f"{judgement.base.n:,} {judgement.data} samples, the same for all. The interval of the difference is "
        "paired by sample, so it can exclude 0 where the intervals of two scores overlap."
    )
    table = Table(
        ["model", metric, "95 % interval", "points over base", "95 % interval of that", "loss a sample"],
        rows,
        strong=[list(found).index("transported")],
        caption=caption,
    )
    values = [(MODELS[key], result.interval, key == "transported") for key, result in found.items()]
    return Section(
        "results",
        "How it compares",
        "The control is the same transport with the task vector's values shuffled: what it gains, the labelled "
        "samples gave and not the fine-tune.",
        [dots(_finding(found, metric), values, metric, reference=base), table],
    )


def _finding(found: Mapping[str, Evaluation], metric: str) -> str:
    best = max(found, key=lambda key: found[key].score)
    return f"{MODELS[best].capitalize()} has the highest {metric}: {shown_score(found[best].score, metric)}"


def dots(
    title: str,
    values: Sequence[tuple[str, Interval, bool]],
    metric: str,
    *,
    reference: float | None = None,
    unit: str = SCORES,
) -> Figure:
    """Draw a dot with its interval a row: unlike bars, dots need no axis from 0.

    Args:
        title: What is to be seen.
        values: Name, interval of the score, and whether it is set off, from top to bottom.
        metric: What the score is.
        reference: A score to compare with, as a vertical line.
        unit: What follows the score's name on the axis.

    Returns:
        The figure.
    """
    # Two short lines leave a phone more room for the figure than a long one.
    names = ["<br>".join(wrap(label(name, 44), 22, break_long_words=False)) for name, _, _ in values]
    traces = []
    for strong in (False, True):
        chosen = [
            (name, interval) for name, (_, interval, off) in zip(names, values, strict=True) if off == strong
        ]
        if not chosen:
            continue
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "cliponaxis": False,
                "x": [interval.value * 100 for _, interval in chosen],
                "y": [name for name, _ in chosen],
                "error_x": {
                    "type": "data",
                    "symmetric": False,
                    "array": [half(interval.high, interval) * 100 for _, interval in chosen],
                    "arrayminus": [half(interval.low, interval) * 100 for _, interval in chosen],
                    "color": ACCENT if strong else MUTED,
                    "thickness": 2,
                    "width": 5,
                },
                "marker": {
                    "color": ACCENT if strong else MUTED,
                    "size": 12 if strong else 10,
                    "symbol": "diamond" if strong else "circle",
                },
                "hovertemplate": "%{y}: %{x:.1f} %<extra></extra>",
            }
        )
    shapes = []
    if reference is not None:
        shapes.append(
            {
                "type": "line",
                "x0": reference * 100,
                "x1": reference * 100,
                "y0": 0,
                "y1": 1,
                "yref": "paper",
                "line": {"color": INK, "width": 1, "dash": "dot"},
            }
        )
    made = layout(
        height=70 + 38 * len(names),
        xaxis={
            "title": f"{metric}{score_unit(metric) if unit == SCORES else unit}",
            **({"range": score_range(interval for _, interval, _ in values)} if unit == SCORES else {}),
        },
        yaxis={
            "type": "category",
            "categoryorder": "array",
            "categoryarray": names[::-1],
            "range": [-0.6, len(names) - 0.4],
            "showgrid": False,
            "tickfont": {"color": INK, "size": 13},
        },
        shapes=shapes,
    )
    note = "Bars: 95 % intervals." + (" Dotted line: the new base." if reference is not None else "")
    return Figure(title, traces, made, note)


def score_range(intervals: Iterable[Interval]) -> list[float]:
    """Choose the ends of an axis of scores: around all of them, and never where no score can be.

    Args:
        intervals: Of the scores, in [0, 1].

    Returns:
        Ends in per cent, from 0 to 100; from −100 where a correlation is negative.
    """
    ends = [end * 100 for each in intervals for end in (each.low, each.value, each.high) if end is not None]
    room = max(1.0, 0.06 * (max(ends) - min(ends)))
    return [max(0.0 if min(ends) >= 0 else -100.0, min(ends) - room), min(100.0, max(ends) + room)]


def half(end: float | None, interval: Interval) -> float:
    """Give the length of an error bar.

    Args:
        end: Of the interval.
        interval: It.

    Returns:
        The distance of its value; 0 where there is no end.
    """
    return 0.0 if end is None else abs(end - interval.value)


def transported(rows: Sequence[Line]) -> str:
    """Tell which method of a comparison a transport would have used.

    Args:
        rows: Lines of a comparison.

    Returns:
        ``auto``, the default, where it was measured; else the paper's method.
    """
    return "auto" if any(row.method == "auto" for row in rows) else "gradfix"


def comparison_results(rows: Sequence[Line], caption: str, metric: str) -> Section | None:
    """Lay out a comparison over several draws.

    Args:
        rows: Lines of ``comparison.json`` or ``demo.json``.
        caption: What they rest on.
        metric: What the score is.

    Returns:
        The section; None without rows.
    """
    if not rows:
        return None
    budgets = sorted({row.budget for row in rows})
    retained = any(row.retained for row in rows)
    columns = ["method", metric, "95 % interval", "points over base", "points over the control"]
    several = len(budgets) > 1
    ours = transported(rows)
    chosen = [row for row in rows if not row.method.endswith((BY_VALIDATION, BEST_ON_TEST))]
    table = Table(
        [*(["samples a class"] if several else []), *columns, *(["retained"] if retained else [])],
        [_line(row, metric, several=several, retention=retained) for row in rows],
        strong=[number for number, row in enumerate(rows) if row.method == ours],
        caption=caption[:1].upper() + caption[1:] + ("" if caption.endswith(".") else "."),
    )
    reference = next((row.score.value for row in rows if row.method == "zero-shot"), None)
    if len(budgets) == 1:
        values = [(row.label, row.score, row.method == ours) for row in chosen]
        figure = dots(_best(chosen, metric), values, metric, reference=reference)
    else:
        figure = curves(_best(chosen, metric), chosen, metric)
    how = "Each method chose its settings on the labelled samples alone; the test data chose nothing"
    if any(row.method.endswith(BEST_ON_TEST) for row in rows):
        how += ", but for the rows that say so, which are bounds"
    how += "."
    if any(row.method.endswith(BY_VALIDATION) for row in rows):
        how += " Rows that say so had their α chosen on validation data."
    if any(row.method in {"oracle", "full"} for row in rows):
        how += (
            " The oracle mask and full fine-tuning need a full fine-tune of the new base, so they are bounds and not "
            "rivals."
        )
    return Section(
        "comparison",
        "Beside the baselines",
        how,
        [figure, table],
    )


def _best(rows: Sequence[Line], metric: str) -> str:
    largest = max(row.budget for row in rows)
    rivals = [row for row in rows if row.budget == largest and row.method not in {"oracle", "full"}]
    if not rivals:
        return f"The {metric} of each method"
    best = max(rivals, key=lambda row: row.score.value)
    return f"With {largest} samples a class, {best.label} does best: {shown_score(best.score.value, metric)} {metric}"


def _line(row: Line, metric: str, *, several: bool, retention: bool) -> list[Cell]:
    score, kept = row.score, row.retained

    def difference(interval: Interval | None) -> Cell:
        if interval is None or row.method == "zero-shot":
            return Cell("")
        bounds = between(interval)
        return Cell(points(interval.value) + (f" ({bounds})" if bounds else ""), interval.value)

    cells = [
        *([Cell(str(row.budget), row.budget)] if several else []),
        Cell(row.label),
        Cell(shown_score(score.value, metric), score.value),
        Cell(between(score, signed=False, metric=metric), score.low),
        difference(row.gain),
        difference(row.over_control),
    ]
    if retention:
        cells.append(Cell(shown_score(kept.value, metric), kept.value) if kept else Cell(""))
    return cells


def curves(title: str, rows: Sequence[Line], metric: str) -> Figure:
    """Draw scores over the number of samples a class, a line a method.

    Args:
        title: What is to be seen.
        rows: Lines of a comparison at several budgets.
        metric: What the score is.

    Returns:
        The figure; what does not depend on the samples is a level line.
    """
    methods = list(dict.fromkeys(row.method for row in rows))
    levels, ours = {"zero-shot", "oracle", "full"}, transported(rows)
    traces: list[dict[str, Any]] = []
    drawn = 0
    for method in methods:
        own = sorted((row for row in rows if row.method == method), key=lambda row: row.budget)
        number = drawn % len(COLOURS)
        level = method in levels
        colour = MUTED if level else ACCENT if method == ours else COLOURS[1 + (drawn % (len(COLOURS) - 1))]
        dash = DASHES[sum(trace["mode"] == "lines" for trace in traces) % len(DASHES)] if level else "solid"
        if not level and method != ours:
            drawn += 1
        traces.append(
            {
                "type": "scatter",
                "mode": "lines" if level else "lines+markers",
                "cliponaxis": False,
                "name": label(own[0].label, 40),
                "x": [row.budget for row in own],
                "y": [row.score.value * 100 for row in own],
                "error_y": {
                    "type": "data",
                    "symmetric": False,
                    "array": [half(row.score.high, row.score) * 100 for row in own],
                    "arrayminus": [half(row.score.low, row.score) * 100 for row in own],
                    "color": colour,
                    "thickness": 1.2,
                    "width": 3,
                    "visible": not level,
                },
                "line": {"color": colour, "width": 3 if method == ours else 1.6, "dash": dash},
                "marker": {"color": colour, "size": 8, "symbol": SYMBOLS[number]},
                "hovertemplate": "%{fullData.name}<br>%{x} samples a class: %{y:.1f} %<extra></extra>",
            }
        )
    budgets = sorted({row.budget for row in rows})
    made = layout(
        height=460,
        showlegend=True,
        xaxis={
            "title": "labelled samples a class",
            "type": "log",
            "tickvals": budgets,
            "ticktext": [str(budget) for budget in budgets],
        },
        yaxis={"title": f"{metric}{score_unit(metric)}", "range": score_range(row.score for row in rows)},
        legend={
            "orientation": "h",
            "x": 0,
            "y": -0.22,
            "xanchor": "left",
            "yanchor": "top",
            "font": {"size": 12},
        },
    )
    return Figure(title, traces, made, "Bars: 95 % intervals over draws of the samples.")


def retention(rows: Sequence[Line]) -> Section | None:
    """Show what each method left of what the base could do before.

    Args:
        rows: Lines of a comparison.

    Returns:
        The section; None where no retention data were given.
    """
    largest = max((row.budget for row in rows if row.retained is not None), default=None)
    if largest is None:
        return None
    shown = [(row, row.retained) for row in rows if row.budget == largest and row.retained is not None]
    method = transported([row for row, _ in shown])
    scores = {row.method: retained.value for row, retained in shown}
    before, ours = scores.get("zero-shot"), scores.get(method)
    title = "Score on the other task, by method"
    if before is not None and ours is not None:
        title = f"On the other task the base scores {percent(before)}, the transported model {percent(ours)}"
    values = [(row.label, retained, row.method == method) for row, retained in shown]
    return Section(
        "retention",
        "What was kept of the base",
        f"The same models on a task the base could do before, with {largest} samples a class of the new one.",
        [dots(title, values, "score", reference=before)],
    )
