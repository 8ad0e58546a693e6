"""Whether a transport was worth it: measured beside the new base, naive addition and the shuffled control."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from gradfix.evaluation import Evaluation, Interval, paired_samples
from gradfix.progress import Progress, silent
from gradfix.scaling import AlphaChoice
from gradfix.target_model import TargetModel
from gradfix.vectors import TaskVector


@dataclass(frozen=True)
class Judgement:
    """How the transported model does beside the new base, on data that chose nothing or only α.

    Attributes:
        data: ``"test"``, or ``"validation"`` where no test data were given: α was then chosen on the same samples.
        base: θ_B with the task's head.
        naive: θ_B + τ.
        transported: θ_B + α (m ⊙ τ).
        control: The same with τ's values shuffled, at the same α.
        gain: Transported − base, paired by sample.
        over_control: Transported − control, paired by sample.
        over_naive: Transported − naive, paired by sample.
    """

    data: str
    base: Evaluation
    naive: Evaluation
    transported: Evaluation
    control: Evaluation
    gain: Interval
    over_control: Interval
    over_naive: Interval

    def to_json(self) -> dict[str, Any]:
        """Give the judgement as JSON, without each sample's values.

        Returns:
            The attributes.
        """
        models = {name: getattr(self, name).to_json() for name in ("base", "naive", "transported", "control")}
        return {
            "data": self.data,
            **models,
            "gain": asdict(self.gain),
            "over_control": asdict(self.over_control),
        }


def verdict(alpha: AlphaChoice, judgement: Judgement | None) -> str:
    """Say in plain words whether a transport helped, with the interval and the control.

    Args:
        alpha: The chosen α.
        judgement: The comparison, if there was data for one.

    Returns:
        One or two sentences.
    """
    if alpha.alpha == 0:
        return (
            f"Do not transport: of {len(alpha.curve)} candidates α = 0 had the smallest {alpha.chosen_on} loss, "
            "so the output is the new base with the task's head."
        )
    if judgement is None:
        start = next((point for point in alpha.curve if point.alpha == 0), None)
        chosen = next((point for point in alpha.curve if point.alpha == alpha.alpha), None)
        if start is None or chosen is None:
            return f"Transported with the given α = {alpha.alpha:g}; nothing was measured."
        return (
            f"On {alpha.samples} samples held out in turn, the loss went from {start.loss:.3f} to {chosen.loss:.3f} "
            f"and the score from {start.score:.1%} to {chosen.score:.1%} at α = {alpha.alpha:g}; "
            "give --test data for a verdict with an interval."
        )
    gain, metric = judgement.gain, judgement.transported.metric.replace("_", " ")
    direction = "better" if gain.value > 0 else "worse"
    sure = "" if gain.excludes_zero else ", which can be chance"
    against = judgement.over_control
    source = (
        "it beats the same transport of a shuffled task vector"
        if against.excludes_zero and against.value > 0
        else "a shuffled task vector does as well, so the gain comes from the samples rather than from the fine-tune"
    )
    bound = f"95 % interval {_points(gain.low)} to {_points(gain.high)}"
    caution = "; α was chosen on the same samples" if judgement.data == "validation" else ""
    return (
        f"The transported model is {abs(gain.value) * 100:.1f} points {direction} in {metric} than the new base "
        f"({judgement.base.score:.1%} → {judgement.transported.score:.1%}, {bound}, {gain.n} samples{caution}){sure}. "
        f"Beside the control, {source} ({_points(against.value)}, {_points(against.low)} to {_points(against.high)})."
        + _naive_sentence(judgement)
    )


def _naive_sentence(judgement: Judgement) -> str:
    """Tell a reader when adding the whole task vector, without any sample, would have done better."""
    naive = judgement.over_naive
    if not (naive.excludes_zero and naive.value < 0):
        return ""
    return (
        f" But adding the whole task vector does better still: {judgement.naive.score:.1%} at α = 1 "
        f"({_points(-naive.value)} points); for that, run with --mask none --alpha 1."
    )


def _points(value: float | None) -> str:
    return "unknown" if value is None else f"{value * 100:+.1f}".replace("-", "−")


def judge(
    model: TargetModel,
    rows: Sequence[Mapping[str, Any]],
    *,
    transported: TaskVector,
    control: TaskVector,
    alpha: float,
    data: str,
    known: Mapping[float, Evaluation] | None = None,
    progress: Progress = silent,
) -> Judgement:
    """Measure a transport beside what it could be mistaken for.

    Args:
        model: The target; it is at θ_B afterwards, also after an error.
        rows: Labelled samples to judge on.
        transported: m ⊙ τ.
        control: The same of a shuffled τ.
        alpha: Scaling coefficient of both.
        data: What the rows are: ``"test"`` or ``"validation"``.
        known: What α times ``transported`` gave on these very rows, by α, as far as it was measured already.
        progress: Told the samples measured.

    Returns:
        The judgement.
    """
    encoded = model.encode(rows)
    known = known or {}
    measured = {
        kind: known[scale] for kind, scale in (("base", 0.0), ("transported", alpha)) if scale in known
    }
    if alpha == 0 and "base" in measured:
        measured["control"] = measured["base"]  # nothing is added to θ_B, whatever the direction
    try:
        for kind, vector, scale in (
            ("base", transported, 0.0),
            ("naive", model.vector, 1.0),
            ("control", control, alpha),
            ("transported", transported, alpha),
        ):
            if kind not in measured:
                model.move(vector, scale)
                measured[kind] = model.evaluate(encoded, progress=progress)
    finally:
        model.restore()

    def over(other: str) -> Interval:
        return paired_samples(measured["transported"].scores, measured[other].scores)

    return Judgement(
        data, **measured, gain=over("base"), over_control=over("control"), over_naive=over("naive")
    )
