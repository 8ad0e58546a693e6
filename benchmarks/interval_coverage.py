"""How often 95 % intervals hold: coverage by simulation, of those that gradfix gives and of what it gave before.

python benchmarks/interval_coverage.py
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy.stats import t

from gradfix.evaluation.intervals import ENOUGH, Interval, mean_interval, paired_samples, score_interval

TRIALS = 1000
Ends = tuple[float, float] | None
Draw = Callable[[np.random.Generator], tuple[Sequence[float], Sequence[float]]]


def ends(found: Interval) -> Ends:
    """The ends of an interval; None where it says that there are too few values."""
    return None if found.low is None or found.high is None else (found.low, found.high)


def bootstrap(scores: Sequence[float], baseline: Sequence[float]) -> Ends:
    """The paired percentile bootstrap."""
    differences = np.asarray(scores) - np.asarray(baseline)
    values, counts = np.unique(differences, return_counts=True)
    drawn = np.random.default_rng(0).multinomial(len(differences), counts / len(differences), size=2000)
    low, high = np.percentile(drawn @ values / len(differences), [2.5, 97.5])
    return float(low), float(high)


def student(values: Sequence[float]) -> Ends:
    """Student's t, whatever the number of values."""
    n, mean = len(values), float(np.mean(values))
    half = float(t.ppf(0.975, n - 1)) * float(np.std(values, ddof=1)) / math.sqrt(n)
    return mean - half, mean + half


def coverage(truth: float, sample: Callable[[np.random.Generator], Ends]) -> str:
    """Share of the intervals that hold the truth, and of the samples that are too few for one."""
    generator = np.random.default_rng(1)
    found = [sample(generator) for _ in range(TRIALS)]
    given = [one for one in found if one is not None]
    share = np.mean([low - 1e-12 <= truth <= high + 1e-12 for low, high in given]) if given else math.nan
    none = f", {100 * (1 - len(given) / len(found)):.0f} % too few" if len(given) < len(found) else ""
    return f"{100 * share:.1f} %{none}" if given else "always too few"


def pairs(n: int, ours: float, theirs: float) -> Draw:
    """Two models on n samples: one is right where the other is wrong with probabilities ``ours`` and ``theirs``."""

    def draw(generator: np.random.Generator) -> tuple[Sequence[float], Sequence[float]]:
        kind = generator.choice(3, p=[ours, theirs, 1 - ours - theirs], size=n)
        shared = (generator.random(n) < 0.8).astype(float)
        first = np.where(kind == 0, 1.0, np.where(kind == 1, 0.0, shared))
        second = np.where(kind == 0, 0.0, np.where(kind == 1, 1.0, shared))
        return first.tolist(), second.tolist()

    return draw


def main() -> None:
    """Print the tables."""
    print("| paired difference on | true difference | gradfix | paired bootstrap |\n|---|---|---|---|")
    for n in (10, 20, 50, 200, 1000):
        for ours, theirs in ((0.02, 0.0), (0.05, 0.05), (0.3, 0.1)):
            draw, truth = pairs(n, ours, theirs), ours - theirs
            found = coverage(truth, lambda g, d=draw: ends(paired_samples(*d(g))))
            print(
                f"| {n} samples | {truth:+.2f} | {found} | {coverage(truth, lambda g, d=draw: bootstrap(*d(g)))} |"
            )
    print("\n| one model on | true score | gradfix |\n|---|---|---|")
    for n in (10, 50, 1000):
        for share in (0.5, 0.95, 0.99):
            found = coverage(
                share, lambda g, n=n, p=share: ends(score_interval((g.random(n) < p).astype(float).tolist()))
            )
            print(f"| {n} samples | {share} | {found} |")
    print("\n| mean of | of which stay at the base | gradfix | Student's t always |\n|---|---|---|---|")
    for n in (3, ENOUGH, 10):
        for still in (0.0, 0.3, 0.7):

            def draws(g: np.random.Generator, n: int = n, still: float = still) -> list[float]:
                return np.where(g.random(n) < still, 0.6, g.normal(0.7, 0.03, n)).tolist()

            truth = 0.6 * still + 0.7 * (1 - still)
            held = coverage(truth, lambda g, d=draws: ends(mean_interval(d(g))))
            print(
                f"| {n} draws | {still:.0%} | {held} | {coverage(truth, lambda g, d=draws: student(d(g)))} |"
            )


if __name__ == "__main__":
    main()
