"""How far to go: α chosen on labelled samples that did not shape the direction, never on test data."""

import tempfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

import numpy as np

from gradfix.evaluation.evaluate import EncodedRows
from gradfix.evaluation.target_model import TargetModel
from gradfix.progress import Progress, silent
from gradfix.vectors.scratch import Scratch
from gradfix.vectors.task_vector import TaskVector
from gradfix.votes import Votes

GRID = (0.0, 0.1, 0.2, 0.3, 0.45, 0.6, 0.8, 1.0, 1.3, 1.6, 2.0, 2.5, 3.0)
"""Candidates of ``--alpha auto``; 0, not transporting at all, is one of them."""

FOLDS = 4
PATIENCE = 2


@dataclass(frozen=True)
class AlphaPoint:
    """What one candidate gave on samples that did not shape the direction.

    Attributes:
        alpha: The candidate.
        loss: Mean loss a sample.
        score: Mean score in [0, 1].
    """

    alpha: float
    loss: float
    score: float


@dataclass(frozen=True)
class AlphaChoice:
    """The chosen α and how it was chosen.

    Attributes:
        alpha: The candidate with the smallest mean loss; the smaller one of equals.
        chosen_on: ``"validation"``, ``"cross-fit"`` or ``"given"``.
        samples: How many samples judged.
        curve: All candidates tried, in ascending order; trying stops after the loss has risen twice in a row.
    """

    alpha: float
    chosen_on: str
    samples: int = 0
    curve: tuple[AlphaPoint, ...] = ()


def choose_alpha(
    target: TargetModel,
    fits: Iterable[tuple[TaskVector, Sequence[Any] | EncodedRows]],
    *,
    grid: Sequence[float] = GRID,
    chosen_on: str,
    progress: Progress = silent,
) -> AlphaChoice:
    """Try candidates in place, and take the one with the smallest loss.

    Each direction is computed once, into a scratch file; consecutive fits of one direction share each move.

    Args:
        target: The model; it is at θ_B afterwards, also after an error.
        fits: Directions δ, each with samples that had no part in it: one pair with validation data, a pair a fold
            with cross-fitting.
        grid: Candidates.
        chosen_on: What the samples are, for the result.
        progress: Told the candidates tried.

    Returns:
        The choice.
    """
    points: list[AlphaPoint] = []
    candidates = sorted(set(grid))
    with Scratch() as scratch, ExitStack() as after:
        after.callback(target.restore)
        computed: list[tuple[TaskVector, EncodedRows]] = []
        last: TaskVector | None = None
        for delta, rows in fits:
            kept = computed[-1][0] if delta is last else scratch.keep(delta)
            last = delta
            computed.append((kept, rows if isinstance(rows, EncodedRows) else target.encode(rows)))
        samples = sum(len(places) for _, rows in computed for places in rows.positions)
        for number, alpha in enumerate(candidates):
            losses = scores = 0.0
            here: TaskVector | None = None
            for kept, rows in computed:
                if here is None or (alpha and kept is not here):  # α = 0 is θ_B, whatever the direction
                    target.move(kept, alpha)
                    here = kept
                measured = target.evaluate(rows)
                losses += measured.loss * measured.n
                scores += measured.score * measured.n
            points.append(AlphaPoint(alpha, losses / samples, scores / samples))
            progress("choosing α", number + 1, len(candidates), "candidates")
            recent = [point.loss for point in points[-PATIENCE - 1 :]]
            if len(recent) > PATIENCE and recent == sorted(set(recent)):
                break
    progress("choosing α", len(candidates), len(candidates), "candidates")
    best = min(points, key=lambda point: (point.loss, point.alpha))
    return AlphaChoice(best.alpha, chosen_on, samples, tuple(points))


