"""What would help more, told from the record: each piece of advice names the option that follows it."""

import math
from dataclasses import dataclass

from gradfix.report.elements import Section
from gradfix.report.facts import Judgement
from gradfix.report.markup import render
from gradfix.report.numbers import percent, points, shown_score
from gradfix.report.record import TransportRecord
from gradfix.report.verdict import share_from_source


@dataclass(frozen=True)
class Advice:
    """One piece of advice.

    Attributes:
        title: What to do.
        reason: What in the record says so.
        option: What to type, or nothing.
    """

    title: str
    reason: str
    option: str = ""


def advice(record: TransportRecord) -> list[Advice]:
    """Tell what would help more.

    Args:
        record: What ``gradfix.json`` holds.

    Returns:
        The most telling first; none where nothing stands out.
    """
    found = [_measure(record)]
    if record.judgement is not None:
        found += [check(record.judgement) for check in (_naive, _fine_tune, _settle)]
    found += [_samples(record), _further(record), _format(record)]
    return [entry for entry in found if entry is not None]


def advice_section(record: TransportRecord) -> Section | None:
    """Write the advice.

    Args:
        record: What ``gradfix.json`` holds.

    Returns:
        The section; None without advice.
    """
    found = advice(record)
    if not found:
        return None
    return Section("advice", "What would help more", "", [render("advice.html", advice=found)])


def _measure(record: TransportRecord) -> Advice | None:
    if record.judgement is not None and record.judgement.data == "test":
        return None
    why = (
        "Here the same samples chose α and judged it, which flatters the result a little."
        if record.judgement is not None
        else "Without them nobody knows whether the new model is better, or by how much."
    )
    return Advice("Give labelled test samples that chose nothing", why, "--test test.jsonl")


def _naive(judgement: Judgement) -> Advice | None:
    naive, new, over = judgement.naive, judgement.transported, judgement.over_naive
    if naive is None or naive.score <= new.score or (over is not None and not over.excludes_zero):
        return None
    return Advice(
        "Try the whole task vector",
        f"Added as it is, it scores {shown_score(naive.score, naive.metric)} against "
        f"{shown_score(new.score, new.metric)} here: the new base is "
        "close enough to the old one for the fine-tune to carry over unmasked.",
        "--mask none --alpha 1",
    )


def _fine_tune(judgement: Judgement) -> Advice | None:
    over = judgement.over_control
    if share_from_source(judgement) is None or (over.excludes_zero and over.value > 0):
        return None
    return Advice(
        "Compare with few-shot fine-tuning",
        f"The shuffled control does as well ({points(over.value)} points), so the labelled samples do the work, and "
        "fine-tuning on them may use them better. One command measures it beside all baselines.",
        "gradfix compare",
    )


def _settle(judgement: Judgement) -> Advice | None:
    gain = judgement.gain
    if gain.low is None or gain.high is None or gain.excludes_zero or not gain.value:
        return None
    ratio = (gain.high - gain.low) / 2 / abs(gain.value)
    if ratio > 1000:
        return None
    # The interval narrows with the root of the number of samples.
    needed = math.ceil(gain.n * ratio**2 * 1.1)
    if needed > 1_000_000:
        return None
    return Advice(
        "Judge on more test samples",
        f"A difference of {points(gain.value)} points would be beyond chance on about {_round(needed):,} samples; "
        f"{gain.n:,} were given.",
        "--test",
    )


def _round(count: int) -> int:
    step = int("1".ljust(max(1, len(str(count)) - 1), "0"))
    return -(-count // step) * step


def _samples(record: TransportRecord) -> Advice | None:
    votes = record.votes
    if votes is None or votes.stability is None or 1 - votes.stability.split_half < 0.15:
        return None
    low, high = votes.stability.mask_change
    return Advice(
        "Label more samples",
        f"With another {votes.samples} samples between {percent(low, 0)} and {percent(high, 0)} of the signs would "
        "be different, so the mask is not settled yet. Each sample costs one backward pass.",
        "--support",
    )


def _further(record: TransportRecord) -> Advice | None:
    choice = record.alpha
    if len(choice.curve) < 2 or not choice.alpha or choice.alpha != choice.curve[-1].alpha:
        return None
    largest = choice.alpha
    return Advice(
        "Go further along α",
        f"The loss was still falling at the largest candidate, α = {largest:g}.",
        f"--alpha {largest:g},{largest * 1.5:g},{largest * 2:g}",
    )


def _format(record: TransportRecord) -> Advice | None:
    lost = 0.0 if record.applied is None else record.applied.lost_share
    if lost < 0.01:
        return None
    return Advice(
        "Write in a wider number format",
        f"{percent(lost)} of the changed weights were rounded back to the new base's value.",
        "--dtype float32",
    )
