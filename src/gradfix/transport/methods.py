"""The ways from θ_B to a transported model, each a walk through candidates in place.

A way moves the model from one candidate to the next (a larger α, one more re-vote, some more steps of training) and
pauses at each, so that whoever walks along can measure there. Ways that look at labels are walked once for each part of
the samples that is held out, on the samples outside it; the others once.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import ClassVar

from gradfix.evaluation.finetuning import finetune
from gradfix.transport.context import Held, SelectionContext, Setting, StartingPoint, Swap
from gradfix.vectors.mask_strategies import find_strategy
from gradfix.vectors.masks import mask
from gradfix.vectors.task_vector import TaskVector
from gradfix.votes import Votes


@dataclass
class Method(ABC):
    """One way to a transported model.

    Attributes:
        name: Its key in results.
        label: What people read.
    """

    name: str
    label: str
    usual: ClassVar[Setting | None] = None
    """The setting to keep unless another one is better by more than luck; None for no such one."""

    def shaped(self, context: SelectionContext) -> bool:
        """Tell whether the samples shape the walk, so that it must be cross-fitted.

        Args:
            context: The samples.

        Returns:
            True for what looks at labels.
        """
        return True

    def candidates(self, context: SelectionContext, held: Held) -> Iterator[Setting]:
        """Move the model through the candidates in place: from place to place, where these are known beforehand.

        Args:
            context: The model and its samples.
            held: The folds that must have no part in it.

        Yields:
            The candidate at which the model stands.
        """
        for setting, delta, alpha in self.places(context, held) or ():
            context.model.move(delta, alpha)
            yield setting

    def places(
        self, context: SelectionContext, held: Held
    ) -> Iterator[tuple[Setting, TaskVector, float]] | None:
        """Give the candidates as places that are known beforehand, where they are: one needs no other's measurement.

        Args:
            context: The model and its samples.
            held: The folds that must have no part in it.

        Returns:
            Setting, δ and α of each candidate; None for a walk.
        """
        return None

    @abstractmethod
    def build(self, context: SelectionContext, setting: Setting, held: Held = ()) -> tuple[TaskVector, float]:
        """Compute one candidate.

        Args:
            context: The model and its samples. The model is at θ_B afterwards.
            setting: The candidate.
            held: The folds that must have no part in it.

        Returns:
            δ and α; the transported model is θ_B + α·δ.
        """

    @abstractmethod
    def control(self, swap: Swap) -> "Method":
        """Make the control of this way: the same walk with other vectors.

        Args:
            swap: Gives the control's vector for each vector.

        Returns:
            The control.
        """

    def kept(self, context: SelectionContext, setting: Setting) -> TaskVector:
        """Compute one candidate's δ of all samples into a scratch file, to be read as often as is needed.

        Args:
            context: The model and its samples. The model is at θ_B afterwards.
            setting: The candidate.

        Returns:
            δ, as :meth:`arrive` gives it.
        """
        return context.scratch.keep(self.build(context, setting)[0])

    def votes(self, context: SelectionContext) -> Votes | None:
        """Give the votes that :meth:`arrive` used, for the record.

        Args:
            context: The model and its samples.

        Returns:
            Votes of all samples, or None where there were none.
        """
        return None


@dataclass
class AddVector(Method):
    """Straight along a vector that no label shaped: naive addition of τ, or of τ', or of what a lot draws of it."""

    vector: TaskVector = field(kw_only=True)
    grid: Sequence[float] = field(kw_only=True)
    strategy: str = field(kw_only=True, default="none")
    usual: ClassVar[Setting | None] = {"alpha": 1.0}

    def shaped(self, context: SelectionContext) -> bool:
        """Tell whether the vector was fitted to the samples, labels or not."""
        return context.saw(self.vector)

    def places(self, context: SelectionContext, held: Held) -> Iterator[tuple[Setting, TaskVector, float]]:
        """Give every α."""
        delta = context.at_hand(self._drawn(context, held))
        for alpha in sorted(set(self.grid)):
            yield {"alpha": alpha}, delta, alpha

    def build(self, context: SelectionContext, setting: Setting, held: Held = ()) -> tuple[TaskVector, float]:
        """Give the vector itself, or what was drawn of it."""
        return self._drawn(context, held), setting["alpha"]

    def control(self, swap: Swap) -> Method:
        """Go along the control's vector."""
        return replace(self, vector=swap(self.vector))

    def _drawn(self, context: SelectionContext, held: Held) -> TaskVector:
        vector = context.outside(self.vector, held)
        if self.strategy == "none":
            return vector
        drawn = partial(mask, vector, strategy=self.strategy, seed=context.seed)
        if context.model.streams:
            return drawn()
        return context.remembered(("drawn", self.strategy), (vector,), lambda: context.scratch.keep(drawn()))


