"""The control of every claim of transfer: τ with its values shuffled within each tensor."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from gradfix.checkpoints import TensorSpec
from gradfix.checkpoints.expressions import Expression
from gradfix.vectors.task_vector import TaskVector


@dataclass(frozen=True)
class Shuffled(Expression):
    """τ with its values permuted at random within each tensor: the same magnitudes, nothing of what was learnt.

    A permutation needs a whole tensor; the last one is kept, so that reading it by rows costs one permutation.
    """

    of: TaskVector
    seed: int
    _last: dict[str, Tensor] = field(default_factory=dict, compare=False, repr=False)

    @cached_property
    def specs(self) -> Mapping[str, TensorSpec]:
        """The tensors of τ."""
        return self.of.specs

    @override
    def known_zero(self, name: str) -> bool:
        return self.of.known_zero(name)

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        """Read rows of the permuted tensor."""
        if name not in self._last:
            digest = hashlib.sha256(f"{self.seed}\0{name}".encode()).digest()
            self._last.clear()  # before the next one is made: no two are held
            spec = self.specs[name]
            values = torch.empty(spec.shape)
            for block in spec.row_blocks():
                (values if block is None else values[block]).copy_(self.of.read(name, block))
            # In place: positions to gather from would take twice the tensor's memory, or four times in 64 bits.
            np.random.default_rng(int.from_bytes(digest[:8], "little")).shuffle(values.view(-1).numpy())
            self._last[name] = values
        return self._last[name] if rows is None else self._last[name][rows]


def shuffled(tau: TaskVector, seed: int) -> TaskVector:
    """Permute τ's values within each tensor: the control that every claim of transfer must beat.

    Args:
        tau: The task vector.
        seed: Of the permutations.

    Returns:
        The control vector.
    """
    return tau.derive(Shuffled(tau, seed), operation="shuffle", seed=seed)
