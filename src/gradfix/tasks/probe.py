"""A linear head fitted in closed form: ridge regression on one-hot targets, its strength by leave-one-out.

Letters: n samples, d features, C classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from gradfix.errors import GradfixError

# Relative to the mean squared singular value of the standardised features.
RIDGES = tuple(10.0**exponent for exponent in range(-4, 5))
SCALES = tuple(10.0 ** (step / 8) for step in range(-16, 25))  # 0.01 to 1000


@dataclass(frozen=True)
class Probe:
    """A linear head, ``logits = features @ weight.T + bias``.

    Attributes:
        weight: ``[C, d]`` float32.
        bias: ``[C]`` float32.
        ridge: The chosen strength, relative to the mean squared singular value of the standardised features.
        scale: What the least-squares scores were multiplied with to become logits.
        accuracy: Leave-one-out accuracy on the samples, in [0, 1].
    """

    weight: Tensor
    bias: Tensor
    ridge: float
    scale: float
    accuracy: float


def fit_probe(features: Tensor, labels: Sequence[int], classes: int, *, intercept: bool = True) -> Probe:
    """Fit a linear classifier without a training loop.

    Features are standardised and one-hot targets centred; each ridge λ's leave-one-out residuals come in
    closed form from the hat matrix, e_i = (y_i − ŷ_i) / (1 − h_i) (Allen's PRESS statistic, 1974), and the λ
    with the smallest sum of squares is taken. Mean and deviation of the features are not left out with the
    sample.

    Least squares gives scores near 0 and 1, which as logits would be almost uniform. They are multiplied by
    the one factor, of a fixed grid, under which the left-out scores have the smallest cross-entropy to smoothed
    targets, (n_c + 1) / (n_c + C) for the true class (Platt, 1999): without smoothing a separable handful of
    samples would ask for an infinite factor, and so for a loss without gradient. With a class of one sample
    nothing of it is left to learn from when that sample is left out: then the largest λ that still fits every
    sample right is taken (else the smallest), and the factor gives a fitted sample of average margin 0.9.

    Args:
        features: ``[n, d]``, finite.
        labels: n class ids.
        classes: C.
        intercept: Whether the layer has a bias. Without, the features are not centred.

    Returns:
        The head; its bias is zero without an intercept.

    Raises:
        GradfixError: If features or labels don't fit each other, or fewer than two classes have samples.
    """
    targets = torch.as_tensor(labels)
    if features.dim() != 2 or len(features) != len(targets):
        raise GradfixError(
            f"probe: expected features of {len(targets)} samples, found shape {tuple(features.shape)}"
        )
    if not bool(torch.isfinite(features).all()):
        raise GradfixError("probe: the features hold values that are not finite")
    counts = torch.bincount(targets, minlength=classes)
    if int((counts > 0).sum()) < 2:
        raise GradfixError("probe: needs samples of at least two classes")
    inputs = features.double()
    centre = inputs.mean(dim=0) if intercept else torch.zeros_like(inputs[0])
    deviation = (inputs - centre).square().mean(dim=0).sqrt()
    # A constant feature says nothing; dividing by its deviation would make noise of rounding errors.
    used = deviation > 1e-6 * inputs.square().mean(dim=0).sqrt()
    spread = torch.where(used, deviation, torch.ones_like(deviation))
    standard = torch.where(used, (inputs - centre) / spread, 0.0)
    onehot = torch.nn.functional.one_hot(targets, classes).double()
    prior = onehot.mean(dim=0)
    left, singular, right = torch.linalg.svd(standard, full_matrices=False)
    rank = max(1, min(len(inputs) - 1, int(used.sum())))
    unit = (singular.square().sum() / rank).clamp(min=1e-30)
    projected = left.T @ (onehot - prior)

    candidates = []
    for ridge in RIDGES:
        shrink = singular.square() / (singular.square() + ridge * unit)
        fitted = left @ (shrink[:, None] * projected)
        leverage = (left.square() @ shrink + (1 / len(inputs) if intercept else 0.0)).clamp(max=1 - 1e-6)
        residual = (onehot - prior - fitted) / (1 - leverage)[:, None]
        candidates.append((ridge, fitted + prior, onehot - residual, float(residual.square().sum())))

    singleton = bool((counts == 1).any())
    if singleton:
        right_fits = [item for item in candidates if bool((item[1].argmax(dim=1) == targets).all())]
        ridge, fitted, held_out, _ = right_fits[-1] if right_fits else candidates[0]
        margins = fitted.gather(1, targets[:, None])[:, 0] - _mean_of_others(fitted, targets)
        scale = float(torch.log(torch.tensor(9.0 * (classes - 1))) / margins.mean().clamp(min=1e-6))
    else:
        ridge, fitted, held_out, _ = min(candidates, key=lambda item: item[3])
        wanted = (onehot * counts[targets][:, None] + 1) / (counts[targets][:, None] + classes)
        scale = min(SCALES, key=lambda factor: float(cross_entropy(factor * held_out, wanted)))

    shrink = singular / (singular.square() + ridge * unit)
    weight = scale * (right.T @ (shrink[:, None] * projected)).T / spread
    bias = scale * prior - weight @ centre if intercept else torch.zeros(classes)
    accuracy = float((held_out.argmax(dim=1) == targets).double().mean())
    return Probe(weight.float(), bias.float(), ridge, scale, accuracy)


def _mean_of_others(scores: Tensor, targets: Tensor) -> Tensor:
    """The average score of the wrong classes, ``[n]``."""
    own = scores.gather(1, targets[:, None])[:, 0]
    return (scores.sum(dim=1) - own) / (scores.shape[1] - 1)
