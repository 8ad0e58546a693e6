"""One safetensors file: checked first, then read by rows."""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor

from gradfix.checkpoints.reading.file_reader import PositionedFile, allocate, row_range
from gradfix.checkpoints.reading.header import header_length, parse_header
from gradfix.checkpoints.tensors import TensorSpec


class SafetensorsFile:
    """A safetensors file whose header was checked against its size; any number of threads may read.

    Attributes:
        path: The file.
        metadata: The text stored with the tensors.
        specs: Dtype and shape of each tensor, in the order of the header.
        files: The file, for readers of several.
        shared: Nothing: the format has no shared memory.
        notes: Nothing.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Open a file and check its header; no data are read.

        Args:
            path: The file.

        Raises:
            GradfixError: If it is no well-formed safetensors file.
        """
        self.path = Path(path)
        self.files: tuple[Path, ...] = (self.path,)
        self.shared: Mapping[str, str] = MappingProxyType({})
        self.notes: tuple[str, ...] = ()
        self._file = PositionedFile(self.path)
        length = header_length(self.path, self._file.read_bytes(0, 64), self._file.size)
        header = parse_header(self.path, self._file.read_bytes(8, length), self._file.size)
        self._entries = header.entries
        self.metadata: dict[str, str] = header.metadata
        self.specs: Mapping[str, TensorSpec] = MappingProxyType(
            {name: entry.spec for name, entry in header.entries.items()}
        )

    def fetch(self) -> None:
        """Do nothing: the file is here."""

    def peek(self, name: str) -> None:
        """Give nothing: a tensor that is here can be read."""

    def expect(self, name: str) -> bool:
        """Have the system read a tensor ahead; see :meth:`PositionedFile.expect`."""
        entry = self._entries[name]
        return self._file.expect(entry.start, entry.spec.nbytes)

    def read(self, name: str, rows: slice | None = None, *, out: Tensor | None = None) -> Tensor:
        """Read a tensor, or a contiguous range of its rows, and no other bytes.

        Args:
            name: A key of ``specs``.
            rows: Range of the first dimension, as in Python's slicing with step 1; None for all of it.
            out: Memory to reuse: a contiguous uint8 CPU tensor, shape ``[bytes]``, long enough for what is
                read. The result is then a view of it, valid until it is used again.

        Returns:
            The tensor in its stored dtype, the first dimension cut to ``rows``.

        Raises:
            KeyError: If the file holds no such tensor.
            GradfixError: If the file was cut after it was opened.
            ValueError: If ``rows`` has a step or ``out`` doesn't fit.
        """
        entry = self._entries[name]
        spec = entry.spec
        start, stop = row_range(spec.shape, rows)
        shape = (stop - start, *spec.shape[1:]) if spec.shape else ()
        tensor, memory = allocate(spec.dtype, shape, out)
        row_bytes = math.prod(spec.shape[1:]) * spec.dtype.itemsize
        self._file.read_into(memory, entry.start + start * row_bytes, f"tensor {name!r}")
        return tensor

    def pick(self, name: str, positions: Sequence[int]) -> Tensor:
        """Read single numbers of a tensor, and no other bytes.

        Args:
            name: A key of ``specs``.
            positions: Of the flattened tensor.

        Returns:
            The numbers in their stored dtype, shape ``[len(positions)]``.

        Raises:
            GradfixError: If the file was cut after it was opened.
        """
        entry = self._entries[name]
        dtype = entry.spec.dtype
        parts = [self._file.read_bytes(entry.start + at * dtype.itemsize, dtype.itemsize) for at in positions]
        numbers = bytearray(b"".join(parts))
        if len(numbers) < len(positions) * dtype.itemsize:
            raise self._file.cut(f"tensor {name!r}")
        return torch.frombuffer(numbers, dtype=dtype)
