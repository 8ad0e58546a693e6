"""What was kept of the fine-tune, and where: by depth and kind of layer, and in the output's number format."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gradfix.layers import KINDS, layer_of
from gradfix.report.blocks import Figure, Section, label
from gradfix.report.look import DIVERGING, INK, layout
from gradfix.report.markup import Html, tag
from gradfix.report.numbers import percent

ROWS = 44
"""Blocks drawn one a row; a deeper network's are drawn in groups of equal depth."""


@dataclass
class Sums:
    """What is added up over the tensors of one cell.

    Attributes:
        tensors: How many.
        nonzero: Where τ is not 0.
        kept: Of those, where the mask kept it.
        square: Σ τ_i².
        kept_square: Σ (m_i τ_i)².
        voted: Coordinates whose votes were counted while they were written.
        tied: Of those, with a tie.
        margin: Σ abs(v_i)/N over them.
    """

    tensors: int = 0
    nonzero: int = 0
    kept: int = 0
    square: float = 0.0
    kept_square: float = 0.0
    voted: int = 0
    tied: int = 0
    margin: float = 0.0

    def add(self, facts: Mapping[str, Any]) -> None:
        """Add one tensor.

        Args:
            facts: Of ``applied.tensors``.
        """
        self.tensors += 1
        self.nonzero += facts["nonzero"]
        self.kept += facts["kept"]
        self.square += facts.get("square") or 0.0
        self.kept_square += facts.get("kept_square") or 0.0
        if facts.get("tied") is not None and facts.get("margin") is not None:
            self.voted += facts["coordinates"]
            self.tied += facts["tied"]
            self.margin += facts["margin"] * facts["coordinates"]


