"""95 % intervals: of one model over samples, of a method over draws, and of a difference of two.

What holds was measured by simulation (`benchmarks/coverage.py`): Student's t over three draws covers too little where
many draws choose the same, and says ± 0 where all do; a bootstrap of 50 or fewer samples covers as little as 18 %.
"""

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from gradfix.errors import GradfixError
from gradfix.recipes.fields import CORRELATIONS

ENOUGH = 5
"""Draws, or graded samples, below which no interval is given: too few to tell how much they vary."""


EQUAL = 1e-9
"""Values that differ by less are one, but for rounding."""


@dataclass(frozen=True)
class Interval:
    """A value with a 95 % confidence interval.

    Attributes:
        value: The estimate.
        low: Lower end; None where the data allow no interval.
        high: Upper end.
        n: How many values it rests on.
        method: How it was made: "wilson", "newcombe" or "student-t"; "too-few" where there is none.
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


def bounds_of(metric: str) -> tuple[float, float]:
    """Tell what no score can leave.

    Args:
        metric: Its name.

    Returns:
        Both ends: −1 and 1 for a correlation, else 0 and 1.
    """
    return (-1.0, 1.0) if metric in CORRELATIONS else (0.0, 1.0)


def score_interval(scores: Sequence[float], *, bounds: tuple[float, float] = (0.0, 1.0)) -> Interval:
    """The 95 % interval of one model's mean score over samples.

    Args:
        scores: What each sample contributes to the score.
        bounds: What no score can leave.

    Returns:
        Wilson's interval (1927) if every score is 0 or 1: unlike the normal one it stays in [0, 1] and has a
        width at 0 and 1. Else Student's t over the samples, within the bounds.
    """
    n = len(scores)
    if n == 0 or any(score not in {0.0, 1.0} for score in scores):
        return mean_interval(scores, bounds=bounds)
    low, high = _wilson(sum(map(int, scores)), n)
    return Interval(math.fsum(scores) / n, low, high, n, "wilson")


def mean_interval(values: Sequence[float], *, bounds: tuple[float, float] = (0.0, 1.0)) -> Interval:
    """The mean of independent draws (seeds, support sets) with Student's 95 % interval.

    Args:
        values: One value a draw.
        bounds: What no mean can leave.

    Returns:
        The interval; without ends for fewer than :data:`ENOUGH` draws, and for draws that are all equal: they don't
        tell how much others would differ.

    Raises:
        GradfixError: If there are no values.
    """
    n = len(values)
    if n == 0:
        raise GradfixError("an interval needs at least one value")
    mean = math.fsum(values) / n
    if n < ENOUGH or max(values) - min(values) < EQUAL:
        return Interval(mean, None, None, n, "too-few")
    from scipy.special import stdtrit  # type: ignore[import-untyped]  # scipy.stats takes a second to import

    half = float(stdtrit(n - 1, 0.975)) * statistics.stdev(values, mean) / math.sqrt(n)
    return Interval(mean, max(mean - half, bounds[0]), min(mean + half, bounds[1]), n, "student-t")


def interval_words(draws: int) -> str:
    """Say for a caption what stands beside a mean over draws.

    Args:
        draws: How many.

    Returns:
        A few words.
    """
    if draws < ENOUGH:
        return f"(fewer than {ENOUGH} draws are too few for an interval)"
    return "with the 95 % interval of Student's t"


def paired_difference(values: Sequence[float], baseline: Sequence[float]) -> Interval:
    """The mean difference of two methods over the same draws, with Student's 95 % interval.

    For two models on the same samples use `paired_samples`.

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
    differences = [value - other for value, other in zip(values, baseline, strict=True)]
    # Correlations, and what samples contribute to a metric over all of them, may leave [0, 1].
    within = all(0 <= value <= 1 for value in (*values, *baseline))
    return mean_interval(differences, bounds=(-1.0, 1.0) if within else (-2.0, 2.0))


def paired_samples(scores: Sequence[float], baseline: Sequence[float]) -> Interval:
    """The difference of two models' mean scores on the same samples, with a 95 % interval.

    It speaks about other test samples, not about other support sets.

    Args:
        scores: Each sample's score in [0, 1] under one model.
        baseline: Under the other, in the same order.

    Returns:
        The interval of ``mean(scores) − mean(baseline)``: Newcombe's for paired proportions (1998, method 10) where
        every score is 0 or 1, which is never without a width; else Student's t of the differences.

    Raises:
        GradfixError: If the two have different numbers of samples, or none.
    """
    if len(scores) != len(baseline) or not scores:
        raise GradfixError(
            f"a paired difference needs the same samples on both sides, found {len(scores)} and {len(baseline)}"
        )
    if any(score not in {0.0, 1.0} for score in (*scores, *baseline)):
        return paired_difference(scores, baseline)
    n = len(scores)
    cells = Counter(zip(scores, baseline, strict=True))
    both, ours, theirs, none = (cells[pair] for pair in ((1.0, 1.0), (1.0, 0.0), (0.0, 1.0), (0.0, 0.0)))
    first, second = (both + ours) / n, (both + theirs) / n
    (low1, high1), (low2, high2) = _wilson(both + ours, n), _wilson(both + theirs, n)
    margins = math.sqrt((both + ours) * (theirs + none) * (both + theirs) * (ours + none))
    excess = both * none - ours * theirs
    # With the continuity correction that Newcombe gives: small samples overstate how the two go together.
    phi = (
        max(excess - n / 2, 0.0) / margins if margins and excess > 0 else excess / margins if margins else 0.0
    )

    def reach(one: float, other: float) -> float:
        return math.sqrt(max(one * one - 2 * phi * one * other + other * other, 0.0))

    value = first - second
    low = value - reach(first - low1, high2 - second)
    high = value + reach(high1 - first, second - low2)
    return Interval(value, max(low, -1.0), min(high, 1.0), n, "newcombe")


def _wilson(right: int, n: int) -> tuple[float, float]:
    """Wilson's interval of a share; scipy's, whose rounding may leave [0, 1]."""
    from scipy.stats import binomtest  # type: ignore[import-untyped]  # a second to import, so only where something is judged

    found = binomtest(right, n).proportion_ci(0.95, method="wilson")
    return (0.0 if right == 0 else float(found.low)), (1.0 if right == n else float(found.high))
