"""How good a model is at a task. The intervals of `gradfix.evaluation.intervals` belong to this interface too."""

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import nn
from typing_extensions import override

from gradfix.errors import GradfixError
from gradfix.evaluation.intervals import (
    Interval,
    bounds_of,
    mean_interval,
    paired_difference,
    paired_samples,
    score_interval,
)
from gradfix.progress import Progress, silent
from gradfix.ranks import ranks
from gradfix.report.numbers import metric_name, score_words, shown_score
from gradfix.report.summary import Summarised, Summary
from gradfix.tasks.base import Measured, ModelTask, Task
from gradfix.tasks.batches import select, tensors_of
from gradfix.tasks.forward import evaluating
from gradfix.votes.isolation import refuse_spread

__all__ = [
    "EncodedRows",
    "Evaluation",
    "Interval",
    "encode_rows",
    "evaluate",
    "mean_interval",
    "paired_difference",
    "paired_samples",
    "score_interval",
]


Run: TypeAlias = Callable[[Callable[[Any], Any], Sequence[Any]], Iterable[Any]]
"""Maps a function, which runs a model on a batch, over batches or their numbers, in order."""


@dataclass(frozen=True, repr=False)
class Evaluation(Summarised):
    """The measurement of one model on one data set.

    Attributes:
        task: The task's name.
        metric: What `score` is: "accuracy", "exact_match", "f1", "pearson".
        n: Samples.
        score: The metric: in [0, 1], a correlation in [−1, 1].
        interval: Of the score, 95 %: Wilson's where each sample is right or wrong, else Student's t.
        loss: Mean loss a sample.
        truncated: Samples that were cut to the model's context.
        seconds: Wall time, data included.
        scores: What each sample contributes to the score, which is their mean, in the order of the rows.
        losses: Each sample's loss.
        predictions: Each sample's prediction.
        logits: ``[n, classes]`` float32 on the CPU; None unless they were asked for and the task has classes.
        grades: How right each prediction is by itself, in [0, 1]; the scores but for a metric over all samples.
        statistics: ``[n, k]`` of such a metric; else None.
        also: Other metrics of the same predictions, by name.
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
    logits: torch.Tensor | None = field(default=None, compare=False)
    grades: list[float] = field(default_factory=list, compare=False)
    statistics: torch.Tensor | None = field(default=None, compare=False)
    also: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.grades:
            object.__setattr__(self, "grades", self.scores)

    def summary(self) -> Summary:
        """Say score, interval and loss.

        Returns:
            A line of each.
        """
        return Summary(
            f"{metric_name(self.metric)} {score_words(self.score, self.interval, self.metric)} on {self.n} samples "
            f"({self.task})",
            [
                *((metric_name(name), shown_score(value, name)) for name, value in self.also.items()),
                ("loss", f"{self.loss:.4f}"),
                ("cut to the model's context", f"{self.truncated or ''}"),
            ],
        )


MOST_KEPT = 1 << 30
"""Bytes of encoded samples that are kept at most; where there are more, batches are encoded each time."""


@dataclass(frozen=True)
class EncodedRows:
    """Rows encoded once, to be evaluated many times (α is tried at many values).

    Attributes:
        batches: What the task's ``encode`` returned, samples of like length together.
        positions: For each batch, the places of its samples in the rows.
    """

    batches: Sequence[Any]
    positions: list[list[int]]

    @property
    def order(self) -> list[int]:
        """The places of all samples, batch by batch."""
        return [index for places in self.positions for index in places]


class _WhenAsked(Sequence[Any]):
    """Batches that are encoded each time they are asked for."""

    def __init__(self, encode: Callable[[Sequence[int]], Any], positions: Sequence[Sequence[int]]) -> None:
        self._encode, self._positions = encode, positions

    def __len__(self) -> int:
        return len(self._positions)

    @override
    def __getitem__(self, number: Any) -> Any:
        return self._encode(self._positions[number])


def encode_rows(
    task: Task, rows: Sequence[Any], *, batch_size: int = 32, strict: bool = False
) -> EncodedRows:
    """Encode rows for several evaluations.

    Args:
        task: The task.
        rows: At least one sample. Their tensors are kept in memory, unless there are too many of them.
        batch_size: Samples a batch.
        strict: Refuse samples longer than the model's context.

    Returns:
        The batches.
    """
    positions = _plan(task, rows, batch_size)
    batches = _WhenAsked(
        lambda places: task.encode([rows[index] for index in places], strict=strict), positions
    )
    first = batches[0]  # the longest samples
    if _bytes(first) * len(batches) > MOST_KEPT:
        return EncodedRows(batches, positions)
    return EncodedRows([first, *(batches[number] for number in range(1, len(batches)))], positions)


def row_encoder(
    task: Task, rows: Sequence[Any], *, batch_size: int = 32, strict: bool = False
) -> Callable[[Sequence[int]], EncodedRows]:
    """Make what encodes some of the rows, again and again in other batches.

    Args:
        task: The task.
        rows: The samples.
        batch_size: Samples a batch.
        strict: Refuse samples longer than the model's context.

    Returns:
        Gives the batches of the rows at some places. Where all samples are of one shape, each was encoded once, unless
        there are too many of them.
    """
    one_shape = getattr(task, "one_shape", False)
    if not one_shape or _bytes(task.encode(rows[:1], strict=strict)) * len(rows) > MOST_KEPT:
        return lambda places: encode_rows(
            task, [rows[place] for place in places], batch_size=batch_size, strict=strict
        )
    whole = task.encode(rows, strict=strict)

    def take(places: Sequence[int]) -> EncodedRows:
        positions = _plan(task, [rows[place] for place in places], batch_size)
        return EncodedRows(
            [select(whole, [places[index] for index in part]) for part in positions], positions
        )

    return take


def evaluate(
    model: nn.Module,
    task: Task,
    rows: Sequence[Any] | EncodedRows,
    *,
    batch_size: int = 32,
    strict: bool = False,
    logits: bool = False,
    progress: Progress = silent,
    run: Run | None = None,
) -> Evaluation:
    """Measure a model on labelled rows.

    The model is in eval mode and without gradients meanwhile; afterwards every module is in the mode it was.

    Args:
        model: The model, on any device.
        task: The task, prepared for this model or its base.
        rows: Samples, encoded as they are needed; or what `encode_rows` made.
        batch_size: Samples a forward pass; without effect on `EncodedRows`.
        strict: Refuse samples longer than the model's context.
        logits: Keep the scores of the classes, where the task has any.
        progress: Told after each batch.
        run: Maps a function over the batches' numbers; by default one batch after the other, the model in eval mode,
            and shared among the ranks that work together.

    Returns:
        The measurement; per-sample values in the order of the rows.

    Raises:
        GradfixError: If there are no rows, or a loss is not finite.
    """
    if run is None:
        refuse_spread(model)
    start = time.perf_counter()
    positions = rows.positions if isinstance(rows, EncodedRows) else _plan(task, rows, batch_size)
    n = sum(map(len, positions))
    scores, losses, predictions = [0.0] * n, [0.0] * n, [None] * n
    kept: list[torch.Tensor] = []
    counted: list[torch.Tensor] = []
    done = truncated = 0

    def measure(number: int) -> tuple[Measured, int]:
        nonlocal done
        places = positions[number]
        if isinstance(rows, EncodedRows):
            batch = rows.batches[number]
        else:
            batch = task.encode([rows[index] for index in places], strict=strict)
        found = measure_batch(task, model, batch, logits)
        done += len(places)
        progress("evaluating", min(n, ranks().size * done), n, "samples")
        return found

    with nullcontext() if run else evaluating(model):
        found = (run or partial(ranks().map, "losses"))(measure, range(len(positions)))
        for places, (measured, cut) in zip(positions, found, strict=True):
            _finite(measured.losses, places)
            truncated += cut
            if measured.logits is not None:
                kept.append(measured.logits)
            if measured.statistics is not None:
                counted.append(measured.statistics)
            values = zip(
                places, measured.scores.tolist(), measured.losses.tolist(), measured.predictions, strict=True
            )
            for index, score, loss, prediction in values:
                scores[index], losses[index], predictions[index] = score, loss, prediction
    grades, also = scores, dict[str, float]()
    statistics = in_order(counted, positions) if counted else None
    if statistics is not None and isinstance(task, ModelTask):
        totals = task.totals(statistics)
        scores, also = totals.contributions.tolist(), dict(totals.also)
    return Evaluation(
        task=task.name,
        metric=task.metric,
        n=n,
        score=math.fsum(scores) / n,
        interval=score_interval(scores, bounds=bounds_of(task.metric)),
        loss=math.fsum(losses) / n,
        truncated=truncated,
        seconds=time.perf_counter() - start,
        scores=scores,
        losses=losses,
        predictions=predictions,
        logits=in_order(kept, positions) if len(kept) == len(positions) else None,
        grades=grades,
        statistics=statistics,
        also=also,
    )


def measure_batch(task: Task, model: nn.Module, batch: Any, logits: bool) -> tuple[Measured, int]:
    """Measure one batch.

    Args:
        task: The task.
        model: In eval mode, without gradients.
        batch: Encoded samples.
        logits: Keep the scores of the classes.

    Returns:
        The measurement, on the CPU, and how many samples were cut.
    """
    found = task.measure(model, batch)
    cut = int(batch["truncated"].sum()) if isinstance(batch, dict) and "truncated" in batch else 0
    kept = found.logits.detach().float().cpu() if logits and found.logits is not None else None
    statistics = None if found.statistics is None else found.statistics.detach().double().cpu()
    return Measured(found.losses.cpu(), found.scores.cpu(), found.predictions, kept, statistics), cut


def _plan(task: Task, rows: Sequence[Any], batch_size: int) -> list[list[int]]:
    """Places of the rows by batch, the longest first: little is padded, and too little memory shows early."""
    if not len(rows):
        raise GradfixError("there are no rows to evaluate")
    sizes = [task.size(row) for row in rows]
    order = sorted(range(len(sizes)), key=lambda index: (-sizes[index], index))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def _bytes(batch: Any) -> int:
    return sum(tensor.nbytes for _, tensor in tensors_of(batch))


def in_order(parts: Sequence[torch.Tensor], positions: Sequence[Sequence[int]]) -> torch.Tensor:
    """Put what batches gave into the order of the rows.

    Args:
        parts: Of each batch, ``[samples, ...]``.
        positions: For each batch, the places of its samples.

    Returns:
        ``[rows, ...]``.
    """
    order = torch.tensor([index for places in positions for index in places])
    return torch.cat(list(parts))[order.argsort()].clone()


def _finite(losses: torch.Tensor, places: Sequence[int]) -> None:
    bad = (~torch.isfinite(losses)).nonzero().flatten().tolist()
    if bad:
        rows = ", ".join(str(places[index]) for index in bad[:5])
        raise GradfixError(
            f"{len(bad)} of {len(losses)} losses in a batch are not finite (samples {rows}); "
            "check the weights, or load them in float32"
        )
