"""The two pictures of a model card: small PNGs, the same bytes for the same record."""

from typing import TYPE_CHECKING

from gradfix.report.facts import Alpha, Certificate, Judgement
from gradfix.report.numbers import metric_name, score_unit
from gradfix.report.record import TransportRecord
from gradfix.report.sections.results import MODELS, half, measured, score_range
from gradfix.report.style import ACCENT, COLOURS, INK, MUTED, WARM, saved, static

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RESULTS_FILE = "gradfix-results.png"
ALPHA_FILE = "gradfix-alpha.png"


def card_figures(record: TransportRecord) -> dict[str, bytes]:
    """Draw what a model card shows.

    Args:
        record: What ``gradfix.json`` holds.

    Returns:
        PNGs by file name: scores with their intervals, and the loss along α; one without facts is left out.
    """
    judgement, choice = record.judgement, record.alpha
    curved = len(choice.curve) > 1
    if judgement is None and not curved:
        return {}
    made = {}
    with static():
        from matplotlib.figure import Figure

        if judgement is not None:
            canvas = Figure(figsize=(5.6, 2.1), layout="constrained")
            _results(canvas.subplots(), judgement)
            made[RESULTS_FILE] = saved(canvas)["png"]
        if curved:
            canvas = Figure(figsize=(5.6, 2.9), layout="constrained")
            _losses(canvas.subplots(), choice, record.certificate)
            made[ALPHA_FILE] = saved(canvas)["png"]
    return made


def _results(axes: "Axes", judgement: Judgement) -> None:
    found = measured(judgement)
    for height, (key, result) in enumerate(found.items()):
        interval, ours = result.interval, key == "transported"
        errors = [[half(interval.low, interval) * 100], [half(interval.high, interval) * 100]]
        colour = ACCENT if ours else MUTED
        axes.errorbar(
            result.score * 100, height, xerr=errors, fmt="D" if ours else "o", color=colour, capsize=3
        )
    axes.axvline(judgement.base.score * 100, color=COLOURS[7], linewidth=1, linestyle=":")
    axes.set_xlim(*score_range(result.interval for result in found.values()))
    axes.set_yticks(range(len(found)), [MODELS[key] for key in found])
    axes.invert_yaxis()
    axes.grid(axis="x")
    axes.set_axisbelow(True)
    axes.set_xlabel(
        f"{metric_name(judgement.base.metric)}{score_unit(judgement.base.metric)} (bars: 95 % intervals)"
    )


def _losses(axes: "Axes", choice: Alpha, certificate: Certificate) -> None:
    losses = [point.loss for point in choice.curve]
    axes.plot(
        [point.alpha for point in choice.curve],
        losses,
        "o-",
        color=ACCENT,
        markersize=4,
        label="held-out loss",
    )
    low, high = min(losses), max(losses)
    if certificate.steps:
        start, steps = certificate.loss, certificate.steps
        alphas = [0.0, *(step.alpha for step in steps)]
        changed = [start, *(start + step.measured for step in steps)]
        predicted = [start, *(start + step.predicted for step in steps)]
        axes.plot(alphas, changed, "s-", color=WARM, markersize=4, label="loss of the voting samples")
        axes.plot(alphas, predicted, ":", color=INK, label="predicted by the gradient")
        low, high = min(low, *changed), max(high, *changed)
    chosen = choice.at(choice.alpha)
    if chosen is not None:
        label = f"chosen: α = {chosen.alpha:g}"
        axes.plot(chosen.alpha, chosen.loss, "o", markersize=12, color=INK, fillstyle="none", label=label)
    room = 0.08 * (high - low or 1.0)
    axes.set_ylim(low - room, high + room)
    axes.set_xlabel("α, scale of the update")
    axes.set_ylabel("mean loss a sample")
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    axes.legend(frameon=False, fontsize=8)
