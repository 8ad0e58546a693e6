"""The sentences on top: is the new model better, by how much, how sure is that, and what made the difference."""

from dataclasses import dataclass

from gradfix.report.facts import Alpha, Interval, Judgement, Method
from gradfix.report.numbers import between, metric_name, number, percent, points, score_name, shown_score
from gradfix.report.record import TransportRecord

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


def transport_verdict(record: TransportRecord) -> Verdict:
    """Judge a transport.

    Args:
        record: What ``gradfix.json`` holds.

    Returns:
        The verdict.
    """
    alpha, judgement = record.alpha, record.judgement
    if alpha.alpha == 0:
        naive = None if judgement is None else _naive(judgement)
        return Verdict(NOTHING, _nothing(alpha, record.method), (naive,) if naive else ())
    if judgement is None:
        return _unjudged(record)
    gain, base, new = judgement.gain, judgement.base, judgement.transported
    state = UNSURE if not gain.excludes_zero else BETTER if gain.value > 0 else WORSE
    scores = [shown_score(one.score, new.metric) for one in (new, base)]
    numbers = f"{scores[0]} against {scores[1]} {metric_name(new.metric)}"
    bounds = between(gain)
    samples = f"{gain.n:,} {judgement.data} samples"
    interval = f"{percent(0.95, 0)} interval {bounds}, {samples}" if bounds else samples
    if state == UNSURE:
        headline = (
            f"The new model can't be told apart from the new base: {points(gain.value)} points, which can be chance "
            f"({numbers}, {interval})"
        )
    else:
        size = points(abs(gain.value)).lstrip("+")
        headline = f"The new model is {size} points {state} than the new base ({numbers}, {interval})"
    headline += f", and {_control(judgement.over_control)}."
    beside = (_share(judgement), _naive(judgement), _runner_up(record.method), _caution(judgement))
    return Verdict(state, headline, tuple(filter(None, beside)))


def _nothing(alpha: Alpha, method: Method | None) -> str:
    """Say that the new base is better left alone, and what was tried."""
    if alpha.chosen_on == "given":
        return "Nothing was added to the new base: α = 0 was given."
    judged = "validation samples" if alpha.chosen_on == "validation" else "samples held out in turn"
    others = [] if method is None else [one.label for one in method.candidates if one.name != method.name]
    tried = ", ".join(others) if others else f"{len(alpha.curve)} values of α"
    return (
        f"Do not transport: on {alpha.samples:,} {judged} nothing that was tried ({tried}) is better than the new "
        "base as it is, so the output is the new base with the task's head."
    )


def _runner_up(method: Method | None) -> str | None:
    """Name the method that was chosen and the next best, with the difference on the samples that chose."""
    if method is None or method.runner_up is None:
        return None
    chosen = next(one for one in method.candidates if one.name == method.name)
    over = method.runner_up.over
    bounds = f" ({between(over)})" if between(over) else ""
    judged = "validation samples" if method.chosen_on == "validation" else "samples held out in turn"
    told = (
        f"Of the methods, {chosen.label} was chosen; the runner-up was {method.runner_up.label}: "
        f"{points(over.value)} points over it on {over.n:,} {judged}{bounds}."
    )
    if method.name == "few-shot":
        told += " Your samples alone did better than the fine-tune: the model was trained on them."
    return told


def _unjudged(record: TransportRecord) -> Verdict:
    """Say what the samples that chose can tell, where no others were given to judge on."""
    alpha, metric = record.alpha, record.metric
    score = score_name(metric)
    test = "Give --test data for a verdict with an interval and a control."
    ask = tuple(filter(None, (_runner_up(record.method), test)))
    chosen = alpha.at(alpha.alpha)
    if chosen is None:
        return Verdict(UNKNOWN, "This model was not measured.", ask)
    where = f"On {alpha.samples:,} samples held out in turn"
    start = alpha.at(0.0)
    if start is None:
        told = (
            f"{where}, its loss is {number(chosen.loss)} and its {score} {shown_score(chosen.score, metric)}."
        )
        return Verdict(UNKNOWN, told, ask)
    told = (
        f"{where}, the loss went from {number(start.loss)} to {number(chosen.loss)} and the {score} from "
        f"{shown_score(start.score, metric)} to {shown_score(chosen.score, metric)} at α = {alpha.alpha:g}."
    )
    return Verdict(UNKNOWN, told, ask)


def share_from_source(judgement: Judgement) -> float | None:
    """Estimate what part of the gain comes from the source fine-tune rather than from the labelled samples.

    The control is the same transport of the task vector's values in random order, masked by the same votes: what it
    gains, the samples gave.

    Args:
        judgement: A record's.

    Returns:
        In [0, 1]; None where there is no sure gain to divide.
    """
    gain, over = judgement.gain, judgement.over_control
    if not gain.excludes_zero or gain.value <= 0:
        return None
    return min(1.0, max(0.0, over.value / gain.value))


def _control(over: Interval) -> str:
    """Compare with the control in half a sentence."""
    bounds = f" ({between(over)})" if between(over) else ""
    copy = "the control, a shuffled copy of the fine-tune moved with the same samples,"
    if not over.excludes_zero:
        return f"{copy} does as well within chance: {points(over.value)} points over it{bounds}"
    distance = points(abs(over.value)).lstrip("+")
    if over.value > 0:
        return f"{distance} points better than {copy.rstrip(',')}{bounds}"
    return f"{copy} is {distance} points better still{bounds}"


def _share(judgement: Judgement) -> str | None:
    """Say where a sure gain comes from."""
    share, over = share_from_source(judgement), judgement.over_control
    if share is None:
        return None
    if over.excludes_zero and over.value > 0:
        rest = "" if share > 0.995 else ", the rest from the labelled samples"
        return f"About {percent(share, 0)} of the gain comes from the source fine-tune{rest}."
    return "So the labelled samples made the difference, and not the source fine-tune."


def _naive(judgement: Judgement) -> str | None:
    naive, new, over = judgement.naive, judgement.transported, judgement.over_naive
    if naive is None:
        return None
    # Records without the paired interval: a gap wider than both intervals is said, a smaller one is not.
    sure = _apart(naive.interval, new.interval) if over is None else over.excludes_zero
    if not sure or new.score >= naive.score:
        return None
    return (
        f"Adding the whole task vector does better still: {shown_score(naive.score, naive.metric)} at α = 1; for that, "
        "run with --mask none --alpha 1."
    )


def _apart(one: Interval, other: Interval) -> bool:
    if one.low is None or one.high is None or other.low is None or other.high is None:
        return False
    return one.low > other.high or other.low > one.high


def _caution(judgement: Judgement) -> str | None:
    if judgement.data != "validation":
        return None
    return "α was chosen on the same validation samples, so this flatters the new model a little."
