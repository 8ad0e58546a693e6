"""What the demo shows: its table as dots with intervals, and digits whose prediction changed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradfix.evaluation.evaluate import Evaluation
from gradfix.report.style import ACCENT, COLOURS, GOOD, MUTED, WARM, saved, static
from gradfix.transport.comparison import AUTO, Line

SHOWN = 6


@dataclass(frozen=True)
class Changed:
    """A test image whose prediction the transport changed.

    Attributes:
        image: Grey values, shape (28, 28).
        label: The right answer.
        before: What the new base said.
        after: What the transported model says.
    """

    image: np.ndarray[Any, np.dtype[np.uint8]]
    label: str
    before: str
    after: str


def changed_digits(before: Evaluation, after: Evaluation, rows: Sequence[Mapping[str, Any]]) -> list[Changed]:
    """Take the first few changed predictions: mostly gains, and a loss where there is one, for honesty.

    Args:
        before: Of the new base.
        after: Of the transported model, on the same rows.
        rows: Digits.

    Returns:
        At most six.
    """
    pairs = list(zip(before.predictions, after.predictions, rows, strict=True))
    gains = [pair for pair in pairs if pair[0] != pair[1] == pair[2]["label"]]
    losses = [pair for pair in pairs if pair[1] != pair[0] == pair[2]["label"]]
    shown = [*gains[: SHOWN - min(1, len(losses))], *losses[:1]][:SHOWN]
    return [Changed(np.asarray(row["image"]), row["label"], str(old), str(new)) for old, new, row in shown]


def picture(changed: Sequence[Changed], lines: Sequence[Line]) -> bytes:
    """Draw the table as dots with intervals, and the changed digits beside them.

    Args:
        changed: The digits.
        lines: The table's rows, of one budget.

    Returns:
        A PNG.
    """
    with static():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(10, 3.6), layout="constrained")
        parts: Any = figure.subfigures(1, 2, width_ratios=(1.25, 1))
        left, right = parts
        axes = left.subplots()
        shown = list(lines)
        base = next((line.score.value for line in shown if line.method == "zero-shot"), None)
        if base is not None:
            axes.axvline(base * 100, color=COLOURS[7], linewidth=1, linestyle=":")
        for height, line in enumerate(shown):
            error = 0.0 if line.score.low is None else line.score.value - line.score.low
            ours = line.method == AUTO
            axes.errorbar(
                line.score.value * 100,
                height,
                xerr=error * 100,
                fmt="D" if ours else "o",
                color=ACCENT if ours else MUTED,
                capsize=3,
            )
        axes.set_yticks(range(len(shown)), [line.label for line in shown])
        for label, line in zip(axes.get_yticklabels(), shown, strict=True):
            label.set_fontweight("bold" if line.method == AUTO else "normal")
        axes.grid(axis="x")
        axes.set_axisbelow(True)
        axes.invert_yaxis()
        axes.set_xlabel(f"accuracy, %, {shown[0].budget} samples a class")
        cells = right.subplots(2, (len(changed) + 1) // 2, squeeze=False).flatten()
        for cell in cells:
            cell.set_axis_off()
        for cell, item in zip(cells, changed, strict=False):
            cell.imshow(item.image, cmap="gray_r", vmin=0, vmax=255)
            right_now = item.after == item.label
            cell.set_title(
                f"{item.before} → {item.after} {'✓' if right_now else '✗'}",
                fontsize=9,
                color=GOOD if right_now else WARM,
            )
        right.suptitle("what the new base said → what the transported model says", fontsize=9)
        return saved(figure, dpi=150)["png"]


def terminal_digits(changed: Sequence[Changed]) -> str:
    """Draw images side by side in characters, for a terminal.

    Args:
        changed: The images.

    Returns:
        Lines of half blocks, seven rows of fourteen characters an image, with a caption below each.
    """
    shades = []
    for item in changed:
        grey = item.image.reshape(14, 2, 14, 2).mean(axis=(1, 3)) > 90
        rows = []
        for top, bottom in zip(grey[::2], grey[1::2], strict=True):
            rows.append("".join(" ▄▀█"[2 * upper + lower] for upper, lower in zip(top, bottom, strict=True)))
        shades.append(rows)
    lines = ["  ".join(row) for row in zip(*shades, strict=True)]
    captions = [f"{item.before} → {item.after}"[:15].ljust(14) for item in changed]
    return "\n".join([*lines, "  ".join(captions)])
