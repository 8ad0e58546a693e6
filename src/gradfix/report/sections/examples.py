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
    lead = f"{examples.fixed:,} samples went from wrong to right, {examples.broken:,} from right to wrong"
    lead += f", {examples.other:,} from one wrong answer to another." if examples.other else "."
    shown = [(entry, *_outcome(entry)) for entry in examples.shown]
    return Section(
        "examples", "What changed, on real inputs", lead, [render("examples.html", examples=shown)]
    )


def _outcome(example: Example) -> tuple[str, str]:
    if example.is_right and not example.was_right:
        return "fixed", "✓ now right"
    if example.was_right and not example.is_right:
        return "broken", "✗ now wrong"
    return "other", "✗ still wrong"
