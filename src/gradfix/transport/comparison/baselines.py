"""What a transport is compared with: naive addition, masks, few-shot fine-tuning."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from gradfix.evaluation.finetuning import FewShot, FineTuning, finetune
from gradfix.evaluation.target_model import TargetModel
from gradfix.vectors.control import shuffled
from gradfix.vectors.masks import mask
from gradfix.vectors.task_vector import TaskVector
from gradfix.votes import Votes


@dataclass(frozen=True)
class Method:
    """A way to make a direction δ from a task vector.

    Attributes:
        label: How tables call it.
        vote: Which votes it asks for; None for none.
        build: Makes δ from τ, the votes, and a seed.
    """

    label: str
    vote: str | None
    build: Callable[[TaskVector, Votes | None, int], TaskVector]


def _masked(strategy: str) -> Callable[[TaskVector, Votes | None, int], TaskVector]:
    return lambda tau, votes, seed: mask(tau, votes, strategy=strategy, seed=seed)


BASELINES: dict[str, Method] = {
    "naive": Method("naive addition", None, _masked("none")),
    "random": Method("random mask", None, _masked("random")),
    "mean": Method("mean vote", "mean", _masked("agreement")),
    "force": Method("majority, force", "majority", _masked("force")),
    "soft": Method("majority, soft", "majority", _masked("soft")),
    "gradfix": Method("GradFix (majority, agreement)", "majority", _masked("agreement")),
    "control": Method(
        "control: τ shuffled, then masked",
        "majority",
        lambda tau, votes, seed: mask(shuffled(tau, seed), votes, strategy="agreement"),
    ),
}
"""Every method that needs no fine-tune of the target."""


def choose_finetuning(
    target: TargetModel,
    rows: Sequence[Any],
    folds: Sequence[Sequence[int]],
    candidates: FewShot,
    *,
    seed: int = 0,
) -> FineTuning:
    """Choose learning rate and steps by cross-fitting; not training is among the candidates.

    Args:
        target: The model; it is at θ_B afterwards, also after an error.
        rows: The support set.
        folds: Positions by fold; at least two.
        candidates: Learning rates and steps to choose among; ``folds`` says how they are dealt already.
        seed: See :func:`finetune`.

    Returns:
        The settings with the smallest held-out loss.
    """
    losses: dict[tuple[float, int], float] = {}
    try:
        for fold in folds:
            held = target.encode([rows[index] for index in fold])
            inside = set(fold)
            others = [row for index, row in enumerate(rows) if index not in inside]
            share = len(fold) / len(rows)
            target.restore()
            losses[0.0, 0] = losses.get((0.0, 0), 0.0) + share * target.evaluate(held).loss
            for rate in candidates.learning_rates:
                target.restore()
                for step in finetune(target, others, learning_rate=rate, stops=candidates.steps, seed=seed):
                    found = share * target.evaluate(held).loss
                    losses[rate, step] = losses.get((rate, step), 0.0) + found
    finally:
        target.restore()
    (rate, step), loss = min(losses.items(), key=lambda item: (item[1], item[0]))
    return FineTuning(rate, step, loss)
