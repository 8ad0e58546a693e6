"""Whether a transport was worth it: measured beside the new base, naive addition and the shuffled control."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gradfix.evaluation.evaluate import Evaluation, Interval, paired_samples
from gradfix.evaluation.target_model import TargetModel
from gradfix.progress import Progress, silent
from gradfix.report.numbers import between, metric_name, points, score_unit, shown_score
from gradfix.report.summary import Summarised, Summary
from gradfix.vectors.task_vector import TaskVector


@dataclass(frozen=True, repr=False)
class Judgement(Summarised):
    """How the transported model does beside the new base, on data that chose nothing or only α.

    Attributes:
        data: ``"test"``, or ``"validation"`` where no test data were given: α was then chosen on the same samples.
        base: θ_B with the task's head.
        naive: θ_B + τ; None where τ has no place in the target.
        transported: θ_B + α (m ⊙ τ).
        control: The same with τ's values shuffled, at the same α.
        gain: Transported − base, paired by sample.
        over_control: Transported − control, paired by sample.
        over_naive: Transported − naive, paired by sample; None without.
    """

    data: str
    base: Evaluation
    naive: Evaluation | None
    transported: Evaluation
    control: Evaluation
    gain: Interval
    over_control: Interval
    over_naive: Interval | None

    def summary(self) -> Summary:
        """Say the four scores, and what was gained.

        Returns:
            A row a model.
        """
        models = (
            ("new base as it is", self.base),
            ("naive addition", self.naive),
            ("transported", self.transported),
            ("control, shuffled", self.control),
        )
        differences = {"transported": points(self.gain.value)}
        return Summary(
            f"{metric_name(self.base.metric)} on {self.base.n} {self.data} samples{score_unit(self.base.metric)}",
            columns=("model", "score", "95 % interval", "over the base"),
            rows=[
                (
                    name,
                    shown_score(each.score, each.metric),
                    between(each.interval, signed=False, metric=each.metric),
                    differences.get(name, ""),
                )
                for name, each in models
                if each is not None
            ],
        )


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
    encoded, task = model.encode(rows), model.judging
    known = known if known and task is model.task else {}
    measured = {
        kind: known[scale] for kind, scale in (("base", 0.0), ("transported", alpha)) if scale in known
    }
    if alpha == 0 and "base" in measured:
        measured["control"] = measured["base"]  # nothing is added to θ_B, whatever the direction
    try:
        naive = [] if model.apart else [("naive", model.vector, 1.0)]
        for kind, vector, scale in (
            ("base", transported, 0.0),
            *naive,
            ("control", control, alpha),
            ("transported", transported, alpha),
        ):
            if kind not in measured:
                model.move(vector, scale)
                measured[kind] = model.evaluate(encoded, task=task, progress=progress)
    finally:
        model.restore()

    def over(other: str) -> Interval:
        return paired_samples(measured["transported"].scores, measured[other].scores)

    return Judgement(
        data,
        **{"naive": None, **measured},  # type: ignore[arg-type]
        gain=over("base"),
        over_control=over("control"),
        over_naive=over("naive") if naive else None,
    )
