"""How far the model went along the task vector, and why: the method, α, the certificate, and later steps."""

from collections.abc import Mapping, Sequence
from typing import Any

from gradfix.report.elements import Cell, Figure, Part, Section, Table
from gradfix.report.numbers import number, percent
from gradfix.report.style import ACCENT, INK, MUTED, WARM, layout

CHOSEN_ON = {
    "cross-fit": "labelled samples held out in turn",
    "validation": "validation samples",
    "given": "nothing: it was given",
}


def alpha_section(record: Mapping[str, Any]) -> Section | None:
    """Show the α curve and the certificate.

    Args:
        record: What ``gradfix.json`` holds.

    Returns:
        The section; None where neither was measured.
    """
    choice, certificate = record.get("alpha") or {}, record.get("certificate") or {}
    stepwise = bool(record.get("steps"))
    # A way in steps has a curve over its steps, which stands in a section of its own.
    tried = () if stepwise else choice.get("curve") or ()
    curve = [point for point in tried if point.get("loss") is not None]
    figures = [figure for figure in (_loss(choice, curve, certificate), _score(choice, curve)) if figure]
    if not figures:
        return None
    on = CHOSEN_ON.get(choice.get("chosen_on", ""), str(choice.get("chosen_on", "")))
    if stepwise:
        lead = f"α scales the whole update, all steps together; it was added with α = {choice.get('alpha', 0):g}."
        return Section("alpha", "How far to go", lead, figures)
    lead = f"α scales the update; 0 is the new base itself. α = {choice.get('alpha', 0):g} was chosen on {on}"
    lead += f" ({choice['samples']:,} samples)." if choice.get("samples") else "."
    return Section("alpha", "How far to go", lead, [figures])


def _loss(
    choice: Mapping[str, Any], curve: Sequence[Mapping[str, Any]], certificate: Mapping[str, Any]
) -> Figure | None:
    traces: list[dict[str, Any]] = []
    if curve:
        traces.append(
            _line("held-out loss", [(p["alpha"], p["loss"]) for p in curve], ACCENT, "circle", "solid")
        )
        traces += _ring(choice, curve, "loss", 1.0)
    steps = certificate.get("steps") or []
    start = certificate.get("loss")
    slope = certificate.get("slope")
    if steps and start is not None:
        measured = [(0.0, start), *((step["alpha"], start + step["measured"]) for step in steps)]
        predicted = [(0.0, start), *((step["alpha"], start + step["predicted"]) for step in steps)]
        traces.append(_line("loss of the voting samples", measured, WARM, "square", "solid"))
        traces.append(_line("predicted by the gradient", predicted, INK, None, "dot"))
    if not traces:
        return None
    low = min((value for trace in traces[:-1] or traces for value in trace["y"]), default=0.0)
    high = max(value for trace in traces for value in trace["y"])
    title = "The loss along α"
    if curve and choice.get("alpha"):
        base = next((p["loss"] for p in curve if p["alpha"] == 0), None)
        best = next((p["loss"] for p in curve if p["alpha"] == choice["alpha"]), None)
        if base is not None and best is not None:
            title = f"Held-out loss falls from {number(base)} to {number(best)} at α = {choice['alpha']:g}"
    elif slope is not None:
        title = f"The loss of the voting samples changes by {number(slope)} per unit of α at first"
    note = ""
    if slope is not None:
        note = (
            f"Dotted: the certificate, the first-order change that the gradient predicts ({number(slope)} per unit of "
            "α). Where the measured line leaves it, the step is too long for the gradient to speak for."
        )
    room = 0.08 * (high - low or 1.0)
    made = layout(
        height=330,
        showlegend=True,
        xaxis={"title": "α", "rangemode": "tozero"},
        yaxis={"title": "mean loss a sample", "range": [low - room, high + room]},
    )
    return Figure(title, traces, made, note)


def _score(choice: Mapping[str, Any], curve: Sequence[Mapping[str, Any]]) -> Figure | None:
    scored = [point for point in curve if point.get("score") is not None]
    if len(scored) < 2:
        return None
    traces = [
        _line("held-out score", [(p["alpha"], p["score"] * 100) for p in scored], ACCENT, "circle", "solid")
    ]
    traces += _ring(choice, scored, "score", 100.0)
    best = next((p["score"] for p in scored if p["alpha"] == choice.get("alpha")), None)
    title = "The score along α" if best is None else f"Held-out score at the chosen α: {percent(best)}"
    made = layout(
        height=330,
        showlegend=True,
        xaxis={"title": "α", "rangemode": "tozero"},
        yaxis={"title": "score, %"},
    )
    note = f"On {choice['samples']:,} samples a step of one sample is {100 / choice['samples']:.1f} points; the loss, "
    note += "which is finer, decides."
    return Figure(title, traces, made, note if choice.get("samples") else "")


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


def _ring(
    choice: Mapping[str, Any], curve: Sequence[Mapping[str, Any]], of: str, scale: float
) -> list[dict[str, Any]]:
    chosen = [point for point in curve if point["alpha"] == choice.get("alpha")]
    return [
        {
            "type": "scatter",
            "mode": "markers",
            "name": f"chosen: α = {point['alpha']:g}",
            "x": [point["alpha"]],
            "y": [point[of] * scale],
            "marker": {"color": "rgba(0,0,0,0)", "size": 17, "line": {"color": INK, "width": 2}},
            "hoverinfo": "skip",
        }
        for point in chosen[:1]
    ]


def method_section(record: Mapping[str, Any]) -> Section | None:
    """Say which method ``auto`` took, and what the others gave.

    Args:
        record: What ``gradfix.json`` holds.

    Returns:
        The section; None where no method was chosen.
    """
    method = record.get("method")
    if not method:
        return None
    candidates = [entry for entry in method.get("candidates") or () if entry.get("loss") is not None]
    name = next(
        (c["label"] for c in candidates if c["name"] == method.get("name")), str(method.get("name", ""))
    )
    parts: list[Part] = []
    if candidates:
        rows = [
            [
                Cell(entry["label"]),
                Cell("" if entry.get("alpha") is None else f"{entry['alpha']:g}", entry.get("alpha")),
                Cell(number(entry["loss"]), entry["loss"]),
                Cell("" if entry.get("score") is None else percent(entry["score"]), entry.get("score")),
            ]
            for entry in candidates
        ]
        strong = [i for i, entry in enumerate(candidates) if entry["name"] == method.get("name")]
        parts.append(Table(["method", "best α", "held-out loss", "held-out score"], rows, strong))
    why = str(method.get("why") or "")
    told = (
        why[:1].upper() + why[1:]
        if why.lower().startswith(name.lower())
        else f"Chosen: {name}. {why}".strip()
    )
    return Section("method", "Which method, and why", told, parts)


def steps_section(record: Mapping[str, Any]) -> Section | None:
    """Show what happened at each step of voting anew.

    Args:
        record: What ``gradfix.json`` holds.

    Returns:
        The section; None for a transport in a single step.
    """
    steps = record.get("steps") or []
    if len(steps) < 2:
        return None
    figures = []
    for key, title, axis, scale in (
        ("loss", "Loss", "mean loss a sample", 1.0),
        ("score", "Score", "score, %", 100.0),
        ("kept", "Share of the task vector kept", "kept, %", 100.0),
    ):
        values = [(float(step["step"]), step[key] * scale) for step in steps if step.get(key) is not None]
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
