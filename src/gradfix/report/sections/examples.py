"""Inputs whose prediction changed, shown as they are."""

from gradfix.report.elements import Section
from gradfix.report.facts import Example, Picture
from gradfix.report.markup import Content, Html, tag
from gradfix.report.record import TransportRecord

_IMAGE = "data:image/png;base64,"


def examples_section(record: TransportRecord) -> Section | None:
    """Show inputs whose prediction changed from the new base to the transported model.

    Args:
        record: What ``gradfix.json`` holds.

    Returns:
        The section; None where no predictions were compared, or none changed.
    """
    examples = record.examples
    if examples is None or not examples.shown:
        return None
    lead = f"{examples.fixed:,} samples went from wrong to right, {examples.broken:,} from right to wrong"
    lead += f", {examples.other:,} from one wrong answer to another." if examples.other else "."
    cards = tag("div", *(_card(entry) for entry in examples.shown), class_="examples")
    note = tag(
        "p", "First the new base's answer, then the new model's; the right answer below.", class_="note"
    )
    return Section("examples", "What changed, on real inputs", lead, [cards, note])


def _card(entry: Example) -> Html:
    outcome = {(False, True): "fixed", (True, False): "broken"}.get(
        (entry.was_right, entry.is_right), "other"
    )
    said = {"fixed": "✓ now right", "broken": "✗ now wrong", "other": "✗ still wrong"}[outcome]
    return tag(
        "article",
        *(_input(role, value) for role, value in entry.input.items()),
        tag(
            "p",
            tag("span", entry.before, class_="before"),
            " → ",
            tag("strong", entry.after),
            class_="change",
        ),
        tag("p", said, None if outcome == "fixed" else f"; right: {entry.label}", class_="outcome"),
        class_=f"example {outcome}",
        title=entry.row or None,
    )


def _input(role: str, value: str | Picture) -> Content:
    if isinstance(value, str):
        return tag("p", value, class_="text")
    # Only what the tool itself made: another address would be a request to somewhere.
    return tag("img", src=value.image, alt=f"the {role}") if value.image.startswith(_IMAGE) else None
