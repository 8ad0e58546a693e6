"""How sure the mask is: votes against the number of samples, and how well the source was aligned."""

from collections.abc import Sequence
from typing import Any

from gradfix.checkpoints.layers import layer_of
from gradfix.report.elements import Figure, Section
from gradfix.report.facts import Alignment, Stability
from gradfix.report.numbers import percent
from gradfix.report.record import TransportRecord
from gradfix.report.style import ACCENT, COLOURS, MUTED, SYMBOLS, layout


def votes_section(record: TransportRecord) -> Section | None:
    """Show how the signs settle as samples are added.

    Args:
        record: What ``gradfix.json`` holds.

    Returns:
        The section; None where the votes say nothing of it (a mean vote, one sample).
    """
    votes = record.votes
    if votes is None or votes.stability is None:
        return None
    low, high = votes.stability.mask_change
    lead = (
        f"Another draw of {votes.samples:,} samples would change between {percent(low, 0)} and {percent(high, 0)} of "
        f"the signs; {percent(votes.tie_rate)} of the coordinates are tied."
    )
    curve = votes.stability.settling
    parts = [_settling(curve, votes.samples, votes.stability)] if len(curve) > 1 else []
    return Section("votes", "Would more samples change the mask?", f"{lead} {_answer(high)}", parts)


def _answer(high: float) -> str:
    if high > 0.25:
        return "The mask is still far from settled: more labelled samples would change it a good deal."
    if high > 0.1:
        return "The mask is settling: more labelled samples would still change some of it."
    return "The mask has settled: more labelled samples would change little."