@dataclass
class MaskVector(Method):
    """Along what a mask keeps of a vector, by votes counted at a place of one's choice."""

    vector: TaskVector = field(kw_only=True)
    grid: Sequence[float] = field(kw_only=True)
    at: StartingPoint = field(kw_only=True, default_factory=StartingPoint)
    strategy: str = field(kw_only=True, default="agreement")
    levels: Sequence[float] = field(kw_only=True, default=(0.1,))
    vote: str | None = field(kw_only=True, default=None)

    def places(self, context: SelectionContext, held: Held) -> Iterator[tuple[Setting, TaskVector, float]]:
        """Give every level of confidence with every α."""
        confident = self.strategy == "confident"
        for level in self.levels if confident else self.levels[:1]:
            setting = {"level": level} if confident else {}
            # A model that is fetched block by block reads δ once for all α; others read it once for each.
            streams = context.model.streams
            delta = self._lazily(context, setting, held) if streams else self._once(context, setting, held)
            for alpha in sorted(set(self.grid)):
                yield {"alpha": alpha, **setting}, delta, alpha

    def build(self, context: SelectionContext, setting: Setting, held: Held = ()) -> tuple[TaskVector, float]:
        """Mask by the votes, lazily."""
        return self._lazily(context, setting, held), setting["alpha"]

    def kept(self, context: SelectionContext, setting: Setting) -> TaskVector:
        """Mask by the votes of all samples, once a level."""
        return self._once(context, setting, ())

    def control(self, swap: Swap) -> Method:
        """Mask the control's vector by the same votes."""
        return replace(self, vector=swap(self.vector))

    def votes(self, context: SelectionContext) -> Votes | None:
        """Give the votes of all samples."""
        return context.votes_without(self.at, (), self.vote)

    def _once(self, context: SelectionContext, setting: Setting, held: Held) -> TaskVector:
        what = "mask", self.strategy, self.vote or context.vote, self._level(setting), held
        things = (self.vector,) if self.at.way is None else (self.vector, self.at)
        vector = context.at_hand(context.outside(self.vector, held))
        return context.remembered(
            what, things, lambda: context.scratch.keep(self._mask(context, vector, setting, held))
        )

    def _lazily(self, context: SelectionContext, setting: Setting, held: Held) -> TaskVector:
        return self._mask(context, context.outside(self.vector, held), setting, held)

    def _mask(
        self, context: SelectionContext, vector: TaskVector, setting: Setting, held: Held
    ) -> TaskVector:
        votes = context.votes_without(self.at, held, self.vote)
        options = find_strategy(self.strategy).taking(level=self._level(setting))
        return mask(vector, votes, strategy=self.strategy, seed=context.seed, **options)

    def _level(self, setting: Setting) -> float:
        return setting.get("level", self.levels[0])


@dataclass
class Revote(Method):
    """In steps along a vector, with fresh votes at each: θ_{k+1} = θ_k + (α/K)(m_k ⊙ τ).

    A coordinate can be taken in one step and left in the next. One step from θ_B is the paper's method.
    """

    vector: TaskVector = field(kw_only=True)
    step: float = field(kw_only=True)
    count: int = field(kw_only=True)
    start: StartingPoint = field(kw_only=True, default_factory=StartingPoint)
    strategy: str = field(kw_only=True, default="agreement")
    level: float = field(kw_only=True, default=0.1)

    def candidates(self, context: SelectionContext, held: Held) -> Iterator[Setting]:
        """Pause after every step."""
        for steps in self._steps(context, self.count, held):
            yield {"alpha": self.step * len(steps), "steps": float(len(steps))}

    def build(self, context: SelectionContext, setting: Setting, held: Held = ()) -> tuple[TaskVector, float]:
        """Take the steps."""
        steps: list[TaskVector] = []
        try:
            for steps in self._steps(context, int(setting["steps"]), held):  # noqa: B007 - the last one counts
                pass
        finally:
            context.model.restore()
        return self.start.plus(context, self.step, steps, held)

    def control(self, swap: Swap) -> Method:
        """Step along the control's vector, with votes where it leads."""
        return replace(self, vector=swap(self.vector), start=self.start.control(swap))

    def _steps(self, context: SelectionContext, count: int, held: Held) -> Iterator[list[TaskVector]]:
        steps: list[TaskVector] = []
        rows, vector = context.without(held), context.at_hand(context.outside(self.vector, held))
        for _ in range(count):
            votes = context.count(rows) if steps else context.votes_without(self.start, held)
            options = find_strategy(self.strategy).taking(level=self.level)
            masked = mask(vector, votes, strategy=self.strategy, seed=context.seed, **options)
            steps.append(context.scratch.keep(masked))
            context.model.move(*self.start.plus(context, self.step, steps, held))
            yield steps


@dataclass
class FineTune(Method):
    """Warm start: a few steps of AdamW on the support set from wherever another way arrived. A head stays as it is."""

    start: StartingPoint = field(kw_only=True)
    rates: Sequence[float] = field(kw_only=True)
    stops: Sequence[int] = field(kw_only=True)
    most: int = field(kw_only=True, default=0)
    """Steps to which a search may go on past the last stop."""

    def candidates(self, context: SelectionContext, held: Held) -> Iterator[Setting]:
        """Pause at the given numbers of steps, for each learning rate."""
        for rate in self.rates:
            for step in self._train(context, rate, self.stops, held):
                yield {"learning_rate": rate, "finetune_steps": float(step)}

    def build(self, context: SelectionContext, setting: Setting, held: Held = ()) -> tuple[TaskVector, float]:
        """Train, and take what changed."""
        try:
            for _ in self._train(context, setting["learning_rate"], [int(setting["finetune_steps"])], held):
                pass
            moved = context.scratch.keep(context.model.displacement(), from_first=True)
        finally:
            context.model.restore()
        vector, alpha = self.start.reach(context, held)
        # What it is made of tells it apart, should writing be resumed.
        made = {"start": None if vector is None else vector.origin, "alpha": alpha, **setting}
        return context.model.vector.derive(moved, operation="fine-tune", seed=context.seed, **made), 1.0

    def control(self, swap: Swap) -> Method:
        """Train from where the control's way arrives."""
        return replace(self, start=self.start.control(swap))

    def _train(
        self, context: SelectionContext, rate: float, stops: Sequence[int], held: Held
    ) -> Iterator[int]:
        self.start.go(context, held)
        walk = (None if self.start.way is None else self.start), rate, held
        yield from finetune(
            context.model,
            *context.batches_without(held),
            learning_rate=rate,
            stops=stops,
            seed=context.seed,
            head=False,
            resume=context.paused(walk, stops[0]),
            pause=partial(context.pause, walk) if held else None,
        )
