"""Counts held in memory, read like those of a file."""

from collections.abc import Mapping

from torch import Tensor

from gradfix.checkpoints.specs import TensorSpec


class TensorsInMemory:
    """Tensors held as they are.

    Attributes:
        specs: Dtype and shape of each.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = dict(tensors)
        self.specs: Mapping[str, TensorSpec] = {
            name: TensorSpec(tensor.dtype, tuple(tensor.shape)) for name, tensor in self._tensors.items()
        }

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        """Return a tensor, or a contiguous range of its first dimension, without a copy."""
        tensor = self._tensors[name]
        return tensor if rows is None else tensor[rows]
