"""Do weights come from one another? Told from a few rows of each weight matrix."""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from gradfix.checkpoints import Checkpoint, TensorSource
from gradfix.checkpoints.expressions import Selection
from gradfix.vectors.placement import own_weights, place
from gradfix.vectors.task_vector import TaskVector

UNRELATED = 0.5
"""Cosine of two models' weights below which one can't come from the other: fine-tunes keep above 0.9, independent
pre-trainings are at 0.0."""
CLOSE = 0.9
"""Cosine above which the new base counts as a close release of the old one."""
SAMPLED_ROWS = 8


class WeightSample:
    """A few evenly spaced rows of some tensors, as one float64 vector."""

    def __init__(self, source: TensorSource, names: Sequence[str]) -> None:
        """Read the rows.

        Args:
            source: A model or a task vector.
            names: Its tensors to read from.
        """
        none = torch.zeros(0, dtype=torch.float64)
        self.parts: dict[str, Tensor] = {
            name: torch.cat([none, *_sample_rows(source, name)]) for name in names
        }
        self.values: Tensor = torch.cat([none, *self.parts.values()])

    def norm(self) -> float:
        """Euclidean length."""
        return float(self.values.norm())

    def cosine(self, other: Tensor) -> float | None:
        """Cosine of the angle to another vector.

        Args:
            other: The same rows of another model.

        Returns:
            A number in [−1, 1]; None where one of the two is zero.
        """
        scale = self.norm() * float(other.norm())
        return float(self.values.dot(other)) / scale if scale else None


def likeness(one: WeightSample, other: WeightSample, delta: WeightSample | None = None) -> float | None:
    """Tell how alike two models are where it matters: the mean cosine of the tensors that training touched.

    A tensor counts by how many values were touched, not by its length: a fixed filterbank that all models share is
    longer than all else and says nothing.

    Args:
        one: A model's rows.
        other: The same rows of another.
        delta: The same rows of τ; without it every tensor counts.

    Returns:
        A number in [−1, 1]; None where no touched tensor has values in both.
    """
    total = weight = 0.0
    for name, values in one.parts.items():
        scale = float(values.norm() * other.parts[name].norm())
        touched = len(values) if delta is None else int((delta.parts[name] != 0).sum())
        if scale:
            total += touched * float(values.dot(other.parts[name])) / scale
            weight += touched
    return total / weight if weight else None


def matrices(source: TensorSource) -> list[str]:
    """Name the tensors that tell models apart: normalisation weights are near 1 in every model.

    Args:
        source: A model or a task vector.

    Returns:
        Its tensors of two or more dimensions; all where it has none.
    """
    found = [name for name, spec in source.specs.items() if len(spec.shape) > 1]
    return found or list(source.specs)


def similarity(base: Checkpoint, target: Checkpoint, tau: TaskVector | None = None) -> float | None:
    """Measure how alike two models' weight matrices are, rows of vocabularies matched by token.

    Args:
        base: A model.
        target: Another of the same architecture.
        tau: The fine-tune's task vector: only what it touches is compared.

    Returns:
        The mean cosine on a sample of rows: near 1 for successive releases, near 0 for models trained independently;
        None where one of them is zero.
    """
    placed = place(own_weights(base), target).vector
    names = [name for name in matrices(placed) if tau is None or name in place(tau, target).vector.specs]
    theirs = WeightSample(Selection(target, {name: name for name in names}), names)
    delta = None if tau is None else WeightSample(place(tau, target).vector, names)
    return likeness(WeightSample(placed, names), theirs, delta)


def _sample_rows(source: TensorSource, name: str) -> Iterator[Tensor]:
    rows = source.specs[name].shape[0] if source.specs[name].shape else 0
    step = max(1, math.ceil(rows / SAMPLED_ROWS))
    for row in range(0, rows, step):
        yield source.read(name, slice(row, row + 1)).flatten().double()
