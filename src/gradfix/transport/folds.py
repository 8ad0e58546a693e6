"""How far to go: α chosen on labelled samples that did not shape the direction, never on test data."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

import numpy as np

from gradfix.evaluation.target_model import TargetModel
from gradfix.progress import Progress, silent
from gradfix.votes import Votes


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
        curve: All candidates tried, in ascending order.
    """

    alpha: float
    chosen_on: str
    samples: int = 0
    curve: tuple[AlphaPoint, ...] = ()


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
            for number, fold, votes in self._counted() if self._vote == "majority" else ():
                self._files.append(self._folder / f"{number}.safetensors")
                votes.save(self._files[-1])
                done += len(fold)
                self._progress("counting votes", done, len(self._rows), "samples")
            self._after = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._after.close()

    def _counted(self) -> Iterator[tuple[int, list[int], Votes]]:
        """The votes of each fold."""
        groups = [[self._rows[index] for index in fold] for fold in self._folds]
        found = self._target.votes_of(groups, vote=self._vote, seed=self._seed, dtype=self._dtype)
        yield from zip(range(len(groups)), self._folds, found, strict=True)

    def _count(self, positions: Sequence[int]) -> Votes:
        rows = [self._rows[index] for index in positions]
        return self._target.votes(rows, vote=self._vote, seed=self._seed, dtype=self._dtype)

    def all(self) -> Votes:
        """Give the votes of all samples.

        Returns:
            The sum over folds, in a file: whoever asks for it may keep it.
        """
        if self._vote != "majority" or len(self._files) == 1:
            return self.without(())
        whole = self._folder / "all.safetensors"
        if not whole.exists():
            self.without(()).save(whole)
        return Votes.load(whole)

    def without(self, held: Sequence[int]) -> Votes:
        """Give the votes of all samples but some folds'.

        Args:
            held: Their numbers.

        Returns:
            The sum over the others, in memory.
        """
        if self._vote != "majority":
            return self._count(
                [index for number, fold in enumerate(self._folds) if number not in held for index in fold]
            )
        return reduce(
            add, [Votes.load(file) for number, file in enumerate(self._files) if number not in held]
        )
