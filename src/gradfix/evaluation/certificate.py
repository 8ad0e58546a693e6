"""The first-order certificate: what the gradient predicts of the loss along δ, beside what is measured."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gradfix.evaluation.target_model import TargetModel
from gradfix.vectors.task_vector import TaskVector

FRACTIONS = (0.01, 0.1, 0.5, 1.0)
"""Parts of the chosen α at which the loss is measured."""


@dataclass(frozen=True)
class Descent:
    """One measured step.

    Attributes:
        alpha: Scaling coefficient.
        predicted: α·gᵀδ, the first-order change of the mean support loss.
        measured: The change that was measured.
    """

    alpha: float
    predicted: float
    measured: float


@dataclass(frozen=True)
class Certificate:
    """First-order certificate of a direction on the support set.

    With ``vote="mean"`` the slope can't be positive (a theorem); with majority votes it is measured, not assumed.

    Attributes:
        slope: gᵀδ, g the mean gradient of the support loss at θ_B and δ = m ⊙ τ: loss per unit of α.
        loss: Mean support loss at θ_B.
        steps: Predicted and measured changes at several α.
    """

    slope: float
    loss: float
    steps: tuple[Descent, ...]


def certify(target: TargetModel, delta: TaskVector, rows: Sequence[Any], alpha: float) -> Certificate:
    """Measure how the support loss falls along δ, and compare it with the gradient's prediction.

    Args:
        target: The model, at θ_B; it is there again afterwards, also after an error.
        delta: m ⊙ τ.
        rows: The support set.
        alpha: The chosen α; parts of it are measured. 0 is certified at parts of 1.

    Returns:
        The certificate.
    """
    slope = target.slope(delta, rows)
    encoded, steps = target.encode(rows), [part * (alpha or 1.0) for part in FRACTIONS]
    try:
        start, *there = [
            found.loss for found in target.evaluate_each([(delta, step, encoded) for step in (0.0, *steps)])
        ]
    finally:
        target.restore()
    measured = zip(steps, there, strict=True)
    return Certificate(
        slope, start, tuple(Descent(step, step * slope, loss - start) for step, loss in measured)
    )
