"""The sentences on top: is the new model better, by how much, how sure is that, and what made the difference."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gradfix.report.numbers import between, metric_name, number, percent, points

BETTER, WORSE, UNSURE, UNKNOWN, NOTHING = "better", "worse", "unsure", "unknown", "nothing"

BADGES = {
    BETTER: "Better, beyond chance",
    WORSE: "Worse, beyond chance",
    UNSURE: "Within chance",
    UNKNOWN: "Not measured on test data",
    NOTHING: "Not worth a transport",
}
"""What the badge beside the headline says, by state."""


@dataclass(frozen=True)
class Verdict:
    """What a result says first: on top of a page, of a card, and on the terminal.

    Attributes:
        state: One of ``BADGES``.
        headline: One sentence that can be quoted alone, interval and control included.
        beside: What stands beside it: where the gain comes from, and naive addition where that does better.
    """

    state: str
    headline: str
    beside: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """All sentences, for a terminal or a card."""
        return " ".join((self.headline, *self.beside))


def transport_verdict(record: Mapping[str, Any]) -> Verdict:
    """Judge a transport.

    Args:
        record: What ``gradfix.json`` holds.

    Returns:
        The verdict.
    """
    alpha, judgement = record.get("alpha") or {}, record.get("judgement") or {}
    told = "gain" in judgement and bool(judgement["gain"])
    if alpha.get("alpha") == 0:
        naive = _naive(judgement) if told else None
        return Verdict(NOTHING, _nothing(alpha, record.get("method") or {}), (naive,) if naive else ())
    if not told:
        return _unjudged(record)
    gain, base, new = judgement["gain"], judgement["base"], judgement["transported"]
    sure = excludes_zero(gain)
    state = UNSURE if not sure else BETTER if gain["value"] > 0 else WORSE
    numbers = f"{percent(new['score'])} against {percent(base['score'])} {metric_name(new['metric'])}"
    bounds = between(gain)
    samples = f"{gain['n']:,} {judgement['data']} samples"
    interval = f"{percent(0.95, 0)} interval {bounds}, {samples}" if bounds else samples
    if state == UNSURE:
        headline = (
            f"The new model can't be told apart from the new base: {points(gain['value'])} points, which can be chance "
            f"({numbers}, {interval})"
        )
    else:
        size = points(abs(gain["value"])).lstrip("+")
        headline = f"The new model is {size} points {state} than the new base ({numbers}, {interval})"
    control = _control(judgement.get("over_control"))
    headline += f", and {control}." if control else "."
    beside = (_share(judgement), _naive(judgement), _runner_up(record), _caution(judgement))
    return Verdict(state, headline, tuple(filter(None, beside)))


def _nothing(alpha: Mapping[str, Any], method: Mapping[str, Any]) -> str:
    """Say that the new base is better left alone, and what was tried."""
    if alpha.get("chosen_on") == "given":
        return "Nothing was added to the new base: α = 0 was given."
    on = f"{alpha.get('samples', 0):,} " + (
        "validation samples" if alpha.get("chosen_on") == "validation" else "samples held out in turn"
    )
    others = [
        str(one["label"]) for one in method.get("candidates") or () if one["name"] != method.get("name")
    ]
    tried = ", ".join(others) if others else f"{len(alpha.get('curve') or ())} values of α"
    return (
        f"Do not transport: on {on} nothing that was tried ({tried}) is better than the new base as it is, so the "
        "output is the new base with the task's head."
    )


def _runner_up(record: Mapping[str, Any]) -> str | None:
    """Name the method that was chosen and the next best, with the difference on the samples that chose."""
    method = record.get("method") or {}
    second = method.get("runner_up")
    chosen = next((one for one in method.get("candidates") or () if one["name"] == method.get("name")), None)
    if not second or chosen is None:
        return None
    over = second["over"]
    bounds = f" ({between(over)})" if between(over) else ""
    judged = "validation samples" if method.get("chosen_on") == "validation" else "samples held out in turn"
    trained = method["name"] == "few-shot"
    alone = (
        " Your samples alone did better than the fine-tune: the model was trained on them." if trained else ""
    )
    return (
        f"Of the methods, {chosen['label']} was chosen; the runner-up was {second['label']}: "
        f"{points(over['value'])} points over it on {over['n']:,} {judged}{bounds}.{alone}"
    )


def _unjudged(record: Mapping[str, Any]) -> Verdict:
    """Say what the samples that chose can tell, where no others were given to judge on."""
    alpha = record.get("alpha") or {}
    curve = alpha.get("curve") or ()
    start = next((point for point in curve if point["alpha"] == 0), None)
    chosen = next((point for point in curve if point["alpha"] == alpha.get("alpha")), None)
    test = "Give --test data for a verdict with an interval and a control."
    ask = tuple(filter(None, (_runner_up(record), test)))
    if chosen is None:
        return Verdict(UNKNOWN, "This model was not measured.", ask)
    where = f"On {alpha['samples']:,} samples held out in turn"
    if start is None:
        return Verdict(
            UNKNOWN,
            f"{where}, its loss is {number(chosen['loss'])} and its score {percent(chosen['score'])}.",
            ask,
        )
    went = (
        f"{where}, the loss went from {number(start['loss'])} to {number(chosen['loss'])} and the score from "
        f"{percent(start['score'])} to {percent(chosen['score'])} at α = {alpha['alpha']:g}."
    )
    return Verdict(UNKNOWN, went, ask)


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


def _control(over: Mapping[str, Any] | None) -> str:
    """Compare with the control in half a sentence."""
    if not over:
        return ""
    bounds = f" ({between(over)})" if between(over) else ""
    copy = "the control, a shuffled copy of the fine-tune moved with the same samples,"
    if not excludes_zero(over):
        return f"{copy} does as well within chance: {points(over['value'])} points over it{bounds}"
    distance = points(abs(over["value"])).lstrip("+")
    if over["value"] > 0:
        return f"{distance} points better than {copy.rstrip(',')}{bounds}"
    return f"{copy} is {distance} points better still{bounds}"


def _share(judgement: Mapping[str, Any]) -> str | None:
    """Say where a sure gain comes from."""
    share, over = share_from_source(judgement), judgement.get("over_control") or {}
    if share is None:
        return None
    if excludes_zero(over) and over["value"] > 0:
        rest = "" if share > 0.995 else ", the rest from the labelled samples"
        return f"About {percent(share, 0)} of the gain comes from the source fine-tune{rest}."
    return "So the labelled samples made the difference, and not the source fine-tune."


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
