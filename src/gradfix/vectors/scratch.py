"""Tensors computed once into files, so that trying the next α reads them instead of computing them again.

The files are mapped: their pages are the system's cache, not this process's memory.
"""

import math
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from gradfix.checkpoints import TensorSource, TensorSpec
from gradfix.checkpoints.expressions import Expression, Selection
from gradfix.checkpoints.tensors import known_zero
from gradfix.ranks import ranks
from gradfix.vectors.task_vector import TaskVector

SHARE_OF_DISK = 0.5
"""Of the free space that one vector may take."""


_ALIGNED = 8
"""Bytes at a multiple of which each tensor begins: as many as a number of any type has."""


@dataclass(frozen=True)
class Kept(Expression):
    """Tensors that lie one after the other in a mapped file; of what is 0 everywhere, it is only known."""

    specs: Mapping[str, TensorSpec]
    offsets: Mapping[str, int]
    memory: Tensor
    zeros: frozenset[str]

    @override
    def known_zero(self, name: str) -> bool:
        return name in self.zeros

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        """Show one range of rows, without a copy."""
        spec = self.specs[name]
        if name not in self.offsets:
            whole = torch.zeros((), dtype=spec.dtype).expand(spec.shape)
            return (whole if rows is None else whole[rows]).contiguous()
        start = self.offsets[name]
        size = spec.numel * spec.dtype.itemsize
        whole = self.memory[start : start + size].view(spec.dtype).view(spec.shape)
        return whole if rows is None else whole[rows]


class Scratch:
    """Keeps tensors in files of a temporary directory; a context manager; the files go with it."""

    def __enter__(self) -> "Scratch":
        self._directory = tempfile.TemporaryDirectory(prefix="gradfix-scratch-")
        return self

    def __exit__(self, *_: object) -> None:
        self._directory.cleanup()

    def keep(self, vector: TaskVector, *, from_first: bool = False) -> TaskVector:
        """Compute a vector into a file.

        What a vector was computed from is not held: votes of which it is masked may be freed.

        Args:
            vector: Any task vector.
            from_first: Keep the first rank's values on every rank: others may differ where a device computes in an
                order of its own.

        Returns:
            A vector of the same values, read from the file; the given one itself where the disk has no room, or where
            it is read from such a file already.
        """
        if isinstance(vector.source, Kept) and not from_first:
            return vector
        source = Selection(vector, {name: name for name in vector.specs}, dtype=torch.float32)
        kept = self.hold(source, from_first=from_first)
        return vector if kept is source else TaskVector(kept, config=vector.config)

    def hold(self, source: TensorSource, *, from_first: bool = False) -> TensorSource:
        """Compute tensors into a file, as they are.

        Args:
            source: Any tensors.
            from_first: See :meth:`keep`.

        Returns:
            The same, read from the file; the given ones themselves where the disk has no room.
        """
        # What others compute may differ, also in what is 0.
        zeros = set() if from_first else {name for name in source.specs if known_zero(source, name)}
        offsets, size = dict[str, int](), 0
        for name, spec in source.specs.items():
            if name in zeros:
                continue
            offsets[name] = size
            size += math.ceil(spec.numel * spec.dtype.itemsize / _ALIGNED) * _ALIGNED
        directory = Path(self._directory.name)
        room = size <= SHARE_OF_DISK * shutil.disk_usage(directory).free
        if from_first:
            room = all(ranks().gather("room for a vector", room))
        if not size or not room:
            return source
        # Without a name: its room is free again when nobody reads it any more.
        with tempfile.TemporaryFile(dir=directory) as file:
            for name, offset in offsets.items():
                file.seek(offset)
                moves = False
                for rows in source.specs[name].row_blocks():
                    values = source.read(name, rows).detach().contiguous()
                    if from_first:
                        ranks().copy_from_first(values)
                    moves = moves or bool(values.any())
                    file.write(values.reshape(-1).view(torch.uint8).numpy().data)
                if not moves:
                    zeros.add(name)
            file.truncate(size)
            file.flush()
            # Copy on write: torch asks for memory that could be written to, and nothing here writes.
            memory = torch.from_numpy(np.memmap(file, dtype=np.uint8, mode="c", shape=(size,)))
        return Kept(dict(source.specs), offsets, memory, frozenset(zeros))
