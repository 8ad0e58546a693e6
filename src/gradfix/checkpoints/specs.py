"""What is known of a tensor from a file's header, before its data are read."""

import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class TensorSpec:
    """The dtype and shape of a stored tensor.

    Attributes:
        dtype: Element type as stored.
        shape: Lengths of the dimensions; ``()`` for a scalar.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Number of elements; 1 for a scalar, 0 where a dimension is empty."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Size of the data in bytes."""
        return self.numel * self.dtype.itemsize
