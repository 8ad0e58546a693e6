"""Which orderings of the paper hold on the lab's pair: sentences made from the records, none typed by hand."""

from collections.abc import Sequence
from dataclasses import dataclass

from gradfix.demo.bench import CLOSE, INDEPENDENT
from gradfix.evaluation.intervals import Interval
from gradfix.transport.comparison import CONTROL, FEW_SHOT, FULL, ORACLE, ZERO_SHOT
from studies.cells import by_draw, grouped, paired, points, validated, where
from studies.units import Record

MARGIN = 0.02
"""Two scores nearer than this count as about the same."""

SHARE = 0.9
"""Of full fine-tuning, what the oracle mask is expected to reach."""


@dataclass(frozen=True)
class Claim:
    """An ordering that the paper reports.

    Attributes:
        text: The ordering.
        better: Method expected to be better, or to be about the same.
        worse: Method it is compared to.
        budgets: Samples a class at which it is claimed; None for all.
        share: Part of the second method's score that is to be reached.
        same: Whether the two are claimed to be about the same.
        strict: Whether being equal is not enough.
        pair: On which pair.
    """

    text: str
    better: str
    worse: str
    budgets: tuple[int, ...] | None = None
    share: float = 1.0
    same: bool = False
    strict: bool = False
    pair: str = INDEPENDENT


CLAIMS = (
    Claim("naive addition ≈ the new base as it is", "naive", ZERO_SHOT, same=True),
    Claim("majority ≥ mean vote at 1 and 2 samples a class", "gradfix", "mean", (1, 2)),
    Claim("agreement ≥ force", "gradfix", "force"),
    Claim("force ≥ random mask", "force", "random"),
    Claim("oracle mask ≥ 90 % of full fine-tuning", ORACLE, FULL, share=SHARE),
    Claim("GradFix > the new base as it is", "gradfix", ZERO_SHOT, strict=True),
    Claim("GradFix > the shuffled control", "gradfix", CONTROL, strict=True),
    Claim("GradFix > few-shot fine-tuning", "gradfix", FEW_SHOT, strict=True),
    Claim("close release: naive addition ≥ GradFix", "naive", "gradfix", pair=CLOSE),
    Claim("close release: GradFix > the shuffled control", "gradfix", CONTROL, strict=True, pair=CLOSE),
)


@dataclass(frozen=True)
class Case:
    """A claim on one task at one budget.

    Attributes:
        protocol: Where α is from: ``cross-fitting`` or ``validation``.
        task: The task.
        budget: Samples a class.
        difference: Paired by draw.
    """

    protocol: str
    task: str
    budget: int
    difference: Interval


PROTOCOLS = {"cross-fitting": ("baselines", "few-shot"), "validation": ("validated",)}
"""Where α comes from, and the experiments whose records have it so."""


def cases(claim: Claim, records: Sequence[Record]) -> list[Case]:
    """Measure a claim wherever its methods were.

    Args:
        claim: The ordering.
        records: Of all experiments.

    Returns:
        A case a protocol, task and budget.
    """
    found = []
    known = [*records, *validated(records)]
    for protocol, experiments in PROTOCOLS.items():
        measured = where(known, experiment=experiments, pair=claim.pair)
        for (task, budget), cell in grouped(measured, lambda r: (r["task"], r["budget"])).items():
            if claim.budgets is None or budget in claim.budgets:
                target = {draw: claim.share * score for draw, score in by_draw(cell, claim.worse).items()}
                difference = paired(by_draw(cell, claim.better), target)
                if difference is not None:
                    found.append(Case(protocol, task, budget, difference))
    return found


def verdict(claim: Claim, difference: Interval) -> str:
    """Judge one case.

    Args:
        claim: The ordering.
        difference: Measured.

    Returns:
        ``holds``, ``holds, within chance``, or ``does not hold``.
    """
    if claim.same:
        if abs(difference.value) > MARGIN:
            return "does not hold"
        inside = difference.low is not None and max(-difference.low, difference.high or 0.0) <= MARGIN
        return "holds" if inside else "holds, within chance"
    if difference.value < 0 or (claim.strict and difference.value <= 0):
        return "does not hold"
    return "holds" if difference.excludes_zero else "holds, within chance"


@dataclass(frozen=True)
class Finding:
    """What the studies say of a claim.

    Attributes:
        claim: The ordering, and whether it holds.
        strength: In how many cases beyond chance.
        cases: Every difference it rests on.
    """

    claim: str
    strength: str
    cases: str

    def markdown(self) -> str:
        """Give the line of a page.

        Returns:
            An item of a list.
        """
        return f"- **{self.claim}** {self.strength}. {self.cases}"


def finding(claim: Claim, found: Sequence[Case]) -> Finding:
    """Say whether a claim holds, and by how much.

    Args:
        claim: The ordering.
        found: Its cases; at least one.

    Returns:
        The finding.
    """
    verdicts = [verdict(claim, case.difference) for case in found]
    n, holding, sure = len(found), sum(each.startswith("holds") for each in verdicts), verdicts.count("holds")
    against = sum(
        each == "does not hold" and case.difference.excludes_zero
        for each, case in zip(verdicts, found, strict=True)
    )
    overall = (
        "holds" if sure == n else "holds on average" if holding == n else f"holds in {holding} of {n} cases"
    )
    overall = overall if holding else "does not hold"
    beyond = f"(beyond chance in {sure} of {n}" + (f", the opposite in {against})" if against else ")")
    parts = []
    for protocol in dict.fromkeys(case.protocol for case in found):
        cells = [case for case in found if case.protocol == protocol]
        listed = ", ".join(f"{case.task} {case.budget}: {points(case.difference)}" for case in cells)
        parts.append(f"α by {protocol}: {listed}")
    return Finding(f"{claim.text}: {overall}", beyond, f"{'; '.join(parts)}.")


def findings(records: Sequence[Record]) -> list[Finding]:
    """Judge all claims that were measured.

    Args:
        records: Of all experiments.

    Returns:
        A finding a claim.
    """
    measured = ((claim, cases(claim, records)) for claim in CLAIMS)
    return [finding(claim, found) for claim, found in measured if found]
