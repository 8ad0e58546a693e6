"""A task vector in the target's coordinates, with what is known of how well the two models align."""

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from torch import Tensor

from gradfix.alignment.activations import Activations
from gradfix.alignment.answers import Answered, Wanted, fit_answers, wanted_answers
from gradfix.alignment.blocks import find_writers
from gradfix.alignment.depths import depths_of
from gradfix.alignment.regression import SHUFFLED, SOURCE, TARGET, TUNED, fit_blocks
from gradfix.alignment.rotation.rotate import rotate, rotation
from gradfix.alignment.source import Observed, SourceRun, finder, runner
from gradfix.checkpoints.expressions import Given
from gradfix.errors import AlignmentError, listed
from gradfix.evaluation.target_model import TargetModel
from gradfix.plugins import Plugin
from gradfix.recipes.settings import SETTINGS
from gradfix.tasks import Classification, HeadedClassification
from gradfix.vectors.control import shuffled
from gradfix.vectors.task_vector import TaskVector

REFITS = 2 * SETTINGS.folds
"""Refits that are kept: one for each fold that judges, and for each half of them."""


@dataclass(frozen=True)
class Aligned:
    """The outcome of an alignment.

    Attributes:
        vector: τ', with the target checkpoint's names.
        control: The same made from a shuffled τ; None where none was asked for.
        method: How.
        tensors: What is known of each tensor, as JSON: residuals on held-out inputs.
        inputs: How many inputs were used.
        answers: Another way from the same runs: the target fitted to the source's answers; None without classes.
        refit: Fits the vector again without the inputs at some places; None for what was not fitted to what the
            fine-tune changed.
        places: Finds samples among the inputs, whatever their labels.
    """

    vector: TaskVector
    control: TaskVector | None
    method: str
    tensors: Mapping[str, Mapping[str, Any]]
    inputs: int
    answers: "Aligned | None" = None
    refit: Callable[[frozenset[int]], TaskVector] | None = None
    places: Callable[[Sequence[Any]], frozenset[int]] = lambda samples: frozenset()

    def saw(self, samples: Sequence[Any]) -> int:
        """Count the samples that had a part in the vector, so that they can't judge it.

        Args:
            samples: Labelled samples.

        Returns:
            How many of the inputs that the vector was fitted to they are.
        """
        return 0 if self.refit is None else len(self.places(samples))

    def without(self, samples: Sequence[Any], inputs: Collection[int] = ()) -> TaskVector:
        """Fit the vector without some samples.

        Args:
            samples: Labelled samples that are to judge it.
            inputs: Numbers of inputs that are to judge it, too.

        Returns:
            τ' over tensors of the vector's alone; where no other input explains anything, it changes none.
        """
        places = self.places(samples) | frozenset(inputs)
        if self.refit is None or not places:
            return self.vector
        found = self.refit(places)
        if found.specs.keys() <= self.vector.specs.keys():
            return found
        changes = {name: found.read(name) for name in found.specs if name in self.vector.specs}
        return found.derive(Given(changes), operation="restrict")


def align(source: SourceRun, model: TargetModel, *, control_seed: int | None) -> Aligned | None:
    """Carry τ over to the target, in the way that the source was run for.

    Args:
        source: What was recorded of it.
        model: The target at θ_B.
        control_seed: Of the control's shuffle; None for no control.

    Returns:
        The alignment; None where none was wanted.

    Raises:
        AlignmentError: if the target can't be aligned as the source was run for.
    """
    found = _aligned(source, model, control_seed)
    if found is None:
        return None
    places = finder(model.task, source.inputs)
    other = found.answers and replace(found.answers, places=places)
    return replace(found, places=places, answers=other)


