"""Which sections stand on a page, in which order, for each kind of record."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gradfix.report.elements import Section
from gradfix.report.markup import Content, joined, tag
from gradfix.report.numbers import between, duration, metric_name, percent, points
from gradfix.report.page import Page, Tile
from gradfix.report.sections.advice import advice_section
from gradfix.report.sections.costs import cost_section, inputs_section, seconds_of, short
from gradfix.report.sections.coverage import coverage_section, format_section
from gradfix.report.sections.examples import examples_section
from gradfix.report.sections.method import alpha_section, method_section, steps_section
from gradfix.report.sections.results import comparison_results, retention, transport_results, transported
from gradfix.report.sections.votes import alignment_section, votes_section
from gradfix.report.verdict import (
    BETTER,
    UNSURE,
    WORSE,
    Verdict,
    excludes_zero,
    share_from_source,
    transport_verdict,
)

Record = Mapping[str, Any]

_TRANSPORT: Sequence[Callable[[Record], Section | None]] = (
    transport_results,
    advice_section,
    method_section,
    alpha_section,
    steps_section,
    examples_section,
    coverage_section,
    votes_section,
    alignment_section,
    format_section,
    cost_section,
    inputs_section,
)


def transport_page(record: Record) -> Page:
    """Lay out a transport.

    Args:
        record: What ``gradfix.json`` holds.

    Returns:
        The page; sections without facts are left out.
    """
    inputs = record.get("inputs") or {}
    tuned, base = (_location(inputs, name) for name in ("source_tuned", "target_base"))
    return Page(
        title=f"{tuned} on {base}",
        above=joined(["gradfix moved ", tag("b", tuned), " to ", tag("b", base), _task(record)]),
        verdict=transport_verdict(record),
        tiles=_tiles(record),
        sections=_found(_TRANSPORT, record),
        foot=_foot(record),
    )


def _found(builders: Sequence[Callable[[Record], Section | None]], record: Record) -> list[Section]:
    return [section for section in (build(record) for build in builders) if section is not None]


def _location(inputs: Record, name: str) -> str:
    return short(str((inputs.get(name) or {}).get("location") or name.replace("_", " ")))


def _task(record: Record) -> Content:
    task = (record.get("recipe") or {}).get("task")
    return f" · {str(task).replace('-', ' ')}" if task else None


def _foot(record: Record) -> str:
    version = (record.get("versions") or {}).get("gradfix")
    made = f"Made by gradfix {version}" if version else "Made by gradfix"
    return f"{made} from the numbers in its JSON record; this page loads nothing from anywhere."


def _tiles(record: Record) -> list[Tile]:
    judgement, votes = record.get("judgement") or {}, record.get("votes") or {}
    tiles = []
    new = judgement.get("transported")
    if new:
        tiles.append(Tile("new model", percent(new["score"]), metric_name(new["metric"])))
    gain = judgement.get("gain")
    if gain:
        tiles.append(Tile("over the new base", f"{points(gain['value'])}", f"points, {between(gain)}"))
    share = share_from_source(judgement)
    if share is not None:
        sure = excludes_zero(judgement["over_control"])
        tiles.append(
            Tile("from the fine-tune", percent(share, 0), "of the gain" + ("" if sure else ", within chance"))
        )
    choice = record.get("alpha") or {}
    if choice.get("alpha") is not None:
        tiles.append(Tile("α", f"{choice['alpha']:g}", "scale of the update"))
    kept = (record.get("applied") or {}).get("kept_share")
    if kept is not None:
        tiles.append(Tile("kept", percent(kept, 0), "of the task vector"))
    seconds = seconds_of(record).values()
    if seconds:
        samples = votes.get("samples") or len(record.get("support") or ())
        tiles.append(Tile("cost", duration(sum(seconds)), f"{samples:,} labelled samples" if samples else ""))
    return tiles


def comparison_page(record: Record) -> Page:
    """Lay out a comparison of baselines.

    Args:
        record: What ``comparison.json`` holds.

    Returns:
        The page.
    """
    recipe = record.get("recipe") or {}
    rows, caption = record.get("rows") or [], str(record.get("caption") or "")
    metric = caption.partition(" on ")[0] or "score"
    sections = [comparison_results(rows, caption, metric), retention(rows)]
    sections += [
        _time_by_method(rows),
        inputs_section({"recipe": recipe, "command": "compare"} if recipe else {}),
    ]
    tuned, base = (short(str(recipe.get(name) or name)) for name in ("source_tuned", "target_base"))
    return Page(
        title=f"{tuned} on {base}, compared",
        above=joined(
            ["gradfix compared ways to move ", tag("b", tuned), " to ", tag("b", base), _task(record)]
        ),
        verdict=comparison_verdict(rows, metric),
        tiles=[],
        sections=[section for section in sections if section is not None],
        foot=_foot(record),
    )


def comparison_verdict(rows: Sequence[Record], metric: str) -> Verdict:
    """Judge the transport over several draws of the samples.

    Args:
        rows: Lines of a comparison.
        metric: What the score is.

    Returns:
        The verdict at the largest budget.
    """
    largest = max((row["budget"] for row in rows), default=0)
    found = {row["method"]: row for row in rows if row["budget"] == largest}
    ours, base = found.get(transported(list(found.values()))), found.get("zero-shot")
    if ours is None or base is None:
        return Verdict("", "How the methods compare.")
    gain, sure = ours["gain"], excludes_zero(ours["gain"])
    state = UNSURE if not sure else BETTER if gain["value"] > 0 else WORSE
    bounds = f" (95 % interval {between(gain)} points)" if between(gain) else ""
    chance = "" if sure else ", which can be chance"
    scores = f"{percent(ours['score']['value'])} {metric} against {percent(base['score']['value'])} of the new base"
    headline = (
        f"With {largest} labelled samples a class the transported model gets {scores}: "
        f"{points(gain['value'])} points{bounds}{chance}."
    )
    beside = []
    over = ours.get("over_control")
    if over:
        part = over["value"] / gain["value"] if sure and gain["value"] > 0 else None
        share = "" if part is None else percent(min(1.0, max(0.0, part)), 0)
        about = f": about {share} of the gain comes from the fine-tune" if share else ""
        doubt = "" if excludes_zero(over) else ", within chance"
        beside.append(
            f"Over the shuffled control it gains {points(over['value'])} points ({between(over)}){about}{doubt}."
        )
    rival = found.get("few-shot")
    if rival:
        behind = rival["score"]["value"] - ours["score"]["value"]
        word = "more" if behind > 0 else "less"
        beside.append(
            f"Few-shot fine-tuning on the same samples gets {percent(rival['score']['value'])}, "
            f"{points(abs(behind)).lstrip('+')} points {word}."
        )
    return Verdict(state, headline, tuple(beside))


def _time_by_method(rows: Sequence[Record]) -> Section | None:
    taken: dict[str, list[float]] = {}
    for row in rows:
        taken.setdefault(row["label"], []).extend(
            outcome.get("seconds") or 0.0 for outcome in row.get("outcomes") or ()
        )
    means = {label: sum(values) / len(values) for label, values in taken.items() if values and sum(values)}
    if not means:
        return None
    section = cost_section({"seconds": means})
    if section is None:
        return None
    return Section(
        "cost",
        "What each method cost",
        "Mean wall time a draw, choosing its settings included.",
        section.parts,
    )


def demo_page(record: Record) -> Page:
    """Lay out the demo: its transport, the baselines over several draws, and the close release.

    Args:
        record: What ``demo.json`` holds, with the record of its transport as ``transport``.

    Returns:
        The page.
    """
    transport = record.get("transport") or {}
    page = transport_page(transport)
    rows, caption = record.get("rows") or [], str(record.get("caption") or "")
    compared = comparison_results(rows, caption, caption.partition(" on ")[0] or "score")
    close = (record.get("close_release") or {}).get("judgement")
    nearby = transport_results({"judgement": close}) if close else None
    if nearby is not None:
        nearby = Section(
            "close",
            "The same on a close release",
            "Here the new base is the next release of the old one, so the fine-tune itself carries over.",
            nearby.parts,
        )
    sections = [section for section in (*page.sections[:1], compared, nearby, *page.sections[1:]) if section]
    return Page(page.title, page.above, page.verdict, page.tiles, sections, page.foot)
