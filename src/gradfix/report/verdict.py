"""The sentences on top: is the new model better, by how much, how sure is that, and what made the difference."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gradfix.report.numbers import between, metric_name, percent, points

BETTER, WORSE, UNSURE, UNKNOWN = "better", "worse", "unsure", "unknown"

BADGES = {
    BETTER: "Better, beyond chance",
    WORSE: "Worse, beyond chance",
    UNSURE: "Within chance",
    UNKNOWN: "Not measured on test data",
}
"""What the badge beside the headline says, by state."""


@dataclass(frozen=True)
class Verdict:
    """The top of a page.

    Attributes:
        state: One of ``BADGES``.
        headline: One sentence that can be quoted alone.
        beside: What stands beside it: the control, and naive addition where that does better.
    """

    state: str
    headline: str
    beside: tuple[str, ...] = ()


def transport_verdict(record: Mapping[str, Any]) -> Verdict:
    """Judge a transport.

    Args:
        record: What ``gradfix.json`` holds.

    Returns:
        The verdict; where nothing was measured on held-out data, or nothing was transported, the record's own words.
    """
    judgement = record.get("judgement")
    if not judgement or not judgement.get("gain") or not record.get("alpha", {}).get("alpha"):
        own = str(record.get("verdict") or "This model was not measured.")
        first, separator, rest = own.partition("; give ")
        return Verdict(UNKNOWN, first + "." if separator else own, (f"Give {rest}",) if separator else ())
    gain, base, new = judgement["gain"], judgement["base"], judgement["transported"]
    sure = excludes_zero(gain)
    state = UNSURE if not sure else BETTER if gain["value"] > 0 else WORSE
    metric = metric_name(new["metric"])
    bounds = between(gain)
    on = f"{gain['n']:,} {judgement['data']} samples"
    interval = f"95 % interval of the difference {bounds}, {on}" if bounds else on
    size, numbers = (
        points(abs(gain["value"])).lstrip("+"),
        f"{percent(new['score'])} against {percent(base['score'])}",
    )
    if state == UNSURE:
        headline = (
            f"The new model can't be told apart from the new base: {numbers} {metric}, "
            f"{points(gain['value'])} points, which can be chance ({interval})."
        )
    else:
        headline = (
            f"The new model is {size} points {state} than the new base: {numbers} {metric} ({interval})."
        )
    return Verdict(
        state, headline, tuple(filter(None, (*_control(judgement), _naive(judgement), _caution(judgement))))
    )


def excludes_zero(interval: Mapping[str, Any]) -> bool:
    """Tell whether a difference is beyond chance.

    Args:
        interval: With ``low`` and ``high``, which may be None.

    Returns:
        Whether both ends are on one side of 0.
    """
    low, high = interval.get("low"), interval.get("high")
    return low is not None and high is not None and (low > 0 or high < 0)


def share_from_source(judgement: Mapping[str, Any]) -> float | None:
    """Estimate what part of the gain comes from the source fine-tune rather than from the labelled samples.

    The control is the same transport of the task vector's values in random order, masked by the same votes: what it
    gains, the samples gave.

    Args:
        judgement: A record's.

    Returns:
        In [0, 1]; None where there is no sure gain to divide.
    """
    gain, over = judgement.get("gain"), judgement.get("over_control")
    if not gain or not over or not excludes_zero(gain) or gain["value"] <= 0:
        return None
    return float(min(1.0, max(0.0, over["value"] / gain["value"])))


def _control(judgement: Mapping[str, Any]) -> list[str]:
    over = judgement.get("over_control")
    if not over:
        return []
    bounds = between(over)
    measured = f"{points(over['value'])} points over it" + (f", 95 % interval {bounds}" if bounds else "")
    share = share_from_source(judgement)
    if share is None:
        return [f"The control, the same transport of a shuffled task vector: {measured}."]
    if excludes_zero(over) and over["value"] > 0:
        return [
            f"About {percent(share, 0)} of the gain comes from the source fine-tune: a shuffled copy of it, moved with "
            f"the same labelled samples, gains only the rest ({measured})."
        ]
    return [
        f"About {percent(share, 0)} of the gain comes from the source fine-tune, within chance: a shuffled copy of it, "
        f"moved with the same labelled samples, does as well ({measured}). The samples made the difference."
    ]


def _naive(judgement: Mapping[str, Any]) -> str | None:
    naive, over = judgement.get("naive"), judgement.get("over_naive")
    if not naive:
        return None
    behind = judgement["transported"]["score"] - naive["score"]
    if over is not None and not excludes_zero(over):
        return None
    # Records without the paired interval: a gap wider than both intervals is said, a smaller one is not.
    if over is None and not _apart(naive["interval"], judgement["transported"]["interval"]):
        return None
    if behind >= 0:
        return None
    return (
        f"Adding the whole task vector does better still: {percent(naive['score'])} at α = 1; for that, run with "
        "--mask none --alpha 1."
    )


def _apart(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    ends = (one["low"], one["high"], other["low"], other["high"])
    return None not in ends and (one["low"] > other["high"] or other["low"] > one["high"])


def _caution(judgement: Mapping[str, Any]) -> str | None:
    if judgement["data"] != "validation":
        return None
    return "α was chosen on the same validation samples, so this flatters the new model a little."
