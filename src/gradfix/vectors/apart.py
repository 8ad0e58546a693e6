"""A target of another width, depth or kind: no coordinate of τ has a place there, so nothing of it is laid out.

What is laid out in its stead is a vector of zeros over all of the target's parameters, which an alignment fills, and a
head of the target's own kind, whose last layer is fitted to what the tuned source answers.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from gradfix.checkpoints import Checkpoint
from gradfix.checkpoints.architecture import checkpoint_names, skeleton
from gradfix.checkpoints.expressions import Given, Padded, Selection
from gradfix.checkpoints.respelling import Spelled, respell
from gradfix.checkpoints.tensors import TensorSpec
from gradfix.errors import AlignmentError
from gradfix.tasks import HeadedClassification, ModelTask
from gradfix.vectors.placement import own_weights, place, with_movable_head
from gradfix.vectors.task_vector import Placement, TaskVector


def place_apart(tau: TaskVector, target: Checkpoint, task: ModelTask) -> Placement:
    """Lay out a vector of zeros on a target that τ does not fit.

    Args:
        tau: The task vector; its configuration names the classes.
        target: θ_B, in a directory.
        task: Bound to the target.

    Returns:
        The placement; where the task has a head that the target lacks, the output is the target's own architecture with
        such a head, whose last layer is zero.

    Raises:
        AlignmentError: if transformers has no such head for the target's architecture, or it has layers that can't be
            set to pass on what they read.
    """
    weights = own_weights(target)
    if isinstance(task, HeadedClassification):
        weights = _with_head(weights, target, task)
    like = weights.source
    zeros = TaskVector(
        Padded(Selection(like, {}), like),
        additions=weights.additions,
        config=weights.config,
        ties=weights.ties,
        origin=lambda: {"operation": "apart", "of": tau.origin},
    )
    return replace(with_movable_head(place(zeros, target)), apart=True)


def _with_head(weights: TaskVector, target: Checkpoint, task: HeadedClassification) -> TaskVector:
    """The target's weights as the architecture with a head names them, and the head."""
    config = {
        **target.config,
        "architectures": [_class_name(task)],
        "id2label": {str(key): name for key, name in task.labels.id2label.items()},
        "label2id": dict(task.labels.label2id),
    }
    model = skeleton(config)
    if model is None:
        raise AlignmentError(
            f"{target.location}: transformers can't build {config['architectures'][0]} from its configuration, so it "
            "gets no head for this task"
        )
    stored = checkpoint_names(model)
    parameters = dict(model.named_parameters())
    specs = {
        stored.get(name, name): TensorSpec(torch.float32, tuple(value.shape))
        for name, value in parameters.items()
    }
    match = respell(Spelled(specs, config), Spelled(target.specs, target.config))
    modules = {stored.get(name, name): name for name in parameters}
    missing = {name: modules[name] for name in specs if name in match.unmatched_source}
    names = {ours: theirs for theirs, ours in match.names.items() if theirs in weights.specs}
    return TaskVector(
        Selection(weights, names),
        additions=Given(_passing_on(model, missing, task)),
        config=config,
        ties={},
    )


def _class_name(task: HeadedClassification) -> str:
    import transformers

    auto: Any = getattr(transformers, task.auto_class)
    found = auto._model_mapping.get(type(task.config), None)
    if found is None:
        raise AlignmentError(
            f"{task.location}: transformers has no {task.auto_class.removeprefix('AutoModelFor')} for "
            f"{type(task.config).__name__}, so it gets no head for this task"
        )
    name: str = (found[0] if isinstance(found, tuple) else found).__name__
    return name


def _passing_on(model: nn.Module, missing: dict[str, str], task: HeadedClassification) -> dict[str, Tensor]:
    """Values for a head that passes on what it reads, up to its last layer, which gives 0."""
    values: dict[str, Tensor] = {}
    last = f"{task.last_layer(model)[0]}."
    for name, parameter in missing.items():
        module = model.get_submodule(parameter.rpartition(".")[0])
        shape = model.get_parameter(parameter).shape
        weight = parameter.endswith(".weight")
        if parameter.startswith(last) or not weight:
            values[name] = torch.zeros(shape)
        elif isinstance(module, nn.Linear) and shape[0] == shape[1]:
            values[name] = torch.eye(shape[0])
        elif len(shape) == 1:
            values[name] = torch.ones(shape)
        else:
            raise AlignmentError(
                f"{type(model).__name__}: {parameter} {list(shape)} of its head is in no checkpoint and can't be set "
                "to pass on what it reads; give a target that brings it"
            )
    return values