def _aligned(source: SourceRun, model: TargetModel, control_seed: int | None) -> Aligned | None:
    recorded = [source.inputs[place] for place in source.recorded]
    seen = model, recorded, source.observed, source.activations
    if source.method == "none":
        return None
    needed = source.asked or model.apart  # apart, nothing else has a place
    if source.method == "answers":
        try:
            return align_by_answers(model, source.inputs, source.observed)
        except AlignmentError:
            if needed:
                raise
            return None
    if source.method != "regression":
        return align_by_rotation(*seen, source.method, control_seed=control_seed)
    answers = None
    with suppress(AlignmentError):  # a second way, which nobody asked for
        answers = align_by_answers(model, source.inputs, source.observed)
    try:
        found = align_by_regression(
            *seen, control=control_seed is not None, carry=source.carry, places=source.recorded
        )
    except AlignmentError:
        if source.asked or (needed and answers is None):
            raise
        return answers
    if model.apart and isinstance(model.task, HeadedClassification):
        # Without a head that fits, nothing of what the blocks were fitted to would be heard.
        found = with_answers(model, found, source.inputs, source.observed)
    elif model.apart and not isinstance(model.task, Classification):
        require_something(found)
    return replace(found, answers=answers)


def require_something(aligned: Aligned) -> None:
    """Refuse an alignment that changes nothing.

    Args:
        aligned: The alignment.

    Raises:
        AlignmentError: if every block was left alone, with the share of each wanted change that its fit leaves.
    """
    if not aligned.vector.specs:
        left = [f"{name} {facts['unexplained']:.2f}" for name, facts in aligned.tensors.items()]
        raise AlignmentError(
            f"--align {aligned.method}: nothing of what the fine-tune changed on {aligned.inputs} inputs is explained "
            f"on those held out, in no block (share that is left: {listed(left)}); give more with --align-data or "
            "--unlabelled"
        )


def align_by_regression(
    model: TargetModel,
    inputs: Sequence[Any],
    observed: Observed,
    activations: Activations,
    *,
    control: bool,
    carry: Plugin | None = None,
    places: Sequence[int] | None = None,
) -> Aligned:
    """Fit the target's blocks to the change that the fine-tune made in the source (see :mod:`.regression`).

    Args:
        model: The target at θ_B; it is not changed.
        inputs: The same samples, in the same order, that the source was observed on.
        observed: What :func:`gradfix.alignment.source.observe` found.
        activations: Where it recorded.
        control: Also fit to the change that a shuffled τ made.
        carry: What gives each change in the target's coordinates, in place of a rotation.
        places: By what numbers the inputs are left out of a refit; their own if None.

    Returns:
        τ', dense in the last linear map of each block and zero elsewhere.
    """
    task = model.task
    run = runner(task, model)
    encoded = model.encode(inputs)
    writers, depths = observed.writers, None
    if model.apart:
        writers = find_writers(model.model, run, encoded.batches[0], set(model.names))
    streams = list(dict.fromkeys(writer.stream for writer in writers))
    activations.record(TARGET, model.model, run, encoded.batches, streams)
    if model.apart:
        depths = depths_of(observed.writers, writers, activations, (SOURCE, TARGET))
    whole = task.encode([inputs[index] for index in encoded.order])

    method = "regression" if carry is None else carry.name

    numbers = range(len(inputs)) if places is None else places
    row_of = {numbers[index]: row for row, index in enumerate(encoded.order)}

    def fitted(
        tuned: str, without: Collection[int] = ()
    ) -> tuple[TaskVector, Mapping[str, Mapping[str, Any]]]:
        found = fit_blocks(
            model.model,
            run,
            whole,
            writers,
            activations,
            depths=depths,
            tuned=tuned,
            carry=carry,
            without=[row_of[place] for place in without if place in row_of],
        )
        changes = {model.names[name]: value for name, value in found.changes.items()}
        vector = model.vector.derive(
            Given(changes), operation="align", method=method, recording=tuned, inputs=len(inputs)
        )
        return vector, {model.names[name]: facts for name, facts in found.facts().items()}

    vector, tensors = fitted(TUNED)
    return Aligned(
        vector,
        fitted(SHUFFLED)[0] if control else None,
        method,
        tensors,
        len(inputs),
        refit=lru_cache(REFITS)(lambda without: fitted(TUNED, without)[0]),
    )


def align_by_answers(model: TargetModel, inputs: Sequence[Any], observed: Observed) -> Aligned:
    """Fit the target's last linear map to the tuned source's answers (see :mod:`.answers`).

    Args:
        model: The target at θ_B; it is not changed.
        inputs: The samples that the source was observed on.
        observed: What :func:`gradfix.alignment.source.observe` found. The control is fitted to what the shuffled source
            answers.

    Returns:
        τ', zero in all but one layer.

    Raises:
        AlignmentError: if the task has no classes, or the target no such layer, or nothing of the answers is explained.
    """
    nothing = model.vector.derive(Given({}), operation="align", method="none")
    control = nothing if observed.shuffled is not None else None
    unmoved = Aligned(nothing, control, "answers", {}, len(inputs))
    return with_answers(model, unmoved, inputs, observed)


