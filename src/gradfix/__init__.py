"""Move a fine-tune to a new release of its base model, by gradient-sign masking of its task vector."""

from __future__ import annotations

from gradfix._version import __version__

# Not typing's: nothing is imported before Ctrl-C has its answer, see gradfix.interrupts.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from gradfix.checkpoints import Checkpoint as Checkpoint
    from gradfix.checkpoints import CheckpointWriter as CheckpointWriter
    from gradfix.errors import GradfixError as GradfixError
    from gradfix.plugins import register as register
    from gradfix.ranks.launch import distributed as distributed
    from gradfix.tasks import CustomTask as CustomTask
    from gradfix.transport.comparison import Comparison as Comparison
    from gradfix.transport.comparison.tasks import table as table
    from gradfix.transport.functions.check import check as check
    from gradfix.transport.functions.compare import compare as compare
    from gradfix.transport.functions.evaluate import evaluate as evaluate
    from gradfix.transport.functions.votes import votes as votes
    from gradfix.transport.inspection import inspect as inspect
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
    "Comparison": "transport.comparison",
    "CheckpointWriter": "checkpoints",
    "CustomTask": "tasks",
    "GradfixError": "errors",
    "TaskVector": "vectors.task_vector",
    "Votes": "votes",
    "apply": "vectors.apply",
    "check": "transport.functions.check",
    "compare": "transport.functions.compare",
    "count_votes": "votes",
    "distributed": "ranks.launch",
    "evaluate": "transport.functions.evaluate",
    "inspect": "transport.inspection",
    "mask": "vectors.masks",
    "merge": "vectors.merging",
    "place": "vectors.placement",
    "register": "plugins",
    "table": "transport.comparison.tasks",
}
_ROOMS = ("data", "tasks", "transport", "votes")
"""Rooms that are public by their own name; transport and votes can be called."""

__all__ = [*_HOMES, *_ROOMS, "__version__"]


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name in _ROOMS:
        return import_module(f"gradfix.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'gradfix' has no attribute {name!r}")
    return getattr(import_module(f"gradfix.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