def coverage_section(record: Mapping[str, Any]) -> Section | None:
    """Show the share kept by depth and kind of layer.

    Args:
        record: What ``gradfix.json`` holds.

    Returns:
        The section; None where no mask chose.
    """
    applied = record.get("applied") or {}
    masked = {
        name: facts
        for name, facts in (applied.get("tensors") or {}).items()
        if facts.get("nonzero") and facts.get("kept") is not None
    }
    share = applied.get("kept_share")
    if not masked or share is None:
        return None
    norm = math.sqrt(
        _ratio(
            sum(f.get("kept_square") or 0 for f in masked.values()),
            sum(f.get("square") or 0 for f in masked.values()),
        )
    )
    silent = len(record.get("silent_parameters") or ())
    lead = (
        f"{percent(share)} of the task vector's coordinates were kept, with {percent(norm)} of its length. Signs that "
        "agree by chance alone would keep about half."
    )
    if silent:
        lead += f" {silent} parameters that this task's gradients don't reach kept the new base's values."
    if all(facts["kept"] == facts["nonzero"] for facts in masked.values()):
        return Section(
            "coverage", "What was kept of the fine-tune", "The whole task vector was added; no mask chose."
        )
    return Section("coverage", "What was kept of the fine-tune", lead, [_heat_map(masked, share)])


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _heat_map(masked: Mapping[str, Mapping[str, Any]], share: float) -> Figure:
    depth = max((place.depth for place in map(layer_of, masked) if place.depth is not None), default=0) + 1
    group = -(-depth // ROWS)
    cells: dict[tuple[tuple[str, int], str], Sums] = {}
    for name, facts in masked.items():
        place = layer_of(name)
        row = (place.tower, -1 if place.depth is None else place.depth // group)
        cells.setdefault((row, place.kind), Sums()).add(facts)
    rows = sorted({row for row, _ in cells})
    kinds = [kind for kind in KINDS if any(found == kind for _, found in cells)]
    towers = len({tower for tower, _ in rows}) > 1
    names = [_row_name(tower, block, group, towers) for tower, block in rows]
    shares, hover = [], []
    for row, shown in zip(rows, names, strict=True):
        found = [cells.get((row, kind)) for kind in kinds]
        shares.append(
            [None if sums is None or not sums.nonzero else sums.kept / sums.nonzero for sums in found]
        )
        hover.append([_hover(shown, kind, sums) for kind, sums in zip(kinds, found, strict=True)])
    known = [value for line in shares for value in line if value is not None]
    spread = max(0.02, max(abs(value - 0.5) for value in known))
    flat = {
        (r, k): v
        for r, line in zip(names, shares, strict=True)
        for k, v in zip(kinds, line, strict=True)
        if v is not None
    }
    most = max(flat, key=lambda cell: flat[cell])
    trace = {
        "type": "heatmap",
        "x": [
            kind.replace(" ", "<br>").replace("query/key/value", "query/<br>key/<br>value") for kind in kinds
        ],
        "y": names,
        "z": [[None if value is None else value * 100 for value in line] for line in shares],
        "text": hover,
        "texttemplate": "%{z:.0f}" if len(rows) <= 26 else "",
        "textfont": {"size": 11},
        "hovertemplate": "%{text}<extra></extra>",
        "hoverongaps": False,
        "zmin": (0.5 - spread) * 100,
        "zmax": (0.5 + spread) * 100,
        "colorscale": [[at, colour] for at, colour in DIVERGING],
        "xgap": 2,
        "ygap": 2,
        "colorbar": {
            "title": {"text": "kept, %", "side": "right", "font": {"size": 12}},
            "thickness": 10,
            "outlinewidth": 0,
            "len": 1,
            "tickfont": {"size": 11},
        },
    }
    made = layout(
        height=max(180, 96 + (24 if len(rows) <= 26 else 15) * len(rows)),
        xaxis={"side": "top", "showgrid": False, "tickangle": 0, "tickfont": {"size": 11, "color": INK}},
        yaxis={
            "autorange": "reversed",
            "showgrid": False,
            "type": "category",
            "title": "layer, from the input down",
        },
    )
    title = f"Most is kept in {most[1]} of {most[0]} ({percent(flat[most], 0)}); overall {percent(share, 0)}"
    note = (
        "Share of the task vector's coordinates that the samples' votes agreed with, in %. White: the half that chance "
        "would keep; blue: more; orange: less. Point at a cell for its length kept, ties and vote margin."
    )
    return Figure(title, [trace], made, note)


def _row_name(tower: str, block: int, group: int, towers: bool) -> str:
    number = f"{block}" if group == 1 else f"{block * group}–{block * group + group - 1}"
    place = "outside" if block < 0 else number
    return f"{tower or 'shared'} {place}" if towers else place if block < 0 else f"layer {place}"


def _hover(row: str, kind: str, sums: Sums | None) -> str:
    if sums is None or not sums.nonzero:
        return ""
    lines = [
        f"<b>{label(row)} · {label(kind)}</b>",
        f"kept {percent(sums.kept / sums.nonzero)} of {sums.nonzero:,} coordinates",
        f"length kept {percent(math.sqrt(_ratio(sums.kept_square, sums.square)))}",
    ]
    if sums.voted:
        lines.append(f"ties {percent(sums.tied / sums.voted)}")
        lines.append(f"vote margin {percent(sums.margin / sums.voted)}")
    return "<br>".join([*lines, f"{sums.tensors} tensor{'s' * (sums.tensors != 1)}"])


def format_section(record: Mapping[str, Any]) -> Section | None:
    """Say what part of the update the output's number format rounded away, and what to do.

    Args:
        record: What ``gradfix.json`` holds.

    Returns:
        The section; None where nothing was lost.
    """
    applied, recipe = record.get("applied") or {}, record.get("recipe") or {}
    lost = applied.get("lost_share")
    if not lost:
        return None
    changed = sum(facts.get("wanted") or 0 for facts in (applied.get("tensors") or {}).values())
    kind = recipe.get("dtype") or "the new base's number format"
    lead = (
        f"{percent(lost)} of the {changed:,} changed weights are the same as before once written in {kind}."
    )
    if lost < 0.01:
        return Section("format", "Lost in rounding", lead + " That is too little to matter.")
    bar = _bar(1 - lost, f"{percent(1 - lost)} of the changes arrived")
    advice = tag(
        "p",
        "Each lost change is smaller than half the distance between two neighbouring numbers there. ",
        tag("code", "--dtype float32"),
        " keeps them all; ",
        tag("code", "--rounding stochastic"),
        " keeps them on average in bfloat16.",
    )
    return Section("format", "Lost in rounding", lead, [bar, advice])


def _bar(share: float, words: str) -> Html:
    width = f"width:{min(100.0, max(0.0, share * 100)):.2f}%"
    return tag(
        "div", tag("div", tag("span", style=width), class_="track"), tag("span", words), class_="bar wide"
    )