def split_folds(classes: Sequence[int], folds: int, seed: int) -> list[list[int]]:
    """Deal samples into folds so that each class is spread as evenly as it goes.

    Args:
        classes: A class id a sample.
        folds: How many; no more than there are samples are made.
        seed: Of the dealing.

    Returns:
        Positions by fold, each sample in one fold.
    """
    generator = np.random.default_rng(seed)
    shuffled = generator.permutation(len(classes))
    order = sorted(shuffled.tolist(), key=lambda index: classes[index])  # stable: shuffled within a class
    count = max(1, min(folds, len(classes)))
    return [sorted(order[start::count]) for start in range(count)]


class VotesByFold:
    """Votes counted fold by fold, so that each fold's complement comes without counting anything twice.

    Majority votes add up; the complement of a fold is the sum of the others. The mean gradient's sign does not add
    up, so its complements are counted anew. Folds are kept in files: memory holds one set of votes at a time.
    A context manager; the files go with it.
    """

    def __init__(
        self,
        target: TargetModel,
        rows: Sequence[Any],
        folds: Sequence[Sequence[int]],
        *,
        vote: str = "majority",
        seed: int | None = None,
        dtype: str | None = None,
        progress: Progress = silent,
    ) -> None:
        """Prepare to count.

        Args:
            target: The model, at the weights at which to vote.
            rows: The support set.
            folds: Positions by fold, each sample in one.
            vote: ``majority`` or ``mean``.
            seed: Of the draw of samples.
            dtype: For autocast.
            progress: Told the samples counted.
        """
        self._target, self._rows, self._folds = target, rows, [list(fold) for fold in folds]
        self._vote, self._seed, self._dtype, self._progress = vote, seed, dtype, progress
        self._files: list[Path] = []

    def __enter__(self) -> "VotesByFold":
        done = 0
        with ExitStack() as stack:
            self._folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gradfix-votes-")))
            for number, fold in enumerate(self._folds if self._vote == "majority" else []):
                self._files.append(self._folder / f"{number}.safetensors")
                self._count(fold).save(self._files[-1])
                done += len(fold)
                self._progress("counting votes", done, len(self._rows), "samples")
            self._after = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._after.close()

    def _count(self, positions: Sequence[int]) -> Votes:
        rows = [self._rows[index] for index in positions]
        return self._target.votes(rows, vote=self._vote, seed=self._seed, dtype=self._dtype)

    def all(self) -> Votes:
        """Give the votes of all samples.

        Returns:
            The sum over folds, in a file: whoever asks for it may keep it.
        """
        if self._vote != "majority" or len(self._files) == 1:
            return self._sum(None)
        whole = self._folder / "all.safetensors"
        if not whole.exists():
            self._sum(None).save(whole)
        return Votes.load(whole)

    def without(self, fold: int) -> Votes:
        """Give the votes of all samples but one fold's.

        Args:
            fold: Its number.

        Returns:
            The sum over the others, in memory.
        """
        return self._sum(fold)

    def _sum(self, left_out: int | None) -> Votes:
        if self._vote != "majority":
            kept = [index for number, fold in enumerate(self._folds) if number != left_out for index in fold]
            return self._count(kept)
        return reduce(
            add, [Votes.load(file) for number, file in enumerate(self._files) if number != left_out]
        )


def cross_fit(
    target: TargetModel,
    rows: Sequence[Any],
    folds: Sequence[Sequence[int]],
    direction: Callable[[int], TaskVector],
    *,
    grid: Sequence[float] = GRID,
    progress: Progress = silent,
) -> AlphaChoice:
    """Choose α on the support set itself: each fold judges a direction that the other folds made.

    Args:
        target: The model; it is at θ_B afterwards.
        rows: The support set.
        folds: Positions by fold; at least two.
        direction: Makes δ without the fold of the given number.
        grid: Candidates.
        progress: Told the candidates tried.

    Returns:
        The choice.
    """
    fits = (  # made one at a time, so that the votes behind them are not in memory all at once
        (direction(number), target.encode([rows[index] for index in fold]))
        for number, fold in enumerate(folds)
    )
    return choose_alpha(target, fits, grid=grid, chosen_on="cross-fit", progress=progress)