def _settling(pairs: Sequence[tuple[int, float]], samples: int, stability: Stability) -> Figure:
    trace = {
        "type": "scatter",
        "mode": "lines+markers",
        "name": "two separate draws agree",
        "x": [count for count, _ in pairs],
        "y": [share * 100 for _, share in pairs],
        "line": {"color": ACCENT, "width": 2.4},
        "marker": {"color": ACCENT, "size": 8},
        "hovertemplate": "two draws of %{x} samples agree on %{y:.1f} % of the signs<extra></extra>",
    }
    ends = sorted((stability.split_half * 100, stability.redraw * 100))
    bracket = {
        "type": "scatter",
        "mode": "lines+markers",
        "name": f"range for {samples}",
        "x": [samples, samples],
        "y": ends,
        "line": {"color": MUTED, "width": 2, "dash": "dot"},
        "marker": {"color": MUTED, "size": 9, "symbol": "line-ew-open", "line": {"width": 2}},
        "hovertemplate": f"two draws of {samples} samples: between {ends[0]:.1f} and {ends[1]:.1f} %<extra></extra>",
    }
    ticks = sorted({count for count, _ in pairs[:: max(1, len(pairs) // 6)]} | {pairs[-1][0], samples})
    made = layout(
        height=320,
        showlegend=True,
        xaxis={
            "title": "samples in a draw",
            "type": "log",
            "tickvals": ticks,
            "ticktext": [str(tick) for tick in ticks],
        },
        yaxis={"title": "signs that agree, %"},
    )
    title = f"Two draws of {pairs[-1][0]} samples agree on {percent(pairs[-1][1], 0)} of the signs"
    note = (
        f"Exact from the counts, over all ways to draw two separate sets out of the {samples} that voted; a tie counts "
        f"as no agreement. For {samples} samples only a range is known."
    )
    return Figure(title, [trace, bracket], made, note)


_SIDES = (
    ("residual_in", "inputs"),
    ("residual_out", "outputs"),
    ("residual", "activations unexplained"),
    ("unexplained", "change not carried over"),
)
"""What is known of an aligned tensor, and what the figure calls it."""


def _answers_lead(alignment: Alignment) -> str:
    found = [facts.get("unexplained") for facts in alignment.tensors.values()]
    left = [float(share) for share in found if isinstance(share, float | int)]
    share = (
        f" It makes {percent(1 - left[-1], 0)} of the change that this asks for on held-out inputs."
        if left
        else ""
    )
    return (
        f"The new base's last layer was fitted to what the tuned model answers on {alignment.inputs} inputs, "
        f"without their labels: the last layer alone changes, by ridge regression.{share}"
    )


def alignment_section(record: TransportRecord) -> Section | None:
    """Show what alignment left of the difference between the two bases, layer by layer.

    Args:
        record: What ``gradfix.json`` holds.

    Returns:
        The section; None where nothing was aligned.
    """
    alignment = record.alignment
    if alignment is None:
        return None
    lines: Lines = {}
    for name, residuals in alignment.tensors.items():
        place = layer_of(name)
        if place.depth is None:
            continue
        for key, side in _SIDES:
            if (residual := residuals.get(key)) is not None:
                lines.setdefault((place.tower, side), {}).setdefault(place.depth, []).append(float(residual))
    if alignment.method == "answers":
        return Section("alignment", "How well the source was followed", _answers_lead(alignment))
    held = " on inputs that did not shape the alignment" if alignment.held_out else ""
    lead = (
        "The task vector was carried over to the new base by what its layers do to activations (method: "
        f"{alignment.method}). The figure shows the share of each layer's part that this leaves "
        f"unexplained{held}: 0 is a perfect match, 1 none."
    )
    if not lines:
        return Section("alignment", "How well the source was aligned", lead)
    means = [value for _, _, points in _means(lines) for _, value in points]
    title = f"On average {percent(sum(means) / len(means), 0)} of a layer's part is left unexplained"
    figures = [
        _by_layer(
            title,
            lines,
            {"title": "left unexplained (0 to 1)", "rangemode": "tozero"},
            "layer %{x}: %{y:.3f}<extra>%{fullData.name}</extra>",
        )
    ]
    depths = _depths(alignment)
    if depths:
        figures.append(
            _by_layer(
                "Which depth of the old base each layer of the new one was paired with",
                depths,
                {"title": "blocks of the old base before it", "rangemode": "tozero"},
                "layer %{x}: after %{y:.2f} blocks<extra>%{fullData.name}</extra>",
            )
        )
    return Section("alignment", "How well the source was aligned", lead, figures)


Lines = dict[tuple[str, str], dict[int, list[float]]]
"""Values by tower and what they are, then by layer."""


def _depths(alignment: Alignment) -> Lines:
    """The pairing of layers, where the two models have other numbers of them."""
    found: Lines = {}
    for name, facts in alignment.tensors.items():
        place = layer_of(name)
        depth = facts.get("depth")
        if isinstance(depth, float | int) and place.depth is not None:
            found.setdefault((place.tower, "layers"), {})[place.depth] = [float(depth)]
    return found


def _by_layer(title: str, lines: Lines, axis: dict[str, Any], hover: str) -> Figure:
    """Draw the means of each line's values over the layers."""
    named = _means(lines)
    deepest = max(depth for _, _, points in named for depth, _ in points)
    traces = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": f"{tower} {side}".strip(),
            "x": [depth for depth, _ in points],
            "y": [value for _, value in points],
            "line": {"color": COLOURS[index % len(COLOURS)], "width": 2.2},
            "marker": {
                "color": COLOURS[index % len(COLOURS)],
                "size": 8,
                "symbol": SYMBOLS[index % len(SYMBOLS)],
            },
            "hovertemplate": hover,
        }
        for index, (tower, side, points) in enumerate(named)
    ]
    made = layout(
        height=320,
        showlegend=True,
        xaxis={"title": "layer", "tickformat": "d", "dtick": max(1, deepest // 8)},
        yaxis=axis,
    )
    return Figure(title, traces, made)


def _means(lines: Lines) -> list[tuple[str, str, list[tuple[int, float]]]]:
    """Tower, what the values are, and layers with the means of their values, in order."""
    return [
        (tower, side, [(depth, sum(found) / len(found)) for depth, found in sorted(depths.items())])
        for (tower, side), depths in sorted(lines.items())
    ]
