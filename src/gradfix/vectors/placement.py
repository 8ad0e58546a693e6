"""Where each tensor of the output comes from: a task vector laid onto a target model, from headers alone."""

from dataclasses import replace

import torch

from gradfix.checkpoints import Checkpoint, TensorSource, match_names
from gradfix.checkpoints.expressions import MappedRows, Selection
from gradfix.checkpoints.vocabulary import vocabulary_rows
from gradfix.errors import GradfixError, listed
from gradfix.vectors.task_vector import Placement, TaskVector


def place(tau: TaskVector, target: Checkpoint) -> Placement:
    """Lay a task vector onto a target: match names by known prefixes and vocabulary rows by token text.

    Nothing is read but headers, configurations and tokenizers.

    Where the tuned model has parameters of its own (a head), the output has the tuned model's architecture: its
    names, its head, and none of the target's parameters that the tuned model lacks. Otherwise the output has
    exactly the target's tensors.

    Args:
        tau: The task vector, with the tuned model's names.
        target: θ_B.

    Returns:
        The placement.

    Raises:
        GradfixError: if nothing matches, or shapes differ other than by the vocabulary.
    """
    if tau.placement is not None and tau.placement.target == target.location:
        return replace(tau.placement, vector=tau)
    match = match_names(tau.specs, target.specs)
    if not match.names:
        raise GradfixError(
            f"{target.location}: no tensor has a counterpart in the task vector; "
            f"found {listed(target.specs, 3)} against {listed(tau, 3)}; both must be of one architecture"
        )
    maps = vocabulary_rows(tau, target, match.names)
    differing = [
        f"{name} {list(tau.specs[name].shape)} against {list(target.specs[theirs].shape)}"
        for name, theirs in match.names.items()
        if name not in maps and tau.specs[name].shape != target.specs[theirs].shape
    ]
    if differing:
        raise GradfixError(
            f"{target.location}: shapes differ from the task vector's: {listed(differing)}; "
            "the new base must have the old one's architecture and size"
        )
    theirs = {target_name: name for name, target_name in match.names.items()}
    source: TensorSource = Selection(tau, theirs)
    if maps:
        source = MappedRows(source, {match.names[name]: rows for name, rows in maps.items()})
    additions = list(tau.additions.specs)
    outputs: dict[str, str | None] = {}
    dropped: list[str] = []
    for name, spec in target.specs.items():
        if additions and name not in theirs and spec.dtype.is_floating_point:
            dropped.append(name)
        else:
            outputs[theirs.get(name, name) if additions else name] = name
    outputs.update(dict.fromkeys(additions))
    vector = tau.derive(
        source,
        operation="place",
        rule=match.rule if match.add or match.remove else None,
        rows_by_token=sorted(maps),
    )
    vector.placement = Placement(
        target=target.location,
        vector=vector,
        rule=match.rule if match.add or match.remove else None,
        outputs=outputs,
        untouched=[name for name in target.specs if name not in theirs and name not in dropped],
        dropped=dropped,
        unplaced=list(match.unmatched_source),
        matched_tokens={name: (int((rows >= 0).sum()), len(rows)) for name, rows in maps.items()},
    )
    return vector.placement


def own_weights(checkpoint: Checkpoint) -> TaskVector:
    """Take a model's own weights as a vector, to be laid onto a target as a task vector would be.

    Args:
        checkpoint: The model.

    Returns:
        Its floating-point tensors, lazily.
    """
    names = {name: name for name, spec in checkpoint.specs.items() if spec.dtype.is_floating_point}
    return TaskVector(
        Selection(checkpoint, names, dtype=torch.float32),
        config=checkpoint.config,
        directory=checkpoint.directory,
        origin=lambda: {"operation": "weights", "of": checkpoint.location},
    )