def with_answers(model: TargetModel, aligned: Aligned, inputs: Sequence[Any], observed: Observed) -> Aligned:
    """Fit the target's last linear map to the source's answers, too, where an alignment brought it.

    Args:
        model: The target; it is at θ_B afterwards.
        aligned: The alignment.
        inputs: The samples that the source was observed on.
        observed: What :func:`gradfix.alignment.source.observe` found.

    Returns:
        Both, and a control of the same make.

    Raises:
        AlignmentError: if the task has no classes, or the target no such layer, or nothing of the answers is explained.
    """
    answers = observed.answers
    if answers is None:
        raise AlignmentError(
            f"{model.task.name}: has no classes, and its model no last affine map that gives one row a sample, so "
            "there are no answers to fit to"
        )

    def wanted(vector: TaskVector, answers: Tensor) -> Wanted:
        model.move(vector, 1.0)
        try:
            return wanted_answers(model, inputs, answers)
        finally:
            model.restore()

    def both(vector: TaskVector, seen: Wanted, of: str) -> tuple[TaskVector, Answered]:
        found = fit_answers(model, seen)
        changes = {model.names[name]: change for name, change in found.changes.items()}
        values = {name: vector.read(name) for name in vector.specs if name not in changes}
        changes = {
            name: change + vector.read(name) if name in vector.specs else change
            for name, change in changes.items()
        }
        made = model.vector.derive(
            Given(values | changes), operation="align", method="answers", of=of, inputs=len(seen.read)
        )
        return made, found

    seen = wanted(aligned.vector, answers)

    @lru_cache(REFITS)
    def refit(places: frozenset[int]) -> TaskVector:
        others = [place for place in range(len(inputs)) if place not in places]
        if aligned.refit is None:
            return both(aligned.vector, seen.at(others), TUNED)[0]
        vector = aligned.refit(places)
        return both(vector, wanted(vector, answers).at(others), TUNED)[0]

    vector, found = both(aligned.vector, seen, TUNED)
    if not found.changes:
        raise AlignmentError(
            f"{type(model.model).__name__}: nothing of the tuned model's answers on {len(inputs)} inputs can be "
            "explained by what it makes of them; give more or other inputs with --align-data"
        )
    control = aligned.control
    if control is not None and observed.shuffled is not None:
        control = both(control, wanted(control, observed.shuffled), SHUFFLED)[0]
    facts = {
        model.names[name]: {
            "stream": name,
            "residual": 0.0,
            "unexplained": found.unexplained,
            "ridge": found.ridge,
        }
        for name in found.changes
        if name.endswith(".weight")
    }
    return replace(aligned, vector=vector, control=control, tensors={**aligned.tensors, **facts}, refit=refit)


def align_by_rotation(
    model: TargetModel,
    inputs: Sequence[Any],
    observed: Observed,
    activations: Activations,
    method: str,
    *,
    control_seed: int | None,
) -> Aligned:
    """Rotate τ into the target's coordinates (see :mod:`.rotate`); the control is a shuffled τ, rotated likewise.

    Args:
        model: The target at θ_B; it is not changed.
        inputs: The same samples, in the same order, that the source was observed on.
        observed: What :func:`gradfix.alignment.source.observe` found.
        activations: Where it recorded.
        method: ``procrustes`` or ``permutation``.
        control_seed: Of the control's shuffle; None for no control.

    Returns:
        τ' over the same tensors as τ.
    """
    encoded = model.encode(inputs)
    activations.record(TARGET, model.model, runner(model.task, model), encoded.batches, observed.points)
    found = rotation(
        model.vector,
        model.model,
        model.names,
        activations,
        source=SOURCE,
        target=TARGET,
        method="permutation" if method == "permutation" else "procrustes",
    )
    control = None
    if control_seed is not None:
        control = rotate(shuffled(model.vector, control_seed), found.places, found.maps)
    return Aligned(found.vector, control, method, found.residuals, len(inputs))
