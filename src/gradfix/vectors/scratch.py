"""Task vectors computed once into files, so that trying the next α reads them instead of computing them again.

The files are mapped: their pages are the system's cache, not this process's memory, and go with the context.
"""

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gradfix.checkpoints import TensorSpec
from gradfix.checkpoints.expressions import Expression
from gradfix.ranks import ranks
from gradfix.vectors.task_vector import TaskVector

SHARE_OF_DISK = 0.5
"""Of the free space that one vector may take."""


@dataclass(frozen=True)
class Kept(Expression):
    """Tensors that lie one after the other in a mapped file of float32."""

    specs: Mapping[str, TensorSpec]
    offsets: Mapping[str, int]
    memory: Tensor

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        """Show one range of rows, without a copy."""
        spec, start = self.specs[name], self.offsets[name]
        whole = self.memory[start : start + spec.numel].view(spec.shape)
        return whole if rows is None else whole[rows]


class Scratch:
    """Keeps vectors in files of a temporary directory; a context manager; the files go with it."""

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
            A vector of the same values, read from the file; the given one itself where the disk has no room.
        """
        count = sum(spec.numel for spec in vector.specs.values())
        directory = Path(self._directory.name)
        room = count * 4 <= SHARE_OF_DISK * shutil.disk_usage(directory).free
        if from_first:
            room = all(ranks().gather("room for a vector", room))
        if not count or not room:
            return vector
        offsets: dict[str, int] = {}
        path = directory / f"{len(list(directory.iterdir()))}.float32"
        with path.open("wb") as file:
            for name in vector.specs:
                offsets[name] = file.tell() // 4
                for block in vector.blocks(name):
                    values = block.detach().contiguous()
                    if from_first:
                        ranks().copy_from_first(values)
                    file.write(values.numpy().data)
        # Copy on write: torch asks for memory that could be written to, and nothing here writes.
        memory = torch.from_numpy(np.memmap(path, dtype=np.float32, mode="c", shape=(count,)))
        specs = {name: TensorSpec(torch.float32, spec.shape) for name, spec in vector.specs.items()}
        return TaskVector(Kept(specs, offsets, memory), config=vector.config)
