"""How far the model went along the task vector, and why: the method, α, the certificate, and later steps."""

from collections.abc import Sequence
from typing import Any

from gradfix.report.elements import Cell, Figure, Section, Table
from gradfix.report.facts import Alpha, AlphaPoint, Certificate
from gradfix.report.numbers import number, score_name, score_unit, shown_score
from gradfix.report.record import TransportRecord
from gradfix.report.style import ACCENT, INK, MUTED, WARM, layout

CHOSEN_ON = {
    "cross-fit": "labelled samples held out in turn",
    "validation": "validation samples",
    "given": "nothing: it was given",
}


def alpha_section(record: TransportRecord) -> Section | None:
    """Show the α curve and the certificate.

    Args:
        record: What ``gradfix.json`` holds.

    Returns:
        The section; None where neither was measured.
    """
    choice = record.alpha
    # A way in steps has a curve over its steps, which stands in a section of its own.
    curve = [] if record.steps else choice.curve
    figures = [
        figure
        for figure in (_loss(choice, curve, record.certificate), _score(choice, curve, record.metric))
        if figure
    ]
    if not figures:
        return None
    if record.steps:
        lead = f"α scales the whole update, all steps together; it was added with α = {choice.alpha:g}."
        return Section("alpha", "How far to go", lead, figures)
    on = CHOSEN_ON.get(choice.chosen_on, choice.chosen_on)
    lead = f"α scales the update; 0 is the new base itself. α = {choice.alpha:g} was chosen on {on}"
    lead += f" ({choice.samples:,} samples)." if choice.samples else "."
    return Section("alpha", "How far to go", lead, [figures])


def _loss(choice: Alpha, curve: Sequence[AlphaPoint], certificate: Certificate) -> Figure | None:
    traces: list[dict[str, Any]] = []
    if curve:
        traces.append(_line("held-out loss", [(p.alpha, p.loss) for p in curve], ACCENT, "circle", "solid"))
        traces += _ring(choice, [(p.alpha, p.loss) for p in curve])
    if certificate.steps:
        start, steps = certificate.loss, certificate.steps
        measured = [(0.0, start), *((step.alpha, start + step.measured) for step in steps)]
        predicted = [(0.0, start), *((step.alpha, start + step.predicted) for step in steps)]
        traces.append(_line("loss of the voting samples", measured, WARM, "square", "solid"))
        traces.append(_line("predicted by the gradient", predicted, INK, None, "dot"))
    if not traces:
        return None
    low = min((value for trace in traces[:-1] or traces for value in trace["y"]), default=0.0)
    high = max(value for trace in traces for value in trace["y"])
    title = "The loss along α"
    if curve and choice.alpha:
        base, best = choice.at(0.0), choice.at(choice.alpha)
        if base is not None and best is not None:
            title = (
                f"Held-out loss falls from {number(base.loss)} to {number(best.loss)} at α = {choice.alpha:g}"
            )
    else:
        title = (
            f"The loss of the voting samples changes by {number(certificate.slope)} per unit of α at first"
        )
    note = (
        f"Dotted: the certificate, the first-order change that the gradient predicts ({number(certificate.slope)} per "
        "unit of α). Where the measured line leaves it, the step is too long for the gradient to speak for."
    )
    room = 0.08 * (high - low or 1.0)
    made = layout(
        height=330,
        showlegend=True,
        xaxis={"title": "α", "rangemode": "tozero"},
        yaxis={"title": "mean loss a sample", "range": [low - room, high + room]},
    )
    return Figure(title, traces, made, note)


