"""Metrics that are no mean over samples: F1 over all entities, correlations, retrieval among all texts.

Each is given as one contribution a sample, whose mean is the metric. For a metric of sums these are the jackknife's:
what the metric loses without a sample, n − 1 times, about its value (Miller, "The jackknife: a review", 1974). Their
spread is that of the metric, so intervals and paired differences of models are those of a mean.

Letters used below: n samples, k statistics of each, d features.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Totals:
    """A metric over all samples.

    Attributes:
        contributions: ``[n]``; their mean is the metric.
        also: Other metrics of the same predictions, by name.
    """

    contributions: Values
    also: Mapping[str, float] = field(default_factory=dict)


def jackknife(statistics: Values, metric: Callable[[Values], Values]) -> Values:
    """Divide a metric of sums among the samples.

    Args:
        statistics: ``[n, k]``.
        metric: From sums ``[…, k]`` to values ``[…]``.

    Returns:
        ``[n]`` contributions, whose mean is the metric of the sums of all.
    """
    n, sums = len(statistics), statistics.sum(axis=0)
    without = metric(sums - statistics)
    found: Values = metric(sums) + (n - 1) * (without.mean() - without)
    return found


def f_measure(sums: Values) -> Values:
    """The harmonic mean of precision and recall.

    Args:
        sums: ``[…, 3]``: right ones, predicted ones, and those there are.

    Returns:
        ``[…]``; 1 where there is nothing to find and nothing was found.
    """
    right, predicted, wanted = np.moveaxis(sums, -1, 0)
    total = predicted + wanted
    return np.where(total > 0, 2 * right / np.maximum(total, 1), 1.0)


def f1_totals(statistics: Values) -> Totals:
    """F1 over what all samples hold, with precision and recall.

    Args:
        statistics: ``[n, 3]``: right ones, predicted ones, and those there are.

    Returns:
        The metric.
    """
    right, predicted, wanted = statistics.sum(axis=0)
    also = {
        "precision": float(right / predicted) if predicted else 0.0,
        "recall": float(right / wanted) if wanted else 0.0,
    }
    return Totals(jackknife(statistics, f_measure), also)


def correlation_totals(statistics: Values, *, ranked: bool) -> Totals:
    """Pearson's correlation of predictions with targets, and Spearman's; 0 where either is constant.

    Args:
        statistics: ``[n, 2]``: prediction and target.
        ranked: Spearman's is the metric and Pearson's stands beside it; else the other way round. Ranks are those
            among all samples, also where one is left out.

    Returns:
        The metric.
    """
    from scipy.stats import rankdata  # type: ignore[import-untyped]  # half a second that few commands need

    values = {
        "pearson": statistics,
        "spearman": np.stack([rankdata(column) for column in statistics.T], axis=1),
    }
    name, other = ("spearman", "pearson") if ranked else ("pearson", "spearman")
    return Totals(_correlations(values[name]), {other: float(_correlations(values[other]).mean())})


def _correlations(pairs: Values) -> Values:
    centred = pairs - pairs.mean(axis=0)
    scale = np.abs(centred).max(axis=0)
    x, y = (centred / np.where(scale > 0, scale, 1.0)).T
    moments = np.stack([np.ones_like(x), x, y, x * x, y * y, x * y], axis=1)
    return jackknife(moments, _pearson)


def _pearson(sums: Values) -> Values:
    n, x, y, xx, yy, xy = np.moveaxis(sums, -1, 0)
    spread = (n * xx - x * x) * (n * yy - y * y)
    known = (n * xx - x * x > 1e-12 * n * n) & (n * yy - y * y > 1e-12 * n * n)
    found: Values = np.where(known, (n * xy - x * y) / np.sqrt(np.where(known, spread, 1.0)), 0.0)
    return found.clip(-1.0, 1.0)


def retrieval_totals(statistics: Values) -> Totals:
    """Whether each text's nearest among all counterparts is its own, with the mean reciprocal rank.

    Args:
        statistics: ``[n, 2 d]``: unit features of a text, and of its counterpart. A counterpart that occurs several
            times is one: a text is not asked to tell equal ones apart.

    Returns:
        The metric, the share of texts at rank 1.
    """
    d = statistics.shape[1] // 2
    queries, answers = statistics[:, :d], statistics[:, d:]
    answers, own = np.unique(answers, axis=0, return_inverse=True)
    ranks = []
    for start in range(0, len(queries), 1024):
        part = queries[start : start + 1024] @ answers.T
        wanted = np.take_along_axis(part, own.reshape(-1)[start : start + 1024, None], axis=1)
        # an equal rival may be taken for it: then the text was not told from it
        ranks.append((part >= wanted).sum(axis=1))
    rank = np.concatenate(ranks)
    return Totals((rank == 1).astype(float), {"mean_reciprocal_rank": float((1 / rank).mean())})


def entities(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """Read entities out of tags, as ``conlleval`` and seqeval's default do.

    A tag is a scheme's letter and a type, ``B-PER``; an entity begins at B or S, where the type changes, or after E, S
    or O, and ends before the next begins: so IOB1, IOB2 and BIOES are all read.

    Args:
        tags: Of the words of a sentence.

    Returns:
        Type, first word, and last word of each.
    """
    found: set[tuple[str, int, int]] = set()
    before, kind, start = "O", "", 0
    for place, tag in enumerate([*tags, "O"]):
        letter, _, name = tag.partition("-")
        same = name == kind and before not in "OESL" and letter not in "OBSU"
        if before != "O" and not same:
            found.add((kind, start, place - 1))
        if letter != "O" and not same:
            start = place
        before, kind = letter, name
    return found


def matched_entities(predicted: Sequence[str], wanted: Sequence[str]) -> tuple[int, int, int]:
    """Count the entities of a sentence.

    Args:
        predicted: A tag a word.
        wanted: The right ones.

    Returns:
        Those found with the right type and ends, those predicted, and those there are.
    """
    ours, theirs = entities(predicted), entities(wanted)
    return len(ours & theirs), len(ours), len(theirs)


def as_codes(texts: Sequence[str]) -> torch.Tensor:
    """Put texts into a batch, whose values are tensors.

    Args:
        texts: B texts.

    Returns:
        ``[B, longest]`` int64 code points, 0 after the end.
    """
    width = max(1, *map(len, texts))
    return torch.tensor([[*map(ord, text), *[0] * (width - len(text))] for text in texts])


def from_codes(codes: torch.Tensor) -> str:
    """Read a text back.

    Args:
        codes: ``[longest]``, a row of what `as_codes` made.

    Returns:
        The text.
    """
    return "".join(chr(code) for code in codes.tolist() if code)


def as_values(statistics: Any) -> Values:
    """Give a tensor of statistics as numbers to sum.

    Args:
        statistics: ``[n, k]``.

    Returns:
        The same as float64.
    """
    found: Values = statistics.detach().cpu().double().numpy()
    return found
