"""What is known of a tensor from a file's header, and how its data are walked without holding them whole."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

BLOCK = 1 << 18
"""Elements in a block of rows: 1 MB in float32, so that the steps of an expression meet each block in cache."""


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

    def row_blocks(self, elements: int = BLOCK) -> Iterator[slice | None]:
        """Cut the first dimension into contiguous ranges of about ``elements`` elements.

        Args:
            elements: Elements a range may hold; a single longer row is a range of its own.

        Yields:
            Ranges that cover the rows once, in order; a single None for a scalar, which has no rows.
        """
        if not self.shape:
            yield None
            return
        rows = self.shape[0]
        step = max(1, elements // max(1, self.numel // max(1, rows)))
        for start in range(0, rows, step):
            yield slice(start, min(start + step, rows))


class TensorSource(Protocol):
    """Anything that knows its tensors beforehand and reads them by rows: checkpoints, task vectors, votes."""

    @property
    def specs(self) -> Mapping[str, TensorSpec]:
        """What can be read, by name."""
        ...

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        """Read a tensor, or a contiguous range of its rows.

        Args:
            name: A key of ``specs``.
            rows: Range of the first dimension; None for all of it.

        Returns:
            The tensor, of the shape and dtype its spec says (the first dimension cut to ``rows``).
        """
        ...


def known_zero(source: TensorSource, name: str) -> bool:
    """Ask a source whether a tensor is 0 everywhere, where that is known without reading it; files don't know.

    Args:
        source: Any source.
        name: The tensor's key.

    Returns:
        False where it is not known.
    """
    ask = getattr(source, "known_zero", None)
    return ask is not None and bool(ask(name))


def pick(source: object, name: str, positions: Sequence[int]) -> Tensor | None:
    """Ask a source for single numbers of a tensor; those that can give them are files on a disk.

    Args:
        source: Any source.
        name: The tensor's key.
        positions: Of the flattened tensor.

    Returns:
        The numbers, shape ``[len(positions)]``; None where only whole rows can be had.
    """
    ask = getattr(source, "pick", None)
    picked: Tensor | None = None if ask is None else ask(name, positions)
    return picked
