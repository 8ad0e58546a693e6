"""What was kept of the fine-tune, and where: by depth and kind of layer, and in the output's number format."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from gradfix.checkpoints.layers import KINDS, layer_of
from gradfix.report.elements import Figure, Section, label
from gradfix.report.facts import TensorFacts
from gradfix.report.markup import render
from gradfix.report.numbers import percent
from gradfix.report.record import TransportRecord
from gradfix.report.style import DIVERGING, INK, layout

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
        voted: Coordinates on which samples voted.
        tied: Of those, with a tie.
        net: Σ abs(v_i) over them.
    """

    tensors: int = 0
    nonzero: int = 0
    kept: int = 0
    square: float = 0.0
    kept_square: float = 0.0
    voted: int = 0
    tied: int = 0
    net: int = 0

    def add(self, facts: TensorFacts) -> None:
        """Add one tensor.

        Args:
            facts: Of ``applied.tensors``.
        """
        self.tensors += 1
        self.nonzero += facts.nonzero or 0
        self.kept += facts.kept or 0
        self.square += facts.square or 0.0
        self.kept_square += facts.kept_square or 0.0
        self.voted += facts.voted or 0
        self.tied += facts.tied or 0
        self.net += facts.net or 0


def coverage_section(record: TransportRecord) -> Section | None:
    """Show the share kept by depth and kind of layer.

    Args:
        record: What ``gradfix.json`` holds.

    Returns:
        The section; None where no mask chose.
    """
    applied = record.applied
    if applied is None or applied.kept_share is None:
        return None
    share = applied.kept_share
    masked = {
        name: facts for name, facts in applied.tensors.items() if facts.nonzero and facts.kept is not None
    }
    if not masked:
        return None
    whole = Sums()
    for facts in masked.values():
        whole.add(facts)
    norm = math.sqrt(_ratio(whole.kept_square, whole.square))
    silent = len(record.silent_parameters)
    lead = f"{percent(share)} of the task vector's coordinates were kept, with {percent(norm)} of its length."
    chance = _chance(record)
    if chance is not None:
        lead += f" Signs that agree by chance alone would keep {percent(chance)}, half of what is not tied."
    if silent:
        lead += f" {silent} parameters that this task's gradients don't reach kept the new base's values."
    if whole.kept == whole.nonzero:
        return Section(
            "coverage", "What was kept of the fine-tune", "The whole task vector was added; no mask chose."
        )
    return Section("coverage", "What was kept of the fine-tune", lead, [_heat_map(masked, share, record)])


def _chance(record: TransportRecord) -> float | None:
    """Tell what a mask of agreeing signs would keep of a vector that has nothing to do with the votes."""
    method = "gradfix" if record.method is None else record.method.name
    agreeing = record.options.mask in {"agreement", "soft"} and method == "gradfix" and not record.steps
    return (1 - record.votes.tie_rate) / 2 if record.votes is not None and agreeing else None


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _heat_map(masked: Mapping[str, TensorFacts], share: float, record: TransportRecord) -> Figure:
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
    names = {row: _row_name(*row, group, towers) for row in rows}
    overall, voters = _chance(record), max(1, record.votes.samples) if record.votes is not None else 1

    def over(sums: Sums) -> float:
        """Points kept over what chance would keep of this cell, or over the whole model's share."""
        expected = share if overall is None else (1 - sums.tied / sums.voted) / 2 if sums.voted else overall
        return (sums.kept / sums.nonzero - expected) * 100

    spread = max(4.0, *(abs(over(sums)) for sums in cells.values()))
    short = {"query/key/value": "query/<br>key/<br>value"}

    def grid(value: Callable[[str, str, Sums], Any], absent: Any = "") -> list[list[Any]]:
        return [
            [
                absent if (found := cells.get((row, kind))) is None else value(names[row], kind, found)
                for kind in kinds
            ]
            for row in rows
        ]

    few = len(rows) <= 26
    trace = {
        "type": "heatmap",
        "x": [short.get(kind, kind.replace(" ", "<br>")) for kind in kinds],
        "y": list(names.values()),
        "z": grid(lambda row, kind, sums: over(sums), None),
        "text": grid(lambda row, kind, sums: f"{sums.kept / sums.nonzero * 100:.0f}"),
        "customdata": grid(lambda row, kind, sums: _hover(row, kind, sums, voters)),
        "texttemplate": "%{text}" if few else "",
        "textfont": {"size": 12},
        "hovertemplate": "%{customdata}<extra></extra>",
        "hoverongaps": False,
        "zmin": -spread,
        "zmax": spread,
        "colorscale": [[at, colour] for at, colour in DIVERGING],
        "xgap": 2,
        "ygap": 2,
        "colorbar": {
            "title": {
                "text": "points over " + ("chance" if overall is not None else "the average"),
                "side": "right",
            },
            "thickness": 10,
            "outlinewidth": 0,
            "tickfont": {"size": 11},
        },
    }
    made = layout(
        height=max(180, 96 + (26 if few else 15) * len(rows)),
        xaxis={"side": "top", "showgrid": False, "tickangle": 0, "tickfont": {"size": 11, "color": INK}},
        yaxis={"autorange": "reversed", "showgrid": False, "type": "category", "dtick": 1 if few else None},
    )
    return Figure(_title(cells, names, over, chance=overall is not None), [trace], made, _note(few, overall))


