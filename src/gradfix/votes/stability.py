"""How far the signs would change if the samples were drawn again, from the counts alone.

Index letters: ``N`` samples, ``v`` a coordinate's net votes, ``k`` its votes for plus.

A coordinate's expected agreement over *all* splits of the samples into two halves depends on how many voted
plus and minus, not on who did: the votes for plus that fall into one half are hypergeometric. So the estimate
needs no second set of counts, and no split is singled out by chance.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

SETTLING = (1, 3, 5, 9, 13, 19, 27, 39, 57)
"""Sizes of draws at which the settling of the majorities is computed: odd ones, since even draws can tie."""
NETS = 100
"""Values of abs(v) told apart there."""


@dataclass(frozen=True)
class Stability:
    """Expected agreement of majority signs between draws of the samples, over the coordinates with a sign.

    Attributes:
        split_half: Probability that the majorities of the two halves of a random split agree, a tie in
            either half being a disagreement; exact, averaged over coordinates. It describes draws of N/2
            samples, and so understates what draws of N samples would give.
        redraw: Probability that N new samples, each voting plus with the share of plus votes seen, give
            the sign seen. The share seen is also what chose the sign, so this overstates.
        coordinates: How many coordinates entered: those with v ≠ 0.
        settling: How the majorities settle as samples are added: a number n of samples, and the probability that
            two separate draws of n out of the N agree, a tie being a disagreement; exact, averaged over all
            coordinates, those with v = 0 included, so that noise alone gives one half at most; n up to N/2.
    """

    split_half: float
    redraw: float
    coordinates: int
    settling: tuple[tuple[int, float], ...] = ()

    @property
    def mask_change(self) -> tuple[float, float]:
        """Range within which the share of signs lies that another draw of N samples would change."""
        low, high = sorted((1 - self.redraw, 1 - self.split_half))
        return low, high


def agreement_of_halves(net: int, samples: int) -> float:
    """Compute the expected agreement between the two halves of a random split on a coordinate.

    A sample without a vote on a coordinate (gradient exactly zero) is not told apart in v. One is assumed
    where N and v have different parity, none elsewhere.

    Args:
        net: abs(v), from 1 to N (counts are symmetric in sign).
        samples: N, at least 2.

    Returns:
        The probability that both halves have the same majority; a tie in either is a disagreement.
    """
    voters, plus = _voters(net, samples)
    agreement = 0.0
    # In odd numbers the second half has one sample more; a silent one is in either half by its size.
    for first, second, weight in _silent_places(
        samples - voters, samples // 2, samples - samples // 2, samples
    ):
        k = np.arange(first + 1)
        agree = np.sign(2 * k - first) * np.sign(2 * (plus - k) - second) > 0
        agreement += weight * float(_chance(k[agree], first, plus, voters - plus).sum())
    return agreement


def agreement_of_redraw(net: int, samples: int) -> float:
    """Compute the probability that N new samples, each voting plus with the share seen, give the sign seen.

    Args:
        net: abs(v), from 1 to N; a sample without a vote is assumed as in :func:`agreement_of_halves`.
        samples: N, at least 2.

    Returns:
        The probability; a tie is a disagreement.
    """
    from scipy.special import bdtrc  # type: ignore[import-untyped]  # scipy.stats takes a second to import

    voters, plus = _voters(net, samples)
    return float(bdtrc(voters // 2, voters, plus / voters))


def agreement_of_draws(net: int, samples: int, size: int) -> float:
    """Compute the probability that the majorities of two separate draws agree on a coordinate.

    Args:
        net: abs(v), from 0 to N; a sample without a vote is assumed as in :func:`agreement_of_halves`.
        samples: N.
        size: n, samples in each draw; 2 n ≤ N.

    Returns:
        The probability over all ways to draw n and n of the N samples; a tie in either draw is a disagreement.
    """
    voters, plus = _voters(net, samples)
    agreement = 0.0
    for first, second, weight in _silent_places(samples - voters, size, size, samples):
        minus = voters - plus
        k, other = np.arange(max(0, first - minus), min(first, plus) + 1), np.arange(second + 1)
        of_first = _chance(k, first, plus, minus)
        of_second = _chance(other, second, plus - k[:, None], minus - (first - k)[:, None])
        agree = np.sign(2 * k - first)[:, None] * np.sign(2 * other - second) > 0
        agreement += weight * float((of_first * (of_second * agree).sum(axis=1)).sum())
    return agreement


def _chance(
    k: npt.NDArray[np.int_], drawn: int, plus: int | npt.NDArray[np.int_], minus: int | npt.NDArray[np.int_]
) -> npt.NDArray[np.float64]:
    """Probability of k votes for plus among those drawn; scipy's own hypergeom takes sixty times as long."""
    logs = _log_choose(plus, k) + _log_choose(minus, drawn - k) - _log_choose(plus + minus, np.asarray(drawn))
    return np.exp(logs)


def _log_choose(n: int | npt.NDArray[np.int_], k: npt.NDArray[np.int_]) -> npt.NDArray[np.float64]:
    """Logarithm of n over k, −∞ where k lies outside [0, n]."""
    from scipy.special import gammaln

    inside = (k >= 0) & (k <= n)
    k = np.where(inside, k, 0)
    return np.where(inside, gammaln(np.add(n, 1)) - gammaln(k + 1) - gammaln(n - k + 1), -np.inf)


def _voters(net: int, samples: int) -> tuple[int, int]:
    """How many samples voted, and how many of them for the majority."""
    voters = samples - (samples - net) % 2
    return voters, (voters + net) // 2


def _silent_places(silent: int, first: int, second: int, samples: int) -> list[tuple[int, int, float]]:
    """Where the silent sample may be: the voters in each of two draws, and how likely that is."""
    if not silent:
        return [(first, second, 1.0)]
    places = [
        (first - 1, second, first),
        (first, second - 1, second),
        (first, second, samples - first - second),
    ]
    return [(one, other, ways / samples) for one, other, ways in places if ways]


def stability_from_histogram(histogram: np.ndarray, samples: int) -> Stability:
    """Average both estimates over the coordinates.

    Args:
        histogram: How many coordinates have abs(v) = 0, 1, …, N; shape (N + 1,).
        samples: N, at least 2.

    Returns:
        The averages; 0 agreement where no coordinate has a sign.
    """
    decided = {net: int(count) for net, count in enumerate(histogram) if net and count}
    total = sum(decided.values())
    if total == 0:
        return Stability(0.0, 0.0, 0)
    half = samples // 2
    last = min(half - (half + 1) % 2, SETTLING[-1])
    drawn = sorted({size for size in (*SETTLING, last) if 0 < size <= half})
    agreeing = dict.fromkeys(drawn, 0.0)
    split = redraw = 0.0
    for net, count in decided.items():
        split += count / total * agreement_of_halves(net, samples)
        redraw += count / total * agreement_of_redraw(net, samples)
    # Between neighbours the agreement hardly differs: with thousands of samples, a hundred of them stand for all.
    merged: dict[int, int] = {}
    step = -(-(samples + 1) // NETS)
    for net, count in enumerate(histogram.tolist()):
        near = net if step == 1 else min(samples, net // step * step + step // 2)
        merged[near] = merged.get(near, 0) + count
    for net, count in merged.items():
        for size in drawn if count else ():
            agreeing[size] += count / int(histogram.sum()) * agreement_of_draws(net, samples, size)
    return Stability(split, redraw, total, tuple(agreeing.items()))
