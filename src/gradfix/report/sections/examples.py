"""Inputs whose prediction changed, shown as they are."""

from collections.abc import Mapping
from typing import Any

from gradfix.report.elements import Section
from gradfix.report.markup import Content, Html, tag

_IMAGE = "data:image/png;base64,"


def examples_section(record: Mapping[str, Any]) -> Section | None:
    """Show inputs whose prediction changed from the new base to the transported model.

    Args:
        record: What ``gradfix.json`` holds.

    Returns:
        The section; None where no predictions were compared, or none changed.
    """
    examples = record.get("examples") or {}
    shown = examples.get("shown") or []
    if not shown:
        return None
    fixed, broken, other = (int(examples.get(key) or 0) for key in ("fixed", "broken", "other"))
    lead = f"{fixed:,} samples went from wrong to right, {broken:,} from right to wrong"
    lead += f", {other:,} from one wrong answer to another." if other else "."
    cards = tag("div", *(_card(entry) for entry in shown), class_="examples")
    note = tag(
        "p", "First the new base's answer, then the new model's; the right answer below.", class_="note"
    )
    return Section("examples", "What changed, on real inputs", lead, [cards, note])


def _card(entry: Mapping[str, Any]) -> Html:
    outcome = {(False, True): "fixed", (True, False): "broken"}.get(
        (bool(entry.get("was_right")), bool(entry.get("is_right"))), "other"
    )
    said = {"fixed": "✓ now right", "broken": "✗ now wrong", "other": "✗ still wrong"}[outcome]
    return tag(
        "article",
        *(_input(role, value) for role, value in (entry.get("input") or {}).items()),
        tag(
            "p",
            tag("span", str(entry.get("before", "")), class_="before"),
            " → ",
            tag("strong", str(entry.get("after", ""))),
            class_="change",
        ),
        tag(
            "p", said, None if outcome == "fixed" else f"; right: {entry.get('label', '')}", class_="outcome"
        ),
        class_=f"example {outcome}",
        title=str(entry.get("row") or "") or None,
    )


def _input(role: str, value: Any) -> Content:
    if isinstance(value, Mapping):
        source = value.get("image")
        # Only what the tool itself made: another address would be a request to somewhere.
        if isinstance(source, str) and source.startswith(_IMAGE):
            return tag("img", src=source, alt=f"the {role}")
        return None
    return tag("p", str(value), class_="text")
