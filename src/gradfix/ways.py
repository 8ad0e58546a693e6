"""The ways from θ_B to a transported model, each a walk through candidates in place.

A way moves the model from one candidate to the next (a larger α, one more re-vote, some more steps of training) and
pauses at each, so that whoever walks along can measure there. Ways that look at labels are walked once a fold, on the
samples outside it; the others once.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from gradfix.baselines import finetune
from gradfix.masks import mask
from gradfix.progress import Progress, silent
from gradfix.scaling import FoldedVotes
from gradfix.scratch import Scratch
from gradfix.sources import Padded, Sum
from gradfix.target_model import TargetModel
from gradfix.vectors import TaskVector
from gradfix.votes import Votes

Setting = Mapping[str, float]
"""What a candidate of a way is known by: ``{"alpha": 0.6}``, ``{"steps": 4}``."""


@dataclass
class Ground:
    """What every way walks on. A context manager: what was counted and computed on the way goes with it.

    Attributes:
        model: The target; between walks it is at θ_B.
        support: The labelled samples.
        folds: Positions of the samples by fold.
        seed: Of all that is random.
        vote: ``majority`` or ``mean``.
        dtype: For autocast while votes are counted.
        more: Samples that take part in every walk and judge none: inputs that the tuned source labelled.
        progress: Told the samples counted.
    """

    model: TargetModel
    support: Sequence[Any]
    folds: Sequence[Sequence[int]]
    seed: int = 0
    vote: str = "majority"
    dtype: str | None = None
    more: Sequence[Any] = ()
    progress: Progress = silent

    def __enter__(self) -> "Ground":
        self._stack = ExitStack()
        self.scratch = self._stack.enter_context(Scratch())
        self._ballots: dict[int, tuple[Start, FoldedVotes]] = {}
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def without(self, fold: int | None) -> list[Any]:
        """Give the samples outside a fold.

        Args:
            fold: Its number; None for all samples.

        Returns:
            Samples, those that judge nothing included.
        """
        inside = set() if fold is None else set(self.folds[fold])
        return [*(row for index, row in enumerate(self.support) if index not in inside), *self.more]

    def count(self, rows: Sequence[Any]) -> Votes:
        """Count votes where the model stands.

        Args:
            rows: Samples.

        Returns:
            Their votes.
        """
        return self.model.votes(rows, vote=self.vote, seed=self.seed, dtype=self.dtype)

    def ballots(self, at: "Start", fold: int | None) -> Votes:
        """Count votes at a place that no label shaped, once for all folds.

        Args:
            at: The place.
            fold: The fold that must have no part in it; None for none.

        Returns:
            The votes; the model is at θ_B afterwards.
        """
        if id(at) not in self._ballots:
            rows = [*self.support, *self.more]
            # Samples that judge nothing are a fold of their own, which is never left out.
            folds = [*self.folds, *([range(len(self.support), len(rows))] if self.more else [])]
            try:
                at.go(self)
                counted = FoldedVotes(
                    self.model,
                    rows,
                    folds,
                    vote=self.vote,
                    seed=self.seed,
                    dtype=self.dtype,
                    progress=self.progress,
                )
                self._ballots[id(at)] = (at, self._stack.enter_context(counted))
            finally:
                self.model.restore()
        found = self._ballots[id(at)][1]
        if self.vote == "majority":
            return found.all() if fold is None else found.without(fold)
        try:  # the mean's sign does not add up over folds: it is counted anew, at the place again
            at.go(self)
            return found.all() if fold is None else found.without(fold)
        finally:
            self.model.restore()


@dataclass
class Start:
    """Where another way arrived; without one, θ_B.

    Attributes:
        way: The other way.
        setting: Its candidate.
    """

    way: "Way | None" = None
    setting: Setting = field(default_factory=dict)
    _reached: dict[int | None, tuple[TaskVector, float]] = field(default_factory=dict, repr=False)

    def reach(self, ground: Ground, fold: int | None = None) -> tuple[TaskVector | None, float]:
        """Compute the place, once a fold.

        Args:
            ground: The model and its samples.
            fold: The fold that must have no part in it; None for none.

        Returns:
            δ and α from θ_B; no vector for θ_B itself.
        """
        if self.way is None:
            return None, 0.0
        if not self.way.labelled:
            fold = None
        if fold not in self._reached:
            delta, alpha = self.way.arrive(ground, self.setting, fold)
            self._reached[fold] = ground.scratch.keep(delta), alpha
        return self._reached[fold]

    def go(self, ground: Ground, fold: int | None = None) -> None:
        """Move the model there.

        Args:
            ground: The model, wherever it stands.
            fold: See :meth:`reach`.
        """
        vector, alpha = self.reach(ground, fold)
        if vector is None or not alpha:
            ground.model.restore()
        else:
            ground.model.move(vector, alpha)

    def plus(
        self, ground: Ground, step: float, steps: Sequence[TaskVector], fold: int | None = None
    ) -> tuple[TaskVector, float]:
        """Add steps of one length to the start.

        Args:
            ground: Its model names the tensors.
            step: The length of each.
            steps: Where to, at least one.
            fold: See :meth:`reach`.

        Returns:
            A vector δ and the α with which it leads there from θ_B; a single step from θ_B stays as it is.
        """
        vector, alpha = self.reach(ground, fold)
        terms = [(alpha, vector)] if vector is not None and alpha else []
        terms += [(step, one) for one in steps]
        if len(terms) == 1:
            return terms[0][1], terms[0][0]
        like = ground.model.vector
        whole = [
            (coefficient, one if one.specs.keys() == like.specs.keys() else Padded(one, like))
            for coefficient, one in terms
        ]
        origins = [[coefficient, one.origin] for coefficient, one in terms]
        return like.derive(Sum(whole), operation="walk", terms=origins), 1.0

    def swapped(self, swap: "Swap") -> "Start":
        """Set out from where the control's way arrives.

        Args:
            swap: Gives the control's vector for each vector.

        Returns:
            The control's start.
        """
        return Start(None if self.way is None else self.way.swapped(swap), self.setting)


Swap = Callable[[TaskVector], TaskVector]


@dataclass
class Way(ABC):
    """One way to a transported model.

    Attributes:
        name: Its key in results.
        label: What people read.
    """

    name: str
    label: str
    labelled = True
    """Whether the walk depends on labels, so that it must be cross-fitted."""
    usual: ClassVar[Setting | None] = None
    """The setting to keep unless another one is better by more than luck; None for no such one."""

    @abstractmethod
    def walk(self, ground: Ground, fold: int | None) -> Iterator[Setting]:
        """Move the model through the candidates in place.

        Args:
            ground: The model and its samples.
            fold: The fold that must have no part in it; None for none.

        Yields:
            The candidate at which the model stands.
        """

    @abstractmethod
    def arrive(self, ground: Ground, setting: Setting, fold: int | None = None) -> tuple[TaskVector, float]:
        """Compute one candidate.

        Args:
            ground: The model and its samples. The model is at θ_B afterwards.
            setting: The candidate.
            fold: The fold that must have no part in it; None for all samples.

        Returns:
            δ and α; the transported model is θ_B + α·δ.
        """

    @abstractmethod
    def swapped(self, swap: Swap) -> "Way":
        """Make the control of this way: the same walk with other vectors.

        Args:
            swap: Gives the control's vector for each vector.

        Returns:
            The control.
        """

    def kept(self, ground: Ground, setting: Setting) -> TaskVector:
        """Compute one candidate's δ of all samples into a scratch file, to be read as often as is needed.

        Args:
            ground: The model and its samples. The model is at θ_B afterwards.
            setting: The candidate.

        Returns:
            δ, as :meth:`arrive` gives it.
        """
        return ground.scratch.keep(self.arrive(ground, setting)[0])

    def votes(self, ground: Ground) -> Votes | None:
        """Give the votes that :meth:`arrive` used, for the record.

        Args:
            ground: The model and its samples.

        Returns:
            Votes of all samples, or None where there were none.
        """
        return None


@dataclass
class Along(Way):
    """Straight along a vector that no label shaped: naive addition of τ, or of τ', or of what a lot draws of it."""

    vector: TaskVector = field(kw_only=True)
    grid: Sequence[float] = field(kw_only=True)
    strategy: str = field(kw_only=True, default="none")
    labelled = False
    usual: ClassVar[Setting | None] = {"alpha": 1.0}

    def walk(self, ground: Ground, fold: int | None) -> Iterator[Setting]:
        """Try every α."""
        delta = self._drawn(ground)
        for alpha in sorted(set(self.grid)):
            ground.model.move(delta, alpha)
            yield {"alpha": alpha}

    def arrive(self, ground: Ground, setting: Setting, fold: int | None = None) -> tuple[TaskVector, float]:
        """Give the vector itself, or what was drawn of it."""
        return self._drawn(ground), setting["alpha"]

    def swapped(self, swap: Swap) -> Way:
        """Go along the control's vector."""
        return replace(self, vector=swap(self.vector))

    def _drawn(self, ground: Ground) -> TaskVector:
        if self.strategy == "none":
            return self.vector
        return mask(self.vector, strategy=self.strategy, seed=ground.seed)