def _score(choice: Alpha, curve: Sequence[AlphaPoint], metric: str) -> Figure | None:
    if len(curve) < 2:
        return None
    scores = [(p.alpha, p.score * 100) for p in curve]
    name = score_name(metric)
    traces = [_line("held-out score", scores, ACCENT, "circle", "solid"), *_ring(choice, scores)]
    best = choice.at(choice.alpha)
    title = f"The {name} along α"
    if best is not None:
        title = f"Held-out {name} at the chosen α: {shown_score(best.score, metric)}"
    made = layout(
        height=330,
        showlegend=True,
        xaxis={"title": "α", "rangemode": "tozero"},
        yaxis={"title": f"{name}{score_unit(metric)}"},
    )
    if not choice.samples:
        return Figure(title, traces, made)
    note = (
        f"On {choice.samples:,} samples a step of one sample is {100 / choice.samples:.1f} points; the loss, "
    )
    return Figure(title, traces, made, note + "which is finer, decides.")


def _line(
    name: str,
    values: Sequence[tuple[float, float]],
    colour: str,
    symbol: str | None,
    dash: str,
    over: str = "α =",
) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines+markers" if symbol else "lines",
        "name": name,
        "x": [x for x, _ in values],
        "y": [y for _, y in values],
        "line": {"color": colour, "width": 2.2, "dash": dash},
        "marker": {"color": colour, "size": 7, "symbol": symbol or "circle"},
        "hovertemplate": f"{over} %{{x:.3g}}: %{{y:.4g}}<extra>{name}</extra>",
    }


def _ring(choice: Alpha, curve: Sequence[tuple[float, float]]) -> list[dict[str, Any]]:
    chosen = [(alpha, value) for alpha, value in curve if alpha == choice.alpha]
    return [
        {
            "type": "scatter",
            "mode": "markers",
            "name": f"chosen: α = {alpha:g}",
            "x": [alpha],
            "y": [value],
            "marker": {"color": "rgba(0,0,0,0)", "size": 17, "line": {"color": INK, "width": 2}},
            "hoverinfo": "skip",
        }
        for alpha, value in chosen[:1]
    ]


def method_section(record: TransportRecord) -> Section | None:
    """Say which method ``auto`` took, and what the others gave.

    Args:
        record: What ``gradfix.json`` holds.

    Returns:
        The section; None where no method was chosen.
    """
    method = record.method
    if method is None:
        return None
    rows = [
        [
            Cell(entry.label),
            Cell("" if entry.alpha is None else f"{entry.alpha:g}", entry.alpha),
            Cell(number(entry.loss), entry.loss),
            Cell(shown_score(entry.score, record.metric), entry.score),
        ]
        for entry in method.candidates
    ]
    strong = [row for row, entry in enumerate(method.candidates) if entry.name == method.name]
    table = Table(["method", "best α", "held-out loss", "held-out score"], rows, strong)
    why = method.why[:1].upper() + method.why[1:]
    return Section("method", "Which method, and why", why, [table] if rows else [])


def steps_section(record: TransportRecord) -> Section | None:
    """Show what happened at each step of voting anew.

    Args:
        record: What ``gradfix.json`` holds.

    Returns:
        The section; None for a transport in a single step.
    """
    steps = record.steps or []
    if len(steps) < 2:
        return None
    figures = []
    for key, title, axis, scale in (
        ("loss", "Loss", "mean loss a sample", 1.0),
        ("score", "Score", "score, %", 100.0),
        ("kept", "Share of the task vector kept", "kept, %", 100.0),
    ):
        values = [
            (float(step.step), value * scale) for step in steps if (value := getattr(step, key)) is not None
        ]
        if len(values) < 2:
            continue
        if len({value for _, value in values}) == 1:
            continue
        best = (min if key == "loss" else max)(values, key=lambda value: value[1])
        extreme, unit = ("lowest", "") if key == "loss" else ("highest", " %")
        shown = f"{title} is {extreme} after step {best[0]:.0f}: {number(best[1])}{unit}"
        made = layout(
            height=280, xaxis={"title": "step", "dtick": max(1, len(values) // 8)}, yaxis={"title": axis}
        )
        colour = MUTED if key == "kept" else ACCENT
        figures.append(Figure(shown, [_line(title.lower(), values, colour, "circle", "solid", "step")], made))
    if not figures:
        return None
    return Section(
        "steps",
        "Voting anew on the way",
        f"The samples voted anew at up to {len(steps)} points, each time where the model had got to.",
        [figures],
    )
