"""Where each weight of the model in memory is stored: in the target, or with the tuned head."""

from dataclasses import dataclass

from torch import Tensor, nn

from gradfix.checkpoints import Checkpoint
from gradfix.vectors.task_vector import Placement


@dataclass(frozen=True)
class StoredAs:
    """Where a parameter's or buffer's value at θ_B is stored: in the target (``theirs``), or with the tuned head."""

    theirs: str | None
    addition: str | None


NOT_STORED = StoredAs(None, None)


def stored_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Give the buffers that a checkpoint holds: those of the model's state, not what it computes when it is made."""
    state = model.state_dict(keep_vars=True).keys()
    return {name: buffer for name, buffer in model.named_buffers() if name in state}


def stored_as(placement: Placement, target: Checkpoint, stored: str) -> StoredAs:
    """Find a tensor's value: under its own name, its alias's, or the tuned model's other spelling of it."""
    additions = placement.vector.additions.specs
    if stored in additions:
        return StoredAs(None, stored)
    theirs = placement.outputs.get(stored) or target.ties.get(stored, stored)
    return StoredAs(theirs if theirs in target.specs else None, None)
