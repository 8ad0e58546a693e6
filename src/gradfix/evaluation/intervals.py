"""95 % intervals: of one model over samples, of a method over draws, and of a difference of two."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from gradfix.errors import GradfixError


@dataclass(frozen=True)
class Interval:
    """A value with a 95 % confidence interval.

    Attributes:
        value: The estimate.
        low: Lower end; None where the data allow no interval (a single draw).
        high: Upper end.
        n: How many values it rests on.
        method: How it was made: "wilson", "student-t" or "paired-bootstrap".
    """

    value: float
    low: float | None
    high: float | None
    n: int
    method: str

    @property
    def excludes_zero(self) -> bool:
        """Whether a difference is significant at 5 %."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def score_interval(scores: Sequence[float]) -> Interval:
    """The 95 % interval of one model's mean score over samples.

    Args:
        scores: Each sample's score in [0, 1].

    Returns:
        Wilson's interval (1927) if every score is 0 or 1: unlike the normal one it stays in [0, 1] and has a
        width at 0 and 1. Else Student's t over the samples.
    """
    n = len(scores)
    if n == 0 or any(score not in {0.0, 1.0} for score in scores):
        return mean_interval(scores)
    from scipy.stats import binomtest  # type: ignore[import-untyped]  # half a second that few commands need

    right = sum(score == 1.0 for score in scores)
    ends = binomtest(right, n).proportion_ci(0.95, method="wilson")
    # Where all samples agree one end is 0 or 1 exactly; rounding must not put it inside.
    low, high = float(ends.low) if right else 0.0, float(ends.high) if right < n else 1.0
    return Interval(right / n, low, high, n, "wilson")


def mean_interval(values: Sequence[float]) -> Interval:
    """The mean of independent draws (seeds, support sets) with Student's 95 % interval.

    Args:
        values: One value a draw.

    Returns:
        The interval; without ends for a single draw.

    Raises:
        GradfixError: If there are no values.
    """
    n = len(values)
    if n == 0:
        raise GradfixError("an interval needs at least one value")
    mean = math.fsum(values) / n
    if n == 1:
        return Interval(mean, None, None, 1, "student-t")
    from scipy.stats import t

    error = statistics.stdev(values, mean) / math.sqrt(n)
    low, high = t.interval(0.95, n - 1, loc=mean, scale=error) if error else (mean, mean)
    return Interval(mean, float(low), float(high), n, "student-t")


def paired_difference(values: Sequence[float], baseline: Sequence[float]) -> Interval:
    """The mean difference of two methods over the same draws, with Student's 95 % interval.

    Draws of a study (seeds, support sets) are few and their means near normal, so t over the paired
    differences fits; a bootstrap of three values would not. For two models on the same samples use
    `paired_samples`.

    Args:
        values: One value a draw.
        baseline: The other method's, draw by draw.

    Returns:
        The interval of ``values − baseline``.

    Raises:
        GradfixError: If the two have different numbers of draws.
    """
    if len(values) != len(baseline):
        raise GradfixError(
            f"a paired difference needs as many values on both sides, found {len(values)} and {len(baseline)}"
        )
    return mean_interval([value - other for value, other in zip(values, baseline, strict=True)])


def paired_samples(
    scores: Sequence[float], baseline: Sequence[float], *, resamples: int = 10_000, seed: int = 0
) -> Interval:
    """The difference of two models' mean scores on the same samples, with a 95 % bootstrap interval.

    Samples are many and their differences are −1, 0 or 1, far from normal where two models mostly agree; the
    paired percentile bootstrap needs no such assumption. It speaks about other test samples, not about other
    support sets.

    Args:
        scores: Each sample's score under one model.
        baseline: Under the other, in the same order.
        resamples: Bootstrap resamples.
        seed: Of the resampling.

    Returns:
        The interval of ``mean(scores) − mean(baseline)``.

    Raises:
        GradfixError: If the two have different numbers of samples, or none.
    """
    if len(scores) != len(baseline) or not scores:
        raise GradfixError(
            "a paired difference needs the same samples on both sides, "
            f"found {len(scores)} and {len(baseline)}"
        )
    import numpy as np

    differences = np.asarray(scores, dtype=np.float64) - np.asarray(baseline, dtype=np.float64)
    n = len(differences)
    # Resampling n samples is drawing how often each distinct difference occurs: exact, and cheap for large n.
    distinct, counts = np.unique(differences, return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(n, counts / n, size=resamples)
    low, high = np.percentile(drawn @ distinct / n, [2.5, 97.5])
    return Interval(float(differences.mean()), float(low), float(high), n, "paired-bootstrap")
