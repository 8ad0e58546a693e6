"""The two pictures of a model card: small PNGs, the same bytes for the same record."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gradfix.report.numbers import metric_name
from gradfix.report.sections.results import MODELS
from gradfix.report.style import ACCENT, COLOURS, INK, MUTED, WARM, saved, static

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RESULTS_FILE = "gradfix-results.png"
ALPHA_FILE = "gradfix-alpha.png"


def card_figures(record: Mapping[str, Any]) -> dict[str, bytes]:
    """Draw what a model card shows.

    Args:
        record: What ``gradfix.json`` holds.

    Returns:
        PNGs by file name: scores with their intervals, and the loss along α; one without facts is left out.
    """
    judgement, choice = record.get("judgement"), record.get("alpha") or {}
    curve = [point for point in choice.get("curve") or () if point.get("loss") is not None]
    if not judgement and len(curve) < 2:
        return {}
    made = {}
    with static():
        from matplotlib.figure import Figure

        if judgement:
            canvas = Figure(figsize=(5.6, 2.1), layout="constrained")
            _results(canvas.subplots(), judgement)
            made[RESULTS_FILE] = saved(canvas)["png"]
        if len(curve) > 1:
            canvas = Figure(figsize=(5.6, 2.9), layout="constrained")
            _losses(canvas.subplots(), curve, choice, record.get("certificate") or {})
            made[ALPHA_FILE] = saved(canvas)["png"]
    return made


def _results(axes: "Axes", judgement: Mapping[str, Any]) -> None:
    found = {key: judgement[key] for key in MODELS if judgement.get(key)}
    for height, (key, result) in enumerate(found.items()):
        interval, ours = result["interval"], key == "transported"
        ends = [result["score"] if interval[end] is None else interval[end] for end in ("low", "high")]
        errors = [[(result["score"] - ends[0]) * 100], [(ends[1] - result["score"]) * 100]]
        colour = ACCENT if ours else MUTED
        axes.errorbar(
            result["score"] * 100, height, xerr=errors, fmt="D" if ours else "o", color=colour, capsize=3
        )
    if "base" in found:
        axes.axvline(found["base"]["score"] * 100, color=COLOURS[7], linewidth=1, linestyle=":")
    axes.set_yticks(range(len(found)), [MODELS[key] for key in found])
    axes.invert_yaxis()
    axes.grid(axis="x")
    axes.set_axisbelow(True)
    metric = metric_name(next(iter(found.values()))["metric"])
    axes.set_xlabel(f"{metric}, % (bars: 95 % intervals)")


def _losses(
    axes: "Axes",
    curve: Sequence[Mapping[str, Any]],
    choice: Mapping[str, Any],
    certificate: Mapping[str, Any],
) -> None:
    axes.plot(
        [point["alpha"] for point in curve],
        [point["loss"] for point in curve],
        "o-",
        color=ACCENT,
        markersize=4,
        label="held-out loss",
    )
    low, high = min(point["loss"] for point in curve), max(point["loss"] for point in curve)
    steps, start = certificate.get("steps") or [], certificate.get("loss")
    if steps and start is not None:
        alphas = [0.0, *(step["alpha"] for step in steps)]
        measured = [start, *(start + step["measured"] for step in steps)]
        predicted = [start, *(start + step["predicted"] for step in steps)]
        axes.plot(alphas, measured, "s-", color=WARM, markersize=4, label="loss of the voting samples")
        axes.plot(alphas, predicted, ":", color=INK, label="predicted by the gradient")
        low, high = min(low, *measured), max(high, *measured)
    chosen = next((point for point in curve if point["alpha"] == choice.get("alpha")), None)
    if chosen is not None:
        label = f"chosen: α = {chosen['alpha']:g}"
        axes.plot(
            chosen["alpha"], chosen["loss"], "o", markersize=12, color=INK, fillstyle="none", label=label
        )
    room = 0.08 * (high - low or 1.0)
    axes.set_ylim(low - room, high + room)
    axes.set_xlabel("α, scale of the update")
    axes.set_ylabel("mean loss a sample")
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    axes.legend(frameon=False, fontsize=8)
