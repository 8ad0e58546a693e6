"""Inputs whose prediction changed, shown as they are."""

from gradfix.report.elements import Section
from gradfix.report.facts import Example
from gradfix.report.markup import render
from gradfix.report.record import TransportRecord


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
    better, worse, same = (
        ("were answered better than before", "worse", "otherwise but as well")
        if examples.shown[0].shares
        else ("went from wrong to right", "from right to wrong", "from one wrong answer to another")
    )
    lead = f"{examples.fixed:,} samples {better}, {examples.broken:,} {worse}"
    lead += f", {examples.other:,} {same}." if examples.other else "."
    shown = [(entry, *_outcome(entry)) for entry in examples.shown]
    return Section(
        "examples", "What changed, on real inputs", lead, [render("examples.html", examples=shown)]
    )


def _outcome(example: Example) -> tuple[str, str]:
    if example.shares is not None:
        was, now = example.shares
        kind = "fixed" if now > was else "broken" if now < was else "other"
        return kind, f"{was:.0%} of it right before, {now:.0%} now"
    if example.is_right and not example.was_right:
        return "fixed", "✓ now right"
    if example.was_right and not example.is_right:
        return "broken", "✗ now wrong"
    return "other", "✗ still wrong"
