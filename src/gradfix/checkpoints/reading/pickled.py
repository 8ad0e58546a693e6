"""Files of ``torch.save``, read without running anything in them."""

import os
import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from gradfix.checkpoints.reading.file_reader import PositionedFile, allocate, row_range
from gradfix.checkpoints.reading.recognition import is_pytorch, other_kind
from gradfix.checkpoints.tensors import TensorSpec
from gradfix.errors import GradfixError

WRAPPERS = ("state_dict", "model_state_dict")
"""Keys under which training loops put the weights, beside an optimizer and counters."""

_LOAD_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
    struct.error,
    zipfile.BadZipFile,
)
"""What torch.load raises on a file that is damaged or needs code."""


class PickledFile:
    """A file of ``torch.save``, loaded with ``weights_only=True`` and mapped; never retried in another way.

    Reading copies the rows asked for, so that the map costs no memory of the process's own. A file in the
    format before torch 1.6 can't be mapped: it is held in memory whole, and noted. The size is compared
    before each read, but a file cut in the middle of one still ends the process: safetensors has no such gap.

    Attributes:
        path: The file.
        files: The file, for readers of several.
        specs: Dtype and shape of each tensor, in stored order.
        shared: Names that share memory: each to the first of its group.
        notes: What was unwrapped, left out or held in memory.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Map a file and look at its tensors.

        Args:
            path: The file.

        Raises:
            GradfixError: If it isn't what ``torch.save`` writes, needs code to be read, or holds no tensors.
        """
        self.path = Path(path)
        self.files: tuple[Path, ...] = (self.path,)
        self._file = PositionedFile(self.path)
        start = self._file.read_bytes(0, 64)
        if (meaning := other_kind(start)) is not None:
            raise GradfixError(f"{self.path}: {meaning}")
        if not is_pytorch(start):
            raise GradfixError(
                f"{self.path}: is no PyTorch file: expected a zip archive or a pickle, found it to begin with "
                f"{start[:8]!r}: download or write it again"
            )
        notes = []
        mapped = start.startswith(b"PK")
        if not mapped:
            notes.append(f"{self.path}: is in the format before torch 1.6 and held in memory whole")
        tensors, more = _state_dict(self.path, _load(self.path, mapped=mapped))
        self._tensors = tensors
        self.notes: tuple[str, ...] = (*notes, *more)
        self.specs: Mapping[str, TensorSpec] = MappingProxyType(
            {name: TensorSpec(tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
        )
        self.shared: Mapping[str, str] = MappingProxyType(_shared(tensors))

    def fetch(self) -> None:
        """Do nothing: the file is here."""

    def peek(self, name: str) -> None:
        """Give nothing: a tensor that is here can be read."""

    def read(self, name: str, rows: slice | None = None, *, out: Tensor | None = None) -> Tensor:
        """Copy a tensor, or a contiguous range of its rows, out of the map.

        Args:
            name: A key of ``specs``.
            rows: Range of the first dimension, as in Python's slicing with step 1; None for all of it.
            out: Memory to reuse, as in :meth:`SafetensorsFile.read`.

        Returns:
            The tensor in its stored dtype, the first dimension cut to ``rows``.

        Raises:
            KeyError: If the file holds no such tensor.
            GradfixError: If the file was cut after it was opened.
            ValueError: If ``rows`` has a step or ``out`` doesn't fit.
        """
        whole = self._tensors[name]
        start, stop = row_range(tuple(whole.shape), rows)
        part = whole[start:stop] if whole.ndim else whole
        tensor, _ = allocate(part.dtype, tuple(part.shape), out)
        if self._file.current_size() != self._file.size:
            raise self._file.cut(f"tensor {name!r}")
        tensor.copy_(part)
        return tensor


def _load(path: Path, *, mapped: bool) -> Any:
    try:
        with warnings.catch_warnings():
            # torch deprecates storages that old files name; the reader can't change the file
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except _LOAD_ERRORS as error:
        if (needed := re.search(r"GLOBAL ([\w.]+)", str(error))) is not None:
            raise GradfixError(
                f"{path}: its pickle needs code to be read ({needed[1]}), expected plain tensors: where you trust "
                "the file, load it and save the state_dict as safetensors"
            ) from None
        raise GradfixError(
            f"{path}: cannot be read as a PyTorch file ({_reason(error)}): it is truncated, corrupt or no file of "
            "plain tensors: download it again, or convert it to safetensors where you trust it"
        ) from None


def _reason(error: BaseException) -> str:
    """The part of torch's message that says what is wrong, on one line."""
    text = str(error) or type(error).__name__
    _, found, reason = text.partition("WeightsUnpickler error: ")
    line = " ".join((reason if found else text).split())
    return line if len(line) <= 160 else line[:159] + "…"


def _state_dict(path: Path, value: Any) -> tuple[dict[str, Tensor], list[str]]:
    """Find the tensors of what was loaded, and say what was done to find them."""
    notes = []
    if isinstance(value, Mapping):
        wrapper = next((key for key in WRAPPERS if isinstance(value.get(key), Mapping)), None)
        if wrapper is not None:
            value = value[wrapper]
            notes.append(f"{path}: weights taken from its {wrapper!r}")
    if not isinstance(value, Mapping):
        raise GradfixError(
            f"{path}: holds a {type(value).__name__}, expected a mapping of names to tensors: save the "
            "state_dict"
        )
    tensors = {
        name: entry for name, entry in value.items() if isinstance(name, str) and isinstance(entry, Tensor)
    }
    if not tensors:
        keys = ", ".join(repr(key) for key in list(value)[:5])
        raise GradfixError(
            f"{path}: holds no tensors at its top level (keys: {keys or 'none'}), nor in {' or '.join(WRAPPERS)}: "
            "save the state_dict"
        )
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
            kind = "quantized" if tensor.is_quantized else f"{tensor.layout} on {tensor.device}"
            raise GradfixError(
                f"{path}: tensor {name!r}: expected a dense tensor, found a {kind} one: convert it"
            )
    others = [str(name) for name in value if name not in tensors]
    if others:
        notes.append(f"{path}: {len(others)} entries are no tensors and not read: {', '.join(others[:5])}")
    return {name: tensor.detach() for name, tensor in tensors.items()}, notes


def _shared(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    first: dict[tuple[Any, ...], str] = {}
    shared = {}
    for name, tensor in tensors.items():
        if not tensor.numel():
            continue
        place = (tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())
        if first.setdefault(place, name) != name:
            shared[name] = first[place]
    return shared
