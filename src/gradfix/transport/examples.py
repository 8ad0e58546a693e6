"""A few inputs whose prediction a transport changed, small enough to stand in its record."""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

from gradfix.evaluation.evaluate import Evaluation
from gradfix.report.facts import Example, Examples, Picture, Turn
from gradfix.tasks import ModelTask
from gradfix.tasks.data import origin

SHOWN = 12
SIDE = 112
LENGTH = 400
TURNS = 8
"""Of a conversation that are shown: its first, and its last ones."""


def changed_examples(
    task: ModelTask,
    rows: Sequence[Mapping[str, Any]],
    before: Evaluation,
    after: Evaluation,
    *,
    limit: int = SHOWN,
) -> Examples:
    """Pick inputs whose prediction changed: some that became right, some that became wrong, others last.

    Args:
        task: Tells which columns are its inputs.
        rows: The samples that were measured.
        before: Of the new base.
        after: Of the transported model, on the same rows.
        limit: How many to show; 0 counts alone and keeps every input out of the record.

    Returns:
        How many were ``fixed`` and ``broken``, how many went from one wrong answer to an ``other``, and those
        ``shown``, images as PNG data no larger than 112 pixels a side, texts up to 400 characters.
    """
    changed: dict[str, list[int]] = {"fixed": [], "broken": [], "other": []}
    for index in range(len(rows)):
        if before.predictions[index] == after.predictions[index]:
            continue
        was, now = before.grades[index], after.grades[index]
        changed["fixed" if now > was else "broken" if now < was else "other"].append(index)
    broken = min(limit // 3, len(changed["broken"]))
    fixed = min(limit - broken, len(changed["fixed"]))
    picked = [*changed["fixed"][:fixed], *changed["broken"][:broken]]
    rest = [*changed["broken"][broken:], *changed["other"]]
    picked += rest[: limit - len(picked)]
    return Examples(
        fixed=len(changed["fixed"]),
        broken=len(changed["broken"]),
        other=len(changed["other"]),
        shown=[_example(task, rows[index], index, before, after) for index in picked],
    )


def _example(
    task: ModelTask, row: Mapping[str, Any], index: int, before: Evaluation, after: Evaluation
) -> Example:
    inputs, answer = task.shown(row)
    in_parts = any(0 < score < 1 for score in (*before.grades, *after.grades))
    return Example(
        row=origin(row, index),
        input={role: _small(value, role) for role, value in inputs.items()},
        label=_short(answer),
        before=_short(str(before.predictions[index])),
        after=_short(str(after.predictions[index])),
        was_right=before.grades[index] >= 0.5,
        is_right=after.grades[index] >= 0.5,
        shares=(before.grades[index], after.grades[index]) if in_parts else None,
    )


def _short(text: str) -> str:
    return text if len(text) <= LENGTH else text[: LENGTH - 1] + "…"


def _small(value: Any, role: str) -> str | Picture | list[Turn]:
    if role == "messages":
        turns = [Turn(role=str(turn["role"]), content=_short(turn["content"])) for turn in value]
        if len(turns) > TURNS:
            left = Turn(role="…", content=f"{len(turns) - TURNS} more")
            turns = [turns[0], left, *turns[len(turns) - TURNS + 1 :]]
        return turns
    if role != "image":
        return _short(str(value))
    from gradfix.tasks.images import read_image

    image = read_image(value, "example")
    image.thumbnail((SIDE, SIDE))
    grey = image.convert("L")
    if grey.convert("RGB").tobytes() == image.tobytes():
        image = grey  # in a third of the bytes
    written = io.BytesIO()
    image.save(written, format="PNG", optimize=True)
    return Picture(image="data:image/png;base64," + base64.b64encode(written.getvalue()).decode())
