"""What would help more, told from the record: each piece of advice names the option that follows it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gradfix.report.elements import Section
from gradfix.report.markup import Html, tag
from gradfix.report.numbers import percent, points
from gradfix.report.verdict import excludes_zero, share_from_source


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


def advice(record: Mapping[str, Any]) -> list[Advice]:
    """Tell what would help more.

    Args:
        record: What ``gradfix.json`` holds.

    Returns:
        The most telling first; none where nothing stands out.
    """
    judgement = record.get("judgement") or {}
    found = [_measure(record), _naive(judgement), _fine_tune(judgement), _settle(judgement), _samples(record)]
    found += [_further(record), _format(record)]
    return [entry for entry in found if entry is not None]


def advice_section(record: Mapping[str, Any]) -> Section | None:
    """Write the advice.

    Args:
        record: What ``gradfix.json`` holds.

    Returns:
        The section; None without advice.
    """
    found = advice(record)
    if not found:
        return None
    return Section("advice", "What would help more", "", [tag("ol", *map(_item, found), class_="advice")])


def _item(entry: Advice) -> Html:
    option = tag("code", entry.option) if entry.option else None
    return tag("li", tag("strong", entry.title), tag("p", entry.reason), option)


def _measure(record: Mapping[str, Any]) -> Advice | None:
    judgement = record.get("judgement")
    if judgement and judgement.get("data") == "test":
        return None
    why = (
        "Here the same samples chose α and judged it, which flatters the result a little."
        if judgement
        else "Without them nobody knows whether the new model is better, or by how much."
    )
    return Advice("Give labelled test samples that chose nothing", why, "--test test.jsonl")


def _naive(judgement: Mapping[str, Any]) -> Advice | None:
    naive, new = judgement.get("naive"), judgement.get("transported")
    if not naive or not new or naive["score"] <= new["score"]:
        return None
    over = judgement.get("over_naive")
    if over is not None and not excludes_zero(over):
        return None
    return Advice(
        "Try the whole task vector",
        f"Added as it is, it scores {percent(naive['score'])} against {percent(new['score'])} here: the new base is "
        "close enough to the old one for the fine-tune to carry over unmasked.",
        "--mask none --alpha 1",
    )


def _fine_tune(judgement: Mapping[str, Any]) -> Advice | None:
    over = judgement.get("over_control")
    if share_from_source(judgement) is None or not over or (excludes_zero(over) and over["value"] > 0):
        return None
    return Advice(
        "Compare with few-shot fine-tuning",
        f"The shuffled control does as well ({points(over['value'])} points), so the labelled samples do the work, and "
        "fine-tuning on them may use them better. One command measures it beside all baselines.",
        "gradfix compare",
    )


def _settle(judgement: Mapping[str, Any]) -> Advice | None:
    gain = judgement.get("gain")
    if not gain or excludes_zero(gain) or gain.get("low") is None or not gain["value"]:
        return None
    half = (gain["high"] - gain["low"]) / 2
    # The interval narrows with the root of the number of samples.
    needed = math.ceil(gain["n"] * (half / abs(gain["value"])) ** 2 * 1.1)
    if needed > 1_000_000:
        return None
    return Advice(
        "Judge on more test samples",
        f"A difference of {points(gain['value'])} points would be beyond chance on about {_round(needed):,} samples; "
        f"{gain['n']:,} were given.",
        "--test",
    )


def _round(count: int) -> int:
    step = int("1".ljust(max(1, len(str(count)) - 1), "0"))
    return -(-count // step) * step


def _samples(record: Mapping[str, Any]) -> Advice | None:
    votes = record.get("votes") or {}
    stability = votes.get("stability")
    if not stability or 1 - stability["split_half"] < 0.15:
        return None
    low, high = sorted((1 - stability["redraw"], 1 - stability["split_half"]))
    return Advice(
        "Label more samples",
        f"With another {votes['samples']} samples between {percent(low, 0)} and {percent(high, 0)} of the signs would "
        "be different, so the mask is not settled yet. Each sample costs one backward pass.",
        "--support",
    )


def _further(record: Mapping[str, Any]) -> Advice | None:
    choice = record.get("alpha") or {}
    curve = choice.get("curve") or []
    if len(curve) < 2 or choice.get("alpha") != curve[-1]["alpha"] or not choice.get("alpha"):
        return None
    largest = curve[-1]["alpha"]
    return Advice(
        "Go further along α",
        f"The loss was still falling at the largest candidate, α = {largest:g}.",
        f"--alpha {largest:g},{largest * 1.5:g},{largest * 2:g}",
    )


def _format(record: Mapping[str, Any]) -> Advice | None:
    lost = (record.get("applied") or {}).get("lost_share") or 0.0
    if lost < 0.01:
        return None
    return Advice(
        "Write in a wider number format",
        f"{percent(lost)} of the changed weights were rounded back to the new base's value.",
        "--dtype float32",
    )