@dataclass
class Masked(Way):
    """Along what a mask keeps of a vector, by votes counted at a place of one's choice."""

    vector: TaskVector = field(kw_only=True)
    grid: Sequence[float] = field(kw_only=True)
    at: Start = field(kw_only=True, default_factory=Start)
    strategy: str = field(kw_only=True, default="agreement")
    levels: Sequence[float] = field(kw_only=True, default=(0.1,))
    _kept: dict[float, TaskVector] = field(init=False, default_factory=dict, compare=False, repr=False)

    def walk(self, ground: Ground, fold: int | None) -> Iterator[Setting]:
        """Try every level of confidence with every α."""
        confident = self.strategy == "confident"
        for level in self.levels if confident else self.levels[:1]:
            setting = {"level": level} if confident else {}
            if fold is None:
                delta = self.kept(ground, setting)
            else:
                delta = ground.scratch.keep(self._mask(ground, setting, fold))
            for alpha in sorted(set(self.grid)):
                ground.model.move(delta, alpha)
                yield {"alpha": alpha, **setting}

    def arrive(self, ground: Ground, setting: Setting, fold: int | None = None) -> tuple[TaskVector, float]:
        """Mask by the votes, lazily."""
        return self._mask(ground, setting, fold), setting["alpha"]

    def kept(self, ground: Ground, setting: Setting) -> TaskVector:
        """Mask by the votes of all samples, once a level."""
        level = self._level(setting)
        if level not in self._kept:
            self._kept[level] = ground.scratch.keep(self._mask(ground, setting, None))
        return self._kept[level]

    def swapped(self, swap: Swap) -> Way:
        """Mask the control's vector by the same votes."""
        return replace(self, vector=swap(self.vector))

    def votes(self, ground: Ground) -> Votes | None:
        """Give the votes of all samples."""
        return ground.ballots(self.at, None)

    def _mask(self, ground: Ground, setting: Setting, fold: int | None) -> TaskVector:
        votes = ground.ballots(self.at, fold)
        return mask(self.vector, votes, strategy=self.strategy, seed=ground.seed, level=self._level(setting))

    def _level(self, setting: Setting) -> float:
        return setting.get("level", self.levels[0])


