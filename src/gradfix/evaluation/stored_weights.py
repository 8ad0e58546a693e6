"""Where each weight of the model in memory is stored: in the target, or with the tuned head."""

import re
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from gradfix.checkpoints import Checkpoint, TensorSource
from gradfix.checkpoints.expressions import Padded, Selection
from gradfix.checkpoints.layouts import AsStored, InMemory
from gradfix.checkpoints.public_layouts import layout_in
from gradfix.vectors.task_vector import Placement


@dataclass(frozen=True)
class StoredAs:
    """Where a parameter's or buffer's value at θ_B is stored.

    Attributes:
        theirs: Names in the target; several where it stores another form, such as one tensor an expert.
        addition: Or the name with the tuned model's head.
        memory: The name in the module that is stored, of a tied parameter that has several.
    """

    theirs: tuple[str, ...] = ()
    addition: str | None = None
    memory: str = field(default="", compare=False)


NOT_STORED = StoredAs()


def stored_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Give the buffers that a checkpoint holds: those of the model's state, not what it computes when it is made."""
    state = model.state_dict(keep_vars=True).keys()
    return {name: buffer for name, buffer in model.named_buffers() if name in state}


class StoredWeights:
    """The files of an output, and where a module has each of their tensors.

    Attributes:
        layout: How the output's tensors lie in the module, as loading what was written will have it.
    """

    def __init__(self, model: nn.Module, target: Checkpoint, placement: Placement) -> None:
        """Lay an output out.

        Args:
            model: The module that stands for it.
            target: θ_B.
            placement: τ laid onto it.
        """
        self._target, self._placement = target, placement
        additions = placement.vector.additions.specs
        specs = {
            name: additions[name] if theirs is None else placement.base.specs[theirs]
            for name, theirs in placement.outputs.items()
        }
        aliases = {alias: target.specs[name] for alias, name in target.ties.items()}
        self.layout = layout_in(model, {**aliases, **specs})

    def find(self, name: str) -> StoredAs:
        """Find where a tensor's value is stored.

        Args:
            name: In the module.

        Returns:
            The place; ``NOT_STORED`` if there is none.
        """
        parts = self.layout.parts_of_memory.get(name)
        if parts is not None:
            return StoredAs(
                tuple(self._theirs(stored) for part in parts for stored in part.stored), memory=name
            )
        stored = self.layout.of_memory.get(name)
        if stored is None:
            return NOT_STORED
        if stored in self._placement.outputs and self._placement.outputs[stored] is None:
            return StoredAs(addition=stored, memory=name)
        return StoredAs((self._theirs(stored),), memory=name)

    def in_memory(self, source: TensorSource) -> InMemory:
        """Give tensors in the form that the module has.

        Args:
            source: With the target checkpoint's names. Where it has a part of what is one tensor in memory, such as one
                expert of many, the rest is 0.

        Returns:
            The same with the module's names, read lazily.
        """
        stored = {name: self._theirs(name) for name in (*self.layout.renamed, *self.layout.part_of_stored)}
        names = {name: theirs for name, theirs in stored.items() if theirs in source.specs}
        groups = [
            [name for part in parts for name in part.stored] for parts in self.layout.parts_of_memory.values()
        ]
        begun = {
            name: stored[name] for group in groups if not names.keys().isdisjoint(group) for name in group
        }
        there = Selection(source, names)
        if begun.keys() <= names.keys():
            return InMemory(there, self.layout)
        like = Selection(self._placement.base, {**names, **begun}, torch.float32)
        return InMemory(Padded(there, like), self.layout)

    def as_stored(self, source: TensorSource) -> TensorSource:
        """Give tensors as the target checkpoint stores them.

        Args:
            source: With the module's names.

        Returns:
            The same with the checkpoint's names, read lazily.
        """
        found = AsStored(source, self.layout)
        return Selection(found, {self._theirs(stored): stored for stored in found.specs})

    def _theirs(self, stored: str) -> str:
        theirs = self._placement.outputs.get(stored)
        return theirs if theirs is not None else self._target.ties.get(stored, stored)


def is_computed(model: nn.Module, name: str) -> bool:
    """Tell whether a parameter is nowhere stored because it is computed.

    Args:
        model: The module.
        name: Of one of its parameters or buffers.

    Returns:
        True for sinusoidal positions, and for counters that only training reads.
    """
    known = [
        pattern
        for key in ("_keys_to_ignore_on_load_missing", "_keys_to_ignore_on_save")
        for pattern in getattr(model, key, None) or ()
    ]
    # torch itself takes a file without the counter of a batch norm
    return name.endswith("num_batches_tracked") or any(re.search(pattern, name) for pattern in known)
