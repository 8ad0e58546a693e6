"""All studies and how each is shown."""

from collections.abc import Callable
from dataclasses import dataclass, field

from studies import report_choices as choices
from studies import report_transports as transports
from studies.report import Records, Report
from studies.report_beyond import beyond


@dataclass(frozen=True)
class Study:
    """A study and how it is shown.

    Attributes:
        title: What it asks.
        report: Makes its part of the page from its records.
    """

    title: str
    report: Callable[[Records], Report] = field(repr=False)


STUDIES: dict[str, Study] = {
    "main": Study("Main results: all baselines", transports.main),
    "beyond": Study("Past the paper: aligned, re-voted, labelled by the source", beyond),
    "masks": Study("Mask strategies, under noisy and under oracle signs", choices.masks),
    "votes": Study("Majority against mean, over α", choices.votes),
    "sampling": Study("How the support set is chosen", transports.sampling),
    "merging": Study("Several tasks, and several sources", choices.merging),
    "signs": Study("How many signs are right", choices.signs),
    "pairs": Study("The independent pair and the close release", transports.pairs),
    "retention": Study("What is left of other tasks", transports.retention),
}
"""All studies, in the order of the page; the same keys as the plan's."""
