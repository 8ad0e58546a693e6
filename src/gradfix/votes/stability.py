"""How far the signs would change if the samples were drawn again, from the counts alone.

Index letters: ``N`` samples, ``v`` a coordinate's net votes, ``k`` its votes for plus.

A coordinate's expected agreement over *all* splits of the samples into two halves depends on how many voted
plus and minus, not on who did: the votes for plus that fall into one half are hypergeometric. So the estimate
needs no second set of counts, and no split is singled out by chance.
"""

from dataclasses import dataclass

import numpy as np

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


def agreement_of_count(net: int, samples: int) -> tuple[float, float]:
    """Compute both estimates for a coordinate.

    A sample without a vote on a coordinate (gradient exactly zero) is not told apart in v. One is assumed
    where N and v have different parity, none elsewhere.

    Args:
        net: abs(v), from 1 to N (counts are symmetric in sign).
        samples: N, at least 2.

    Returns:
        The expected agreement between split halves, and the agreement with a redraw.
    """
    log_factorials = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, samples + 1)))])

    def log_choose(n: int, k: np.ndarray) -> np.ndarray:
        """Logarithm of n over k, −∞ where k lies outside [0, n]."""
        inside = (k >= 0) & (k <= n)
        k = np.where(inside, k, 0)
        return np.where(inside, log_factorials[n] - log_factorials[k] - log_factorials[n - k], -np.inf)

    silent = (samples - net) % 2
    voters = samples - silent
    plus = (voters + net) // 2
    half = samples // 2
    split = 0.0
    # a silent sample, if there is one, is in the first half with probability h/N
    for silent_first in range(silent + 1):
        weight = 1.0 if not silent else (half if silent_first else samples - half) / samples
        first, second = half - silent_first, samples - half - (silent - silent_first)
        k = np.arange(first + 1)
        chance = np.exp(
            log_choose(plus, k) + log_choose(voters - plus, first - k) - log_choose(voters, np.array([first]))
        )
        agree = np.sign(2 * k - first) * np.sign(2 * (plus - k) - second) > 0
        split += weight * float(chance[agree].sum())
    share, k = plus / voters, np.arange(voters // 2 + 1, voters + 1)
    if share == 1.0:
        return split, 1.0
    logs = log_choose(voters, k) + k * np.log(share) + (voters - k) * np.log1p(-share)
    return split, float(np.exp(logs).sum())


def agreement_of_draws(net: int, samples: int, size: int) -> float:
    """Compute the probability that the majorities of two separate draws agree on a coordinate.

    Args:
        net: abs(v), from 0 to N; a sample without a vote is assumed as in :func:`agreement_of_count`.
        samples: N.
        size: n, samples in each draw; 2 n ≤ N.

    Returns:
        The probability over all ways to draw n and n of the N samples; a tie in either draw is a disagreement.
    """
    silent = (samples - net) % 2
    plus = (samples - silent + net) // 2
    minus = samples - silent - plus
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, samples + 1)))])

    def chance(plus: np.ndarray, minus: np.ndarray, drawn: int) -> np.ndarray:
        """Probability of k votes for plus among those drawn, for k = 0 … drawn along the last axis."""
        plus, minus, k = plus[..., None], minus[..., None], np.arange(drawn + 1)
        inside = (k <= plus) & (drawn - k <= minus)
        of_plus, of_minus = np.where(inside, k, 0), np.where(inside, drawn - k, 0)
        whole = plus + minus
        log = logs[plus] - logs[of_plus] - logs[np.maximum(plus - of_plus, 0)]
        log = log + logs[minus] - logs[of_minus] - logs[np.maximum(minus - of_minus, 0)]
        log = log - logs[whole] + logs[drawn] + logs[np.maximum(whole - drawn, 0)]
        return np.where(inside, np.exp(log), 0.0)

    total = 0.0
    # A silent sample is in the first draw or in the second with n/N each, else in neither.
    for first, second, weight in (
        (size - silent, size, size / samples if silent else 0.0),
        (size, size - silent, size / samples if silent else 0.0),
        (size, size, 1 - 2 * size / samples if silent else 1.0),
    ):
        if not weight:
            continue
        k = np.arange(first + 1)
        of_first = chance(np.array(plus), np.array(minus), first)
        possible = (k <= plus) & (first - k <= minus)
        of_second = chance(np.maximum(plus - k, 0), np.maximum(minus - (first - k), 0), second)
        side, other = np.sign(2 * k - first), np.sign(2 * np.arange(second + 1) - second)
        agree = (side[:, None] * other[None, :]) > 0
        total += weight * float((of_first * possible * (of_second * agree).sum(axis=1)).sum())
    return total


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
        of_split, of_redraw = agreement_of_count(net, samples)
        split += count / total * of_split
        redraw += count / total * of_redraw
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
