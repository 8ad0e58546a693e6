"""Memory of large tensors that nobody has any more, for the next ones that are read.

The system clears each page that it gives: as long as reading takes itself.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

LARGE = 1 << 20
"""Bytes from which memory is used again: smaller pieces the allocator keeps by itself."""

_ALIGNED = 64
"""Bytes that every tensor of torch's begins at a multiple of."""


class Reuse:
    """Memory that is used again once no tensor is in it."""

    def __init__(self) -> None:
        self._pieces: list[NDArray[np.uint8]] = []

    def empty(self, nbytes: int) -> Tensor:
        """Give memory: a piece of exactly this size if one is free, else a new one, before which free ones go.

        Args:
            nbytes: How many.

        Returns:
            Bytes of any value, shape ``[nbytes]``.
        """
        pieces = self._pieces
        # Free is what this list alone refers to: each tensor refers to the piece that its numbers are in.
        free = [i for i in range(len(pieces)) if sys.getrefcount(pieces[i]) <= _UNUSED]
        fitting = [i for i in free if len(pieces[i]) == nbytes + _ALIGNED]
        if fitting:
            piece = pieces[fitting[0]]
        else:
            self._pieces = [pieces[i] for i in range(len(pieces)) if i not in free]
            piece = np.empty(nbytes + _ALIGNED, np.uint8)
            self._pieces.append(piece)
        start = -piece.ctypes.data % _ALIGNED
        return torch.from_numpy(piece[start : start + nbytes])

    def clear(self) -> None:
        """Let go of what is free; what is not goes with its tensors."""
        self._pieces = []


def _count_of_unused() -> int:
    pieces = [np.empty(0, np.uint8)]
    return sys.getrefcount(pieces[0])


_UNUSED = _count_of_unused()
"""What Python counts for a piece that a list alone refers to: versions of it differ."""

_CURRENT: ContextVar[Reuse | None] = ContextVar("gradfix_reuse", default=None)


@contextmanager
def reusing(memory: Reuse) -> Iterator[None]:
    """Have what this thread reads go into memory that is used again.

    Args:
        memory: It.

    Yields:
        Nothing.
    """
    token = _CURRENT.set(memory)
    try:
        yield
    finally:
        _CURRENT.reset(token)


def empty(nbytes: int) -> Tensor:
    """Give memory for something that is read.

    Args:
        nbytes: How many.

    Returns:
        Bytes of any value, shape ``[nbytes]``.
    """
    memory = _CURRENT.get()
    if memory is None or nbytes < LARGE:
        return torch.empty(nbytes, dtype=torch.uint8)
    return memory.empty(nbytes)
