"""Move a fine-tune to a new release of its base model, by gradient-sign masking of its task vector."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from gradfix._version import __version__

if TYPE_CHECKING:
    from gradfix.checkpoints import Checkpoint as Checkpoint
    from gradfix.checkpoints import CheckpointWriter as CheckpointWriter
    from gradfix.errors import GradfixError as GradfixError
    from gradfix.tasks import CustomTask as CustomTask
    from gradfix.transport.pipeline import transport as transport
    from gradfix.vectors.apply import apply as apply
    from gradfix.vectors.masks import mask as mask
    from gradfix.vectors.merging import merge as merge
    from gradfix.vectors.placement import place as place
    from gradfix.vectors.task_vector import TaskVector as TaskVector
    from gradfix.votes import Votes as Votes
    from gradfix.votes import count_votes as count_votes

# Loaded when first asked for: importing torch takes seconds, and `gradfix --help` must not wait for it.
_HOMES = {
    "Checkpoint": "checkpoints",
    "CheckpointWriter": "checkpoints",
    "CustomTask": "tasks",
    "GradfixError": "errors",
    "TaskVector": "vectors.task_vector",
    "Votes": "votes",
    "apply": "vectors.apply",
    "count_votes": "votes",
    "mask": "vectors.masks",
    "merge": "vectors.merging",
    "place": "vectors.placement",
    "transport": "transport.pipeline",
}

__all__ = [*_HOMES, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'gradfix' has no attribute {name!r}")
    home = import_module(f"gradfix.{_HOMES[name]}")
    return import_module("gradfix.transport") if name == "transport" else getattr(home, name)


def __dir__() -> list[str]:
    return sorted(__all__)
