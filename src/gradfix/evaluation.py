"""How good a model is at a task, with intervals: for one model, over draws, and between two models."""

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from gradfix.errors import GradfixError
from gradfix.progress import Progress, silent
from gradfix.tasks.base import Task
from gradfix.tasks.running import evaluating


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


@dataclass(frozen=True)
class Evaluation:
    """The measurement of one model on one data set. `to_json` makes plain values of it.

    Attributes:
        task: The task's name.
        metric: What `score` is: "accuracy", "exact_match", "token_accuracy".
        n: Samples.
        score: Mean score in [0, 1].
        interval: Of the score, 95 %: Wilson's where each sample is right or wrong, else Student's t.
        loss: Mean loss a sample.
        truncated: Samples that were cut to the model's context.
        seconds: Wall time, data included.
        scores: Each sample's score, in the order of the rows.
        losses: Each sample's loss.
        predictions: Each sample's prediction.
    """

    task: str
    metric: str
    n: int
    score: float
    interval: Interval
    loss: float
    truncated: int
    seconds: float
    scores: list[float]
    losses: list[float]
    predictions: list[Any]

    def to_json(self, *, samples: bool = False) -> dict[str, Any]:
        """The result as plain values.

        Args:
            samples: Include the values of each sample.

        Returns:
            What ``json.dumps`` takes.
        """
        values = asdict(self)
        if not samples:
            for name in ("scores", "losses", "predictions"):
                del values[name]
        return values


@dataclass(frozen=True)
class EncodedRows:
    """Rows encoded once, to be evaluated many times (α is tried at many values).

    Attributes:
        batches: What the task's ``encode`` returned, samples of like length together.
        positions: For each batch, the places of its samples in the rows.
    """

    batches: list[Any]
    positions: list[list[int]]


def encode_rows(
    task: Task, rows: Sequence[Any], *, batch_size: int = 32, strict: bool = False
) -> EncodedRows:
    """Encode rows for several evaluations.

    Args:
        task: The task.
        rows: At least one sample. All their tensors are kept in memory.
        batch_size: Samples a batch.
        strict: Refuse samples longer than the model's context.

    Returns:
        The batches.
    """
    positions = _plan(task, rows, batch_size)
    return EncodedRows(
        [task.encode([rows[index] for index in places], strict=strict) for places in positions], positions
    )


def evaluate(
    model: nn.Module,
    task: Task,
    rows: Sequence[Any] | EncodedRows,
    *,
    batch_size: int = 32,
    strict: bool = False,
    progress: Progress = silent,
) -> Evaluation:
    """Measure a model on labelled rows.

    The model is in eval mode and without gradients meanwhile; afterwards every module is in the mode it was.

    Args:
        model: The model, on any device.
        task: The task, prepared for this model or its base.
        rows: Samples, encoded as they are needed; or what `encode_rows` made.
        batch_size: Samples a forward pass; without effect on `EncodedRows`.
        strict: Refuse samples longer than the model's context.
        progress: Told after each batch.

    Returns:
        The measurement; per-sample values in the order of the rows.

    Raises:
        GradfixError: If there are no rows, or a loss is not finite.
    """
    start = time.perf_counter()
    positions = rows.positions if isinstance(rows, EncodedRows) else _plan(task, rows, batch_size)
    n = sum(map(len, positions))
    scores, losses, predictions = [0.0] * n, [0.0] * n, [None] * n
    truncated = done = 0
    with evaluating(model):
        for number, places in enumerate(positions):
            if isinstance(rows, EncodedRows):
                batch = rows.batches[number]
            else:
                batch = task.encode([rows[index] for index in places], strict=strict)
            measured = task.measure(model, batch)
            _finite(measured.losses, places)
            values = zip(
                places, measured.scores.tolist(), measured.losses.tolist(), measured.predictions, strict=True
            )
            for index, score, loss, prediction in values:
                scores[index], losses[index], predictions[index] = score, loss, prediction
            if isinstance(batch, dict) and "truncated" in batch:
                truncated += int(batch["truncated"].sum())
            done += len(places)
            progress("evaluating", done, n, "samples")
    return Evaluation(
        task=task.name,
        metric=task.metric,
        n=n,
        score=math.fsum(scores) / n,
        interval=score_interval(scores),
        loss=math.fsum(losses) / n,
        truncated=truncated,
        seconds=time.perf_counter() - start,
        scores=scores,
        losses=losses,
        predictions=predictions,
    )


def _plan(task: Task, rows: Sequence[Any], batch_size: int) -> list[list[int]]:
    """Places of the rows by batch, the longest first: little is padded, and too little memory shows early."""
    if not len(rows):
        raise GradfixError("there are no rows to evaluate")
    sizes = [task.size(row) for row in rows]
    order = sorted(range(len(sizes)), key=lambda index: (-sizes[index], index))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def _finite(losses: torch.Tensor, places: Sequence[int]) -> None:
    bad = (~torch.isfinite(losses)).nonzero().flatten().tolist()
    if bad:
        rows = ", ".join(str(places[index]) for index in bad[:5])
        raise GradfixError(
            f"{len(bad)} of {len(losses)} losses in a batch are not finite (samples {rows}); "
            "check the weights, or load them in float32"
        )


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
    z = 1.959963984540054
    share = math.fsum(scores) / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return Interval(share, max(0.0, centre - half), min(1.0, centre + half), n, "wilson")


def mean_interval(values: Sequence[float]) -> Interval:
    """The mean of independent draws (seeds, support sets) with Student's 95 % interval.

    Args:
        values: One value a draw.

    Returns:
        The interval; without ends for a single draw.

    Raises:
        GradfixError: If there are no values.
    """
    from scipy.stats import t  # type: ignore[import-untyped]

    n = len(values)
    if n == 0:
        raise GradfixError("an interval needs at least one value")
    mean = math.fsum(values) / n
    if n == 1:
        return Interval(mean, None, None, 1, "student-t")
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    half = float(t.ppf(0.975, n - 1)) * deviation / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, n, "student-t")


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
