"""What every method walks on: the model, the samples that judge and those that shape, and where a walk sets out."""

import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from torch import Tensor

from gradfix.alignment import Aligned
from gradfix.alignment.teacher import Teacher
from gradfix.checkpoints.expressions import Given, Padded, Sum
from gradfix.evaluation.binding import used_columns
from gradfix.evaluation.calibration import cross_entropies
from gradfix.evaluation.evaluate import EncodedRows, Evaluation
from gradfix.evaluation.finetuning import Paused
from gradfix.evaluation.target_model import TargetModel
from gradfix.progress import Progress, silent
from gradfix.recipes.settings import SETTINGS, SelectionSettings
from gradfix.tasks import Generative
from gradfix.tasks.data import row_hash
from gradfix.transport.folds import VotesByFold
from gradfix.vectors.control import shuffled
from gradfix.vectors.scratch import Scratch
from gradfix.vectors.task_vector import TaskVector
from gradfix.votes import Votes

if TYPE_CHECKING:
    from gradfix.transport.methods import Method

Value = TypeVar("Value")

MOST_PAUSED = 4
"""Walks of training that can go on: each takes three times the weights, on disk."""

EVER = 1e-3
"""Share of wrong answers at least: nobody is always right."""

Setting = Mapping[str, float]
"""What a candidate of a way is known by: ``{"alpha": 0.6}``, ``{"steps": 4}``."""

Held = tuple[int, ...]
"""Numbers of the folds that have no part in what is made: they judge it. Empty: all samples take part."""


