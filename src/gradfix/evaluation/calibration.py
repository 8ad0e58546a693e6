"""Losses that can be compared: the cross-entropy after a temperature has been fitted to held-out samples.

A model that a long step made overconfident has a high loss and a high accuracy; one that a short step left unsure has
the reverse. Neither loss says which is right more often. With one temperature a candidate, fitted to other held-out
samples than it judges, what is left of the loss is what the model can't tell apart. Source of the temperature: Guo et
al., "On Calibration of Modern Neural Networks", ICML 2017.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float64]

TEMPERATURES = tuple(2.0 ** (half / 2) for half in range(-2, 13))
"""From a half, so that few samples that are all right don't ask for certainty, to 64."""

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
    count = len(losses)
    if len(parts) < 2:
        parts = [range(first, count, SPLITS) for first in range(min(SPLITS, count))]
    right = _log_sum_exp(logits) - losses
    scaled = np.stack([_log_sum_exp(logits / t) - right / t for t in TEMPERATURES])
    # One more sample, of which nothing is known, keeps separable samples from asking for certainty.
    unknown = np.array([(_log_sum_exp(logits / t) - logits.mean(axis=1) / t).mean() for t in TEMPERATURES])
    found = np.empty(count)
    for part in parts:
        inside = np.zeros(count, dtype=bool)
        inside[list(part)] = True
        others = scaled[:, ~inside] if not inside.all() else scaled
        found[inside] = scaled[int((others.sum(axis=1) + unknown).argmin()), inside]
    return found


def _log_sum_exp(logits: Values) -> Values:
    top = logits.max(axis=1, keepdims=True)
    found: Values = np.log(np.exp(logits - top).sum(axis=1)) + top[:, 0]
    return found
