"""Which sections stand on a page, in which order, for each kind of record."""

from collections.abc import Callable, Sequence

from markupsafe import Markup

from gradfix.report.elements import Section
from gradfix.report.numbers import THIN, between, duration, metric_name, percent, points, shown_score
from gradfix.report.page import Page, Tile
from gradfix.report.record import ComparisonRecord, DemoRecord, Line, TransportRecord
from gradfix.report.sections.advice import advice_section
from gradfix.report.sections.costs import (
    bars,
    cost_section,
    inputs_section,
    seconds_of,
    short,
    transport_inputs,
)
from gradfix.report.sections.coverage import coverage_section, format_section
from gradfix.report.sections.examples import examples_section
from gradfix.report.sections.method import alpha_section, method_section, steps_section
from gradfix.report.sections.results import (
    comparison_results,
    judgement_results,
    retention,
    transport_results,
    transported,
)
from gradfix.report.sections.votes import alignment_section, votes_section
from gradfix.report.verdict import BETTER, UNSURE, WORSE, Verdict, share_from_source, transport_verdict

_TRANSPORT: Sequence[Callable[[TransportRecord], Section | None]] = (
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
    transport_inputs,
)


def transport_page(record: TransportRecord) -> Page:
    """Lay out a transport.

    Args:
        record: What ``gradfix.json`` holds.

    Returns:
        The page; sections without facts are left out.
    """
    tuned, base = (_model(record, role) for role in ("source_tuned", "target_base"))
    return Page(
        title=f"{tuned} on {base}",
        above=Markup("gradfix moved <b>{}</b> to <b>{}</b>{}").format(
            tuned, base, _task(record.options.task)
        ),
        verdict=transport_verdict(record),
        tiles=_tiles(record),
        sections=[section for build in _TRANSPORT if (section := build(record)) is not None],
        foot=_foot(record.versions.get("gradfix")),
    )


def _model(record: TransportRecord, role: str) -> str:
    return short(record.inputs[role].location) if role in record.inputs else role.replace("_", " ")


def _task(task: str | None) -> str:
    return f" · {task.replace('-', ' ')}" if task else ""


def _foot(version: str | None = None) -> str:
    made = f"Made by gradfix {version}" if version else "Made by gradfix"
    return f"{made} from the numbers in its JSON record; this page loads nothing from anywhere."


def _tiles(record: TransportRecord) -> list[Tile]:
    judgement, applied = record.judgement, record.applied
    tiles = []
    if judgement is not None:
        new, gain, share = judgement.transported, judgement.gain, share_from_source(judgement)
        tiles.append(Tile("new model", shown_score(new.score, new.metric), metric_name(new.metric)))
        tiles.append(Tile("over the new base", points(gain.value), f"points, {between(gain)}"))
        if share is not None:
            doubt = "" if judgement.over_control.excludes_zero else ", within chance"
            tiles.append(Tile("from the fine-tune", percent(share, 0), f"of the gain{doubt}"))
    tiles.append(Tile("α", f"{record.alpha.alpha:g}", "scale of the update"))
    if applied is not None and applied.kept_share is not None:
        tiles.append(Tile("kept", percent(applied.kept_share, 0), "of the task vector"))
    seconds = seconds_of(record).values()
    if seconds:
        samples = len(record.support) if record.votes is None else record.votes.samples
        tiles.append(Tile("cost", duration(sum(seconds)), f"{samples:,} labelled samples" if samples else ""))
    return tiles


def comparison_page(record: ComparisonRecord) -> Page:
    """Lay out a comparison of baselines.

    Args:
        record: What ``comparison.json`` holds.

    Returns:
        The page.
    """
    rows, options = record.rows, record.options
    sections = [comparison_results(rows, record.caption, record.metric), retention(rows)]
    sections += [_time_by_method(rows), inputs_section("compare", record.recipe)]
    tuned, base = short(options.source_tuned or "source_tuned"), short(options.target_base or "target_base")
    return Page(
        title=f"{tuned} on {base}, compared",
        above=Markup("gradfix compared ways to move <b>{}</b> to <b>{}</b>{}").format(
            tuned, base, _task(options.task)
        ),
        verdict=comparison_verdict(rows, record.metric),
        tiles=[],
        sections=[section for section in sections if section is not None],
        foot=_foot(),
    )


def comparison_verdict(rows: Sequence[Line], metric: str) -> Verdict:
    """Judge the transport over several draws of the samples.

    Args:
        rows: Lines of a comparison.
        metric: What the score is.

    Returns:
        The verdict at the largest budget.
    """
    largest = max((row.budget for row in rows), default=0)
    found = {row.method: row for row in rows if row.budget == largest}
    ours, base = found.get(transported(list(found.values()))), found.get("zero-shot")
    if ours is None or base is None:
        return Verdict("", "How the methods compare.")
    gain, sure = ours.gain, ours.gain.excludes_zero
    state = UNSURE if not sure else BETTER if gain.value > 0 else WORSE
    bounds = f" (95{THIN}% interval {between(gain)} points)" if between(gain) else ""
    chance = "" if sure else ", which can be chance"
    scores = f"{shown_score(ours.score.value, metric)} {metric} against "
    scores += f"{shown_score(base.score.value, metric)} of the new base"
    headline = (
        f"With {largest} labelled samples a class the transported model gets {scores}: "
        f"{points(gain.value)} points{bounds}{chance}."
    )
    beside = []
    over = ours.over_control
    if over is not None:
        part = over.value / gain.value if sure and gain.value > 0 else None
        share = "" if part is None else percent(min(1.0, max(0.0, part)), 0)
        about = f": about {share} of the gain comes from the fine-tune" if share else ""
        doubt = "" if over.excludes_zero else ", within chance"
        beside.append(
            f"Over the shuffled control it gains {points(over.value)} points ({between(over)}){about}{doubt}."
        )
    rival = found.get("few-shot")
    if rival:
        behind = rival.score.value - ours.score.value
        word = "more" if behind > 0 else "less"
        beside.append(
            f"Few-shot fine-tuning on the same samples gets {shown_score(rival.score.value, metric)}, "
            f"{points(abs(behind)).lstrip('+')} points {word}."
        )
    return Verdict(state, headline, tuple(beside))


def _time_by_method(rows: Sequence[Line]) -> Section | None:
    taken: dict[str, list[float]] = {}
    for row in rows:
        taken.setdefault(row.label, []).extend(outcome.seconds for outcome in row.outcomes)
    means = {label: sum(values) / len(values) for label, values in taken.items() if values and sum(values)}
    if not means:
        return None
    return Section(
        "cost",
        "What each method cost",
        "Mean wall time a draw, choosing its settings included.",
        [bars(means)],
    )


def demo_page(record: DemoRecord) -> Page:
    """Lay out the demo: its transport, the baselines over several draws, and the close release.

    Args:
        record: What ``demo.json`` holds, with the record of its transport as ``transport``.

    Returns:
        The page.
    """
    page = transport_page(record.transport)
    compared = comparison_results(record.rows, record.caption, record.metric)
    close, nearby = record.close_release, None
    if close is not None and close.judgement is not None:
        nearby = Section(
            "close",
            "The same on a close release",
            "Here the new base is the next release of the old one, so the fine-tune itself carries over.",
            judgement_results(close.judgement).parts,
        )
    sections = [section for section in (*page.sections[:1], compared, nearby, *page.sections[1:]) if section]
    return Page(page.title, page.above, page.verdict, page.tiles, sections, page.foot)
