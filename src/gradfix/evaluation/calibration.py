"""Losses that can be compared: the cross-entropy after a temperature has been fitted to held-out samples.

A model that a long step made overconfident has a high loss and a high accuracy; one that a short step left unsure has
the reverse. Neither loss says which is right more often. With one temperature a candidate, fitted to other held-out
samples than it judges, what is left of the loss is what the model can't tell apart. Source of the temperature: Guo et
al., "On Calibration of Modern Neural Networks", ICML 2017.
"""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float64]

TEMPERATURES: tuple[float, ...] = tuple(2.0 ** (half / 2) for half in range(-2, 13))
"""From a half, so that few samples that are all right don't ask for certainty, to 64."""

SHARES = (0.01, 0.03, 0.1, 0.2, 0.35, 0.5, 0.7, 0.85, 1.0)
"""Of a model that guesses now and then; the last one always guesses."""

EDGE = 1e-3
"""Rounding of a loss in half precision."""

SPLITS = 4
"""Into so many parts samples are dealt that came in one."""


def calibrated(logits: Values, losses: Values, parts: Sequence[Sequence[int]]) -> Values:
    """Give each sample's cross-entropy at the temperature that the samples of other parts ask for.

    Args:
        logits: ``[samples, classes]``, each of a model that did not see the sample.
        losses: ``[samples]``, the cross-entropy of these logits; it tells the right class's score.
        parts: Positions of the samples by part; one part is dealt into several.

    Returns:
        ``[samples]`` losses.
    """
    return _fitted(*_at_temperatures(logits, _log_sum_exp(logits) - losses), parts)


def temperature(logits: Values, losses: Values) -> float:
    """Tell by how much a model is surer than it is right.

    Args:
        logits: ``[samples, classes]``.
        losses: ``[samples]``, the cross-entropy of these logits.

    Returns:
        The temperature that the samples ask for, at least 1: few samples make no model surer than it is.
    """
    scaled, unknown = _at_temperatures(logits, _log_sum_exp(logits) - losses)
    hot = [number for number, one in enumerate(TEMPERATURES) if one >= 1]
    return TEMPERATURES[min(hot, key=lambda number: float(scaled[number].sum() + unknown[number]))]


def calibrated_to(logits: Values, answers: Values, parts: Sequence[Sequence[int]]) -> Values:
    """Give each sample's cross-entropy of another model's answers, at the temperature that other parts ask for.

    Args:
        logits: ``[samples, classes]``.
        answers: Probabilities, ``[samples, classes]``.
        parts: Positions of the samples by part; one part is dealt into several.

    Returns:
        ``[samples]`` losses.
    """
    return _fitted(*_at_temperatures(logits, _right(logits, answers)), parts)


def cross_entropies_to(logits: Values, answers: Values) -> Values:
    """Give each sample's cross-entropy of another model's answers, as it is.

    Args:
        logits: ``[samples, classes]``.
        answers: Probabilities, ``[samples, classes]``.

    Returns:
        ``[samples]`` losses.
    """
    return _log_sum_exp(logits) - _right(logits, answers)


def _right(logits: Values, answers: Values) -> Values:
    """The score of what another model answers."""
    found: Values = (answers * logits).sum(axis=1)
    return found


def _at_temperatures(logits: Values, right: Values) -> tuple[Values, Values]:
    """Cross-entropies at every temperature by the score of what is right, and those of a sample of nothing known."""
    scaled = np.stack([_log_sum_exp(logits / t) - right / t for t in TEMPERATURES])
    # One more sample, of which nothing is known, keeps separable samples from asking for certainty.
    unknown = np.array([(_log_sum_exp(logits / t) - logits.mean(axis=1) / t).mean() for t in TEMPERATURES])
    return scaled, unknown


def doubted(losses: Values, classes: int, parts: Sequence[Sequence[int]]) -> Values:
    """Do the same where only the right class's probability is known: mix it with that of guessing.

    Args:
        losses: ``[samples]``, cross-entropies, each of a model that did not see the sample.
        classes: How many classes they are of.
        parts: Positions of the samples by part; one part is dealt into several.

    Returns:
        ``[samples]`` losses of a model that guesses for a share of the samples, which those of other parts ask for.
    """
    mixed = np.stack([-np.log((1 - share) * np.exp(-losses) + share / classes) for share in SHARES])
    # One more sample, of which the model was sure and wrong, keeps samples that are all right from asking for no doubt.
    return _fitted(mixed, -np.log(np.array(SHARES) / classes), parts)


def cross_entropies(losses: Values, scores: Values, classes: int) -> bool:
    """Tell whether losses can be those of a classifier that is right where the score says so.

    Args:
        losses: ``[samples]``.
        scores: ``[samples]``.
        classes: How many classes there are.

    Returns:
        Whether scores are 0 or 1, the class named has at least the probability of guessing, and no other one more
        than a half.
    """
    right = scores == 1
    if classes < 2 or not np.isin(scores, (0.0, 1.0)).all() or (losses < 0).any():
        return False
    named = losses[right] <= math.log(classes) + EDGE
    others = losses[~right] >= math.log(2) - EDGE
    return bool(named.all() and others.all())


def _fitted(losses: Values, unknown: Values, parts: Sequence[Sequence[int]]) -> Values:
    """For each part, the row of losses that is the smallest on the other parts and one unknown sample."""
    count = losses.shape[1]
    if len(parts) < 2:
        parts = [range(first, count, SPLITS) for first in range(min(SPLITS, count))]
    found = np.empty(count)
    for part in parts:
        inside = np.zeros(count, dtype=bool)
        inside[list(part)] = True
        others = losses[:, ~inside] if not inside.all() else losses
        found[inside] = losses[int((others.sum(axis=1) + unknown).argmin()), inside]
    return found


def _log_sum_exp(logits: Values) -> Values:
    top = logits.max(axis=1, keepdims=True)
    found: Values = np.log(np.exp(logits - top).sum(axis=1)) + top[:, 0]
    return found
