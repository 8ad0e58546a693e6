"""Tensors computed from stored ones when they are read."""

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from gradfix.checkpoints.specs import TensorSpec
from gradfix.fingerprint import StoredTensors


class DerivedTensors(Mapping[str, Tensor]):
    """Tensors computed from others when they are read, one at a time.

    Attributes:
        specs: Dtype and shape of each.
    """

    def __init__(
        self, source: StoredTensors, function: Callable[[Tensor], Tensor], dtype: torch.dtype
    ) -> None:
        self._source, self._function = source, function
        self.specs: Mapping[str, TensorSpec] = {
            name: TensorSpec(dtype, spec.shape) for name, spec in source.specs.items()
        }

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        """Compute a tensor, or a contiguous range of its first dimension."""
        return self._function(self._source.read(name, rows))

    def __getitem__(self, name: str) -> Tensor:
        return self.read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.specs)

    def __len__(self) -> int:
        return len(self.specs)