@dataclass
class SelectionContext:
    """What every way walks on. A context manager: what was counted and computed on the way goes with it.

    Attributes:
        model: The target; between walks it is at θ_B.
        support: The labelled samples.
        folds: Positions of the samples by fold.
        seed: Of all that is random.
        vote: ``majority`` or ``mean``.
        dtype: For autocast while votes are counted.
        more: Samples that take part in walks and judge none: inputs that the tuned source labelled, or answered. One
            with the prompt of a labelled sample is held out with it.
        progress: Told the samples counted.
        settings: The numbers of the selection.
        aligned: What alignment made of τ: samples that had a part in it can judge it only as it is without them.
        teacher: What the tuned source says of inputs, which judge besides the samples; None for these alone.
    """

    model: TargetModel
    support: Sequence[Any]
    folds: Sequence[Sequence[int]]
    seed: int = 0
    vote: str = "majority"
    dtype: str | None = None
    more: Sequence[Any] = ()
    progress: Progress = silent
    settings: SelectionSettings = SETTINGS
    aligned: Aligned | None = None
    teacher: Teacher | None = None

    def __enter__(self) -> "SelectionContext":
        self._stack = ExitStack()
        self.scratch = self._stack.enter_context(Scratch())
        self._encoded: dict[Held, EncodedRows] = {}
        self._encoded_inputs: dict[Held, EncodedRows] = {}
        self._encode: Callable[[Sequence[int]], EncodedRows] | None = None
        self._known: dict[Hashable, tuple[Any, float, Sequence[object]]] = {}
        self._charged: set[Hashable] = set()
        self._spared = 0.0
        self._paused: dict[Hashable, Paused] = {}
        self._classes: tuple[int | None] | None = None
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def remembered(self, what: Hashable, things: Sequence[object], compute: Callable[[], Value]) -> Value:
        """Compute something once for all methods that ask for it.

        Args:
            what: It is known by this,
            things: and by these objects, each of them itself and no other of the same content.
            compute: Computes it.

        Returns:
            What ``compute`` returned the first time.
        """
        key = what, *map(id, things)
        if key not in self._known:
            started = time.perf_counter()
            found = compute()
            self._known[key] = found, time.perf_counter() - started, things  # held: an id is given again
        elif key not in self._charged:
            self._spared += self._known[key][1]
        self._charged.add(key)
        value: Value = self._known[key][0]
        return value

    def clock(self) -> Callable[[], float]:
        """Begin a method: it is charged for what it takes alone, whatever others had computed before.

        Returns:
            Tells its seconds so far.
        """
        self._charged.clear()
        started, spared = time.perf_counter(), self._spared
        return lambda: time.perf_counter() - started + self._spared - spared

    def evaluate(self, delta: TaskVector, alpha: float, rows: EncodedRows) -> Evaluation:
        """Measure the model at a place, which several methods may have in common: θ_B is at α = 0 of each.

        Args:
            delta: δ.
            alpha: α; the model stands at θ_B + α·δ afterwards, or where it was.
            rows: What :meth:`encoded` gave, or validation samples.

        Returns:
            The measurement, with the scores of the classes.
        """

        def compute() -> Evaluation:
            self.model.move(delta, alpha)
            return self.model.evaluate(rows, logits=True)

        return self.remembered(("evaluation", alpha), (delta, rows) if alpha else (rows,), compute)

    @property
    def singles(self) -> tuple[Held, ...]:
        """Each fold by itself."""
        return tuple((number,) for number in range(len(self.folds)))

    @property
    def halves(self) -> tuple[Held, ...]:
        """The folds in two parts, for what must begin anew for each part; each by itself where samples are few."""
        if len(self.support) <= self.settings.few:
            return self.singles
        return tuple(tuple(range(first, len(self.folds), 2)) for first in range(min(2, len(self.folds))))

    def places(self, held: Held) -> list[int]:
        """Give the positions of held-out samples.

        Args:
            held: Their folds.

        Returns:
            Positions in the support set, ascending.
        """
        return sorted(index for number in held for index in self.folds[number])

    def saw(self, vector: TaskVector) -> bool:
        """Tell whether something that judges had a part in a vector: labelled samples, though without their labels.

        Args:
            vector: Any vector.

        Returns:
            True for what alignment fitted to inputs that some of the samples are among, or that the teacher is asked.
        """
        aligned = self._alignment_of(vector)
        asked = self.believed is not None and aligned is not None and aligned.refit is not None
        return asked or self._seen(vector) > 0

    def outside(self, vector: TaskVector, held: Held) -> TaskVector:
        """Give a vector as it is without the samples, and the inputs, that judge it.

        Args:
            vector: Any vector.
            held: The folds that must have no part in it; the model is at θ_B afterwards if there are any.

        Returns:
            The vector itself where nothing held out had a part in it; else what alignment makes of the other inputs.
        """
        aligned = self._alignment_of(vector)
        if not held or aligned is None or aligned.refit is None:
            return vector
        asked = self.asked(held)
        # Where most inputs judge nothing, one fit without any that does serves all folds.
        if not asked and self._seen(vector) * self.settings.left_out <= aligned.inputs:
            held = tuple(range(len(self.folds)))
        samples = [self.support[place] for place in self.places(held)]
        inputs = [self.believed.places[number] for number in asked] if self.believed is not None else ()
        return self.remembered(("outside", held), (vector,), lambda: self._refitted(aligned, samples, inputs))

    def at_hand(self, vector: TaskVector) -> TaskVector:
        """Give a vector that is read again and again: computed into a file, unless the model reads it once a pass.

        Args:
            vector: Any vector.

        Returns:
            The same values, which don't know what they were made from.
        """
        if self.model.streams:
            return vector
        return self.remembered("at hand", (vector,), lambda: self.scratch.keep(vector))

    def _refitted(self, aligned: Aligned, samples: Sequence[Any], inputs: Sequence[int]) -> TaskVector:
        self.model.restore()
        return aligned.without(samples, inputs)

    def _seen(self, vector: TaskVector) -> int:
        """To how many inputs that are labelled samples a vector was fitted."""
        aligned = self._alignment_of(vector)
        if aligned is None:
            return 0
        return self.remembered("seen", (vector,), lambda: aligned.saw(self.support))

    @property
    def believed(self) -> Teacher | None:
        """What the tuned source says of the inputs that judge; None where there are none."""
        return self._judging[0]

    def asked(self, held: Held) -> range:
        """Give the inputs of the teacher's that judge what some folds judge.

        Args:
            held: The folds.

        Returns:
            Their numbers among those of :attr:`believed`; none for other folds than those of :attr:`halves`.
        """
        return self._judging[1].get(held, range(0))

    @cached_property
    def _judging(self) -> tuple[Teacher | None, Mapping[Held, range]]:
        """The inputs that judge, those of one part after those of another, and which are of which part.

        A labelled sample's input judges with the sample, the others are dealt to the folds. Of several folds that are
        held out at once the first one's judge, so that fits keep most inputs. What carries the fine-tune over shares
        some of the teacher's errors, by which it seems better than it is however many inputs are asked: no more are
        than bring the standard error of a share of right answers down to that.
        """
        if self.teacher is None:
            return None, {}
        whole, wrong = self.teacher.believed(self.support)
        most = (0.5 / (self.settings.shared * max(wrong, EVER))) ** 2
        fold_of = {
            place: number
            for number, fold in enumerate(self.folds)
            for place in whole.among([self.support[one] for one in fold])
        }
        count = len(self.folds)
        folds = [fold_of.get(place, number % count) for number, place in enumerate(whole.places)]
        order: list[int] = []
        asked: dict[Held, range] = {}
        for held in self.halves:
            of_part = [number for number, fold in enumerate(folds) if fold == held[0]]
            # From first to last: neighbours may be of one class.
            wanted = min(len(of_part), round(most / len(self.halves)))
            of_part = [of_part[number * len(of_part) // wanted] for number in range(wanted)]
            asked[held] = range(len(order), len(order) + wanted)
            order += of_part
        return (whole.of(order) if order else None), asked

    def encoded_inputs(self, held: Held) -> EncodedRows:
        """Encode the inputs that :meth:`asked` gives, once.

        Args:
            held: The folds.

        Returns:
            The inputs, in that order.
        """
        if held not in self._encoded_inputs:
            assert self.believed is not None
            inputs = [self.believed.inputs[number] for number in self.asked(held)]
            self._encoded_inputs[held] = self.model.encode(inputs)
        return self._encoded_inputs[held]

    def _alignment_of(self, vector: TaskVector) -> Aligned | None:
        ours = (self.aligned, self.aligned.answers) if self.aligned is not None else ()
        return next((one for one in ours if one is not None and one.vector is vector), None)

    def without(self, held: Held) -> list[Any]:
        """Give the samples outside some folds.

        Args:
            held: The folds.

        Returns:
            Samples, those that judge nothing included.
        """
        rows = [*self.support, *self.more]
        return [rows[place] for place in self._places_without(held)]

    def _places_without(self, held: Held) -> list[int]:
        inside = {place for one in self.places(held) for place in (one, *self._beside.get(one, ()))}
        return [place for place in range(len(self.support) + len(self.more)) if place not in inside]

    @cached_property
    def _beside(self) -> Mapping[int, Sequence[int]]:
        """The places, among all samples, of those with the prompt of a labelled one, by the place of that one."""
        task = self.model.task
        if not self.more or not isinstance(task, Generative):
            return {}
        hashes = [row_hash(row, used_columns(task, row)) for row in task.prompts([*self.support, *self.more])]
        number = len(self.support)
        first = {each: place for place, each in reversed(list(enumerate(hashes[:number])))}
        found: dict[int, list[int]] = {}
        for place, each in enumerate(hashes[number:], number):
            if each in first:
                found.setdefault(first[each], []).append(place)
        return found

    def batches_without(self, held: Held) -> tuple[int, Callable[[Sequence[int]], EncodedRows]]:
        """Give the samples outside some folds to whoever trains on them in batches.

        Args:
            held: The folds.

        Returns:
            How many samples, and what encodes those at some places among them.
        """
        outside = self._places_without(held)
        return len(outside), lambda places: self._batches([outside[place] for place in places])

    def _batches(self, places: Sequence[int]) -> EncodedRows:
        """Encode samples by their places among all, each once where that can be."""
        if self._encode is None:
            self._encode = self.model.encoder([*self.support, *self.more])
        return self._encode(places)

    def encoded(self, held: Held) -> EncodedRows:
        """Encode labelled samples once for all walks that they judge.

        Args:
            held: Their folds; all samples if empty.

        Returns:
            The samples, in the order of :meth:`places`.
        """
        if held not in self._encoded:
            self._encoded[held] = self._batches(self.places(held) if held else range(len(self.support)))
        return self._encoded[held]

    def classes(self) -> int | None:
        """Tell how many classes the losses are cross-entropies of, by what is seen at θ_B, where the model must be.

        Returns:
            The number; None where there are no classes, or the losses are something else.
        """
        if self._classes is None:
            number = len(set(self.model.task.classes(self.support)))
            self._classes = (number if number > 1 and self._classifies(number) else None,)
        return self._classes[0]

    def _classifies(self, classes: int) -> bool:
        found = self.evaluate(self.model.vector, 0.0, self.encoded(()))
        return cross_entropies(np.asarray(found.losses), np.asarray(found.scores), classes)

    def pause(self, walk: Hashable, steps: int, tensors: Mapping[str, Tensor]) -> None:
        """Keep training that may go on; of several walks the last ones, where the disk has room.

        Args:
            walk: What is walked.
            steps: How many were done.
            tensors: See :class:`gradfix.evaluation.finetuning.Paused`.
        """
        source = Given(tensors)
        kept = self.scratch.hold(source)
        self._paused.pop(walk, None)
        if kept is not source:
            self._paused[walk] = Paused(steps, kept)
        while len(self._paused) > MOST_PAUSED:
            del self._paused[next(iter(self._paused))]

    def paused(self, walk: Hashable, first: int) -> Paused | None:
        """Find where training was left.

        Args:
            walk: What is walked.
            first: The first stop that is asked for.

        Returns:
            It, unless it is past that stop.
        """
        found = self._paused.get(walk)
        return found if found is not None and found.steps <= first else None

    def count(self, rows: Sequence[Any], vote: str | None = None) -> Votes:
        """Count votes where the model stands.

        Args:
            rows: Samples.
            vote: ``majority`` or ``mean``; the context's own if None.

        Returns:
            Their votes.
        """
        return self.model.votes(rows, vote=vote or self.vote, seed=self.seed, dtype=self.dtype)

    def votes_without(self, at: "StartingPoint", held: Held, vote: str | None = None) -> Votes:
        """Count votes at a place: once for all folds, where no sample shaped it.

        Args:
            at: The place.
            held: The folds that must have no part in it.
            vote: ``majority`` or ``mean``; the context's own if None.

        Returns:
            The votes; the model is at θ_B afterwards.
        """
        vote = vote or self.vote
        if held and at.shaped(self):  # each fold has its own place
            try:
                at.go(self, held)
                return self.count(self.without(held), vote)
            finally:
                self.model.restore()
        # θ_B is one place, whoever asks for votes there.
        things = (at,) if at.way is not None else ()
        found = self.remembered(("votes", vote), things, lambda: self._ballots(at, vote))
        if vote == "majority":
            return found.without(held) if held else found.all()
        try:  # the mean's sign does not add up over folds: it is counted anew, at the place again
            at.go(self)
            return found.without(held) if held else found.all()
        finally:
            self.model.restore()

    def _ballots(self, at: "StartingPoint", vote: str) -> VotesByFold:
        rows = [*self.support, *self.more]
        folds = [
            [place for one in fold for place in (one, *self._beside.get(one, ()))] for fold in self.folds
        ]
        # Samples that are never held out are a fold of their own.
        rest = sorted(set(range(len(rows))).difference(*folds))
        folds = [*folds, rest] if rest else folds
        try:
            at.go(self)
            return VotesByFold(
                self.model,
                rows,
                folds,
                self.scratch,
                vote=vote,
                seed=self.seed,
                dtype=self.dtype,
                progress=self.progress,
            )
        finally:
            self.model.restore()


@dataclass(eq=False)
class StartingPoint:
    """Where another way arrived; without one, θ_B. Two starts are one only if they are one object.

    Attributes:
        way: The other way.
        setting: Its candidate.
    """

    way: "Method | None" = None
    setting: Setting = field(default_factory=dict)
    _reached: dict[Held, tuple[TaskVector, float]] = field(default_factory=dict, repr=False)

    def shaped(self, context: SelectionContext) -> bool:
        """Tell whether the samples shaped the place, so that each fold has its own.

        Args:
            context: The samples.

        Returns:
            As :meth:`gradfix.transport.methods.Method.shaped` says of the way.
        """
        return self.way is not None and self.way.shaped(context)

    def reach(self, context: SelectionContext, held: Held = ()) -> tuple[TaskVector | None, float]:
        """Compute the place, once a fold.

        Args:
            context: The model and its samples.
            held: The folds that must have no part in it.

        Returns:
            δ and α from θ_B; no vector for θ_B itself.
        """
        if self.way is None:
            return None, 0.0
        if not self.shaped(context):
            held = ()
        if held not in self._reached:
            delta, alpha = self.way.build(context, self.setting, held)
            self._reached[held] = context.scratch.keep(context.at_hand(delta)), alpha
        return self._reached[held]

    def go(self, context: SelectionContext, held: Held = ()) -> None:
        """Move the model there.

        Args:
            context: The model, wherever it stands.
            held: See :meth:`reach`.
        """
        vector, alpha = self.reach(context, held)
        if vector is None or not alpha:
            context.model.restore()
        else:
            context.model.move(vector, alpha)

    def plus(
        self, context: SelectionContext, step: float, steps: Sequence[TaskVector], held: Held = ()
    ) -> tuple[TaskVector, float]:
        """Add steps of one length to the start.

        Args:
            context: Its model names the tensors.
            step: The length of each.
            steps: Where to, at least one.
            held: See :meth:`reach`.

        Returns:
            A vector δ and the α with which it leads there from θ_B; a single step from θ_B stays as it is.
        """
        vector, alpha = self.reach(context, held)
        terms = [(alpha, vector)] if vector is not None and alpha else []
        terms += [(step, one) for one in steps]
        if len(terms) == 1:
            return terms[0][1], terms[0][0]
        like = context.model.vector
        whole = [
            (coefficient, one if one.specs.keys() == like.specs.keys() else Padded(one, like))
            for coefficient, one in terms
        ]
        origins = [[coefficient, one.origin] for coefficient, one in terms]
        return like.derive(Sum(whole), operation="walk", terms=origins), 1.0

    def control(self, swap: "Swap") -> "StartingPoint":
        """Set out from where the control's way arrives.

        Args:
            swap: Gives the control's vector for each vector.

        Returns:
            The control's start.
        """
        return StartingPoint(None if self.way is None else self.way.control(swap), self.setting)


Swap = Callable[[TaskVector], TaskVector]


def controls(tau: TaskVector, aligned: Aligned | None, seed: int) -> Swap:
    """Tell which vector the control has in place of which.

    Args:
        tau: The target's task vector.
        aligned: τ in the target's coordinates, with the control that was aligned likewise; None without one.
        seed: Of the shuffle.

    Returns:
        Gives a vector's control: τ shuffled, or the aligned control; what has none stays as it is.
    """
    pairs = [(tau, shuffled(tau, seed))]
    if aligned is not None:
        pairs += [
            (one.vector, one.control or pairs[0][1]) for one in (aligned, aligned.answers) if one is not None
        ]
    return lambda vector: next((control for known, control in pairs if known is vector), vector)
