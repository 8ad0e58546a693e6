"""Move a fine-tune to a new release of its base model, by gradient-sign masking of its task vector."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from gradfix.checkpoints import Checkpoint as Checkpoint
    from gradfix.checkpoints import CheckpointWriter as CheckpointWriter
    from gradfix.errors import GradfixError as GradfixError
    from gradfix.masks import mask as mask
    from gradfix.merging import merge as merge
    from gradfix.pipeline import transport as transport
    from gradfix.placement import place as place
    from gradfix.tasks import CustomTask as CustomTask
    from gradfix.update import apply as apply
    from gradfix.vectors import TaskVector as TaskVector
    from gradfix.votes import Votes as Votes
    from gradfix.votes import count_votes as count_votes

# Loaded when first asked for: importing torch takes seconds, and `gradfix --help` must not wait for it.
_HOMES = {
    "Checkpoint": "checkpoints",
    "CheckpointWriter": "checkpoints",
    "CustomTask": "tasks",
    "GradfixError": "errors",
    "TaskVector": "vectors",
    "Votes": "votes",
    "apply": "update",
    "count_votes": "votes",
    "mask": "masks",
    "merge": "merging",
    "place": "placement",
    "transport": "pipeline",
}

__all__ = [*_HOMES, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'gradfix' has no attribute {name!r}")
    return getattr(import_module(f"gradfix.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
