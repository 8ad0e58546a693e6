"""A task vector in the target's coordinates, with what is known of how well the two models align."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gradfix.alignment.activations import Activations
from gradfix.alignment.regression import SHUFFLED, SOURCE, TARGET, TUNED, fit_blocks
from gradfix.alignment.rotation.rotate import rotate, rotation
from gradfix.alignment.source import Observed, SourceRun, runner
from gradfix.checkpoints.expressions import Given
from gradfix.evaluation.target_model import TargetModel
from gradfix.vectors.control import shuffled
from gradfix.vectors.task_vector import TaskVector


@dataclass(frozen=True)
class Aligned:
    """The outcome of an alignment.

    Attributes:
        vector: τ', with the target checkpoint's names.
        control: The same made from a shuffled τ; None where none was asked for.
        method: How.
        tensors: What is known of each tensor, as JSON: residuals on held-out inputs.
        inputs: How many inputs were used.
    """

    vector: TaskVector
    control: TaskVector | None
    method: str
    tensors: Mapping[str, Mapping[str, Any]]
    inputs: int


def align(source: SourceRun, model: TargetModel, *, control_seed: int | None) -> Aligned | None:
    """Carry τ over to the target, in the way that the source was run for.

    Args:
        source: What was recorded of it.
        model: The target at θ_B.
        control_seed: Of the control's shuffle; None for no control.

    Returns:
        The alignment; None where none was wanted.
    """
    seen = model, source.inputs, source.observed, source.activations
    if source.method == "none":
        return None
    if source.method == "regression":
        return align_by_regression(*seen, control=control_seed is not None)
    return align_by_rotation(*seen, source.method, control_seed=control_seed)


def align_by_regression(
    model: TargetModel, inputs: Sequence[Any], observed: Observed, activations: Activations, *, control: bool
) -> Aligned:
    """Fit the target's blocks to the change that the fine-tune made in the source (see :mod:`.regression`).

    Args:
        model: The target at θ_B; it is not changed.
        inputs: The same samples, in the same order, that the source was observed on.
        observed: What :func:`gradfix.alignment.source.observe` found.
        activations: Where it recorded.
        control: Also fit to the change that a shuffled τ made.

    Returns:
        τ', dense in the last linear map of each block and zero elsewhere.
    """
    task = model.task
    run = runner(task, model)
    encoded = model.encode(inputs)
    activations.record(TARGET, model.model, run, encoded.batches, observed.points)
    order = [index for places in encoded.positions for index in places]
    whole = task.encode([inputs[index] for index in order])

    def fitted(tuned: str) -> tuple[TaskVector, Mapping[str, Mapping[str, Any]]]:
        found = fit_blocks(model.model, run, whole, observed.writers, activations, tuned=tuned)
        changes = {model.names[name]: value for name, value in found.changes.items()}
        vector = model.vector.derive(
            Given(changes), operation="align", method="regression", recording=tuned, inputs=len(inputs)
        )
        return vector, {model.names[name]: facts for name, facts in found.facts().items()}

    vector, tensors = fitted(TUNED)
    return Aligned(vector, fitted(SHUFFLED)[0] if control else None, "regression", tensors, len(inputs))


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
