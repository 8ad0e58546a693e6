"""How far to go: α chosen on labelled samples that did not shape the direction, never on test data."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any

import numpy as np

from gradfix.evaluation.target_model import TargetModel
from gradfix.progress import Progress, silent
from gradfix.vectors.scratch import Scratch
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
    up, so its complements are counted anew. Folds are kept in scratch files: memory holds one set of votes at a time.
    """

    def __init__(
        self,
        target: TargetModel,
        rows: Sequence[Any],
        folds: Sequence[Sequence[int]],
        scratch: Scratch,
        *,
        vote: str = "majority",
        seed: int | None = None,
        dtype: str | None = None,
        progress: Progress = silent,
    ) -> None:
        """Count majority votes, or prepare to count the mean's.

        Args:
            target: The model, at the weights at which to vote.
            rows: The support set.
            folds: Positions by fold, each sample in one.
            scratch: Keeps the counts.
            vote: ``majority`` or ``mean``.
            seed: Of the draw of samples.
            dtype: For autocast.
            progress: Told the samples counted.
        """
        self._target, self._rows, self._folds = target, rows, [list(fold) for fold in folds]
        self._vote, self._seed, self._dtype, self._scratch = vote, seed, dtype, scratch
        self._kept: list[Votes] = []
        self._all: Votes | None = None
        if vote == "majority":
            groups = [[rows[index] for index in fold] for fold in self._folds]
            done = 0
            for fold, votes in zip(
                self._folds, target.votes_of(groups, vote=vote, seed=seed, dtype=dtype), strict=True
            ):
                self._kept.append(self._keep(votes))
                done += len(fold)
                progress("counting votes", done, len(rows), "samples")

    def _keep(self, votes: Votes) -> Votes:
        return Votes(self._scratch.hold(votes), votes.record)

    def _count(self, positions: Sequence[int]) -> Votes:
        rows = [self._rows[index] for index in positions]
        return self._target.votes(rows, vote=self._vote, seed=self._seed, dtype=self._dtype)

    def all(self) -> Votes:
        """Give the votes of all samples.

        Returns:
            The sum over folds, computed once.
        """
        if self._vote != "majority":
            return self.without(())
        if self._all is None:
            self._all = self._kept[0] if len(self._kept) == 1 else self._keep(self.without(()))
        return self._all

    def without(self, held: Sequence[int]) -> Votes:
        """Give the votes of all samples but some folds'.

        Args:
            held: Their numbers.

        Returns:
            The sum over the others, computed as it is read.
        """
        if self._vote != "majority":
            return self._count(
                [index for number, fold in enumerate(self._folds) if number not in held for index in fold]
            )
        return reduce(add, [votes for number, votes in enumerate(self._kept) if number not in held])