def _title(
    cells: Mapping[tuple[tuple[str, int], str], Sums],
    names: Mapping[tuple[str, int], str],
    over: Callable[[Sums], float],
    *,
    chance: bool,
) -> str:
    top = max(cells, key=lambda cell: over(cells[cell]))
    most = sum(over(sums) * sums.nonzero for sums in cells.values()) / sum(
        sums.nonzero for sums in cells.values()
    )
    if chance and abs(most) < 1:
        return "Almost everywhere as much is kept as chance would keep: the two bases share no coordinates"
    kept = percent(cells[top].kept / cells[top].nonzero, 0)
    return f"The most is kept in {top[1]} of {names[top[0]]}: {kept}"


def _note(few: bool, chance: float | None) -> str:
    cell = "The number in a cell is the share of coordinates kept there, in %. " if few else ""
    against = "what chance would keep" if chance is not None else "the whole model's share"
    return (
        f"{cell}Blue: more than {against}; orange: less. Point at a cell for its length kept, ties and vote margin, "
        "the share of samples by which a majority won."
    )


def _row_name(tower: str, block: int, group: int, towers: bool) -> str:
    number = f"{block}" if group == 1 else f"{block * group}–{block * group + group - 1}"
    place = "outside" if block < 0 else number
    return f"{tower or 'shared'} {place}" if towers else place if block < 0 else f"layer {place}"


def _hover(row: str, kind: str, sums: Sums, voters: int) -> str:
    lines = [
        f"<b>{label(row)} · {label(kind)}</b>",
        f"kept {percent(sums.kept / sums.nonzero)} of {sums.nonzero:,} coordinates",
        f"length kept {percent(math.sqrt(_ratio(sums.kept_square, sums.square)))}",
    ]
    if sums.voted:
        lines.append(f"ties {percent(sums.tied / sums.voted)}")
        lines.append(f"vote margin {percent(sums.net / sums.voted / voters)}")
    return "<br>".join([*lines, f"{sums.tensors} tensor{'s' * (sums.tensors != 1)}"])


def format_section(record: TransportRecord) -> Section | None:
    """Say what part of the update the output's number format rounded away, and what to do.

    Args:
        record: What ``gradfix.json`` holds.

    Returns:
        The section; None where nothing was lost.
    """
    applied = record.applied
    if applied is None or not applied.lost_share:
        return None
    lost = applied.lost_share
    changed = sum(facts.wanted for facts in applied.tensors.values())
    kind = record.options.dtype or "the new base's number format"
    lead = (
        f"{percent(lost)} of the {changed:,} changed weights are the same as before once written in {kind}."
    )
    if lost < 0.01:
        return Section("format", "Lost in rounding", lead + " That is too little to matter.")
    shown = render("rounding.html", arrived=1 - lost, words=f"{percent(1 - lost)} of the changes arrived")
    return Section("format", "Lost in rounding", lead, [shown])