@dataclass
class Revoted(Way):
    """In steps along a vector, with fresh votes at each: θ_{k+1} = θ_k + (α/K)(m_k ⊙ τ).

    A coordinate can be taken in one step and left in the next. One step from θ_B is the paper's method.
    """

    vector: TaskVector = field(kw_only=True)
    step: float = field(kw_only=True)
    count: int = field(kw_only=True)
    start: Start = field(kw_only=True, default_factory=Start)
    strategy: str = field(kw_only=True, default="agreement")
    level: float = field(kw_only=True, default=0.1)

    def walk(self, ground: Ground, fold: int | None) -> Iterator[Setting]:
        """Pause after every step."""
        for steps in self._steps(ground, self.count, fold):
            yield {"alpha": self.step * len(steps), "steps": float(len(steps))}

    def arrive(self, ground: Ground, setting: Setting, fold: int | None = None) -> tuple[TaskVector, float]:
        """Take the steps."""
        steps: list[TaskVector] = []
        try:
            for steps in self._steps(ground, int(setting["steps"]), fold):  # noqa: B007 - the last one counts
                pass
        finally:
            ground.model.restore()
        return self.start.plus(ground, self.step, steps, fold)

    def swapped(self, swap: Swap) -> Way:
        """Step along the control's vector, with votes where it leads."""
        return replace(self, vector=swap(self.vector), start=self.start.swapped(swap))

    def _steps(self, ground: Ground, count: int, fold: int | None) -> Iterator[list[TaskVector]]:
        steps: list[TaskVector] = []
        rows = ground.without(fold)
        self.start.go(ground, fold)
        for _ in range(count):
            votes = ground.count(rows)
            masked = mask(self.vector, votes, strategy=self.strategy, seed=ground.seed, level=self.level)
            steps.append(ground.scratch.keep(masked))
            ground.model.move(*self.start.plus(ground, self.step, steps, fold))
            yield steps


@dataclass
class FineTuned(Way):
    """Warm start: a few steps of AdamW on the support set from wherever another way arrived. A head stays as it is."""

    start: Start = field(kw_only=True)
    rates: Sequence[float] = field(kw_only=True)
    stops: Sequence[int] = field(kw_only=True)

    def walk(self, ground: Ground, fold: int | None) -> Iterator[Setting]:
        """Pause at the given numbers of steps, for each learning rate."""
        for rate in self.rates:
            for step in self._train(ground, rate, self.stops, fold):
                yield {"learning_rate": rate, "finetune_steps": float(step)}

    def arrive(self, ground: Ground, setting: Setting, fold: int | None = None) -> tuple[TaskVector, float]:
        """Train, and take what changed."""
        try:
            for _ in self._train(ground, setting["learning_rate"], [int(setting["finetune_steps"])], fold):
                pass
            moved = ground.scratch.keep(ground.model.displacement())
        finally:
            ground.model.restore()
        vector, alpha = self.start.reach(ground, fold)
        # What it is made of tells it apart, should writing be resumed.
        made = {"start": None if vector is None else vector.origin, "alpha": alpha, **setting}
        return ground.model.vector.derive(moved, operation="fine-tune", seed=ground.seed, **made), 1.0

    def swapped(self, swap: Swap) -> Way:
        """Train from where the control's way arrives."""
        return replace(self, start=self.start.swapped(swap))

    def _train(self, ground: Ground, rate: float, stops: Sequence[int], fold: int | None) -> Iterator[int]:
        self.start.go(ground, fold)
        rows = ground.without(fold)
        yield from finetune(ground.model, rows, learning_rate=rate, stops=stops, seed=ground.seed, head=False)
