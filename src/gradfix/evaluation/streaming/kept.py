"""What blocks were given, and products in them gave, kept until the backward pass comes back.

Inputs are kept on the device, then on the host, then in a file; products in a file, as many as the system's cache has
room for.
"""

import os
import tempfile
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from gradfix.errors import GradfixError

SMALLEST = 1 << 16
"""Bytes of a tensor below which it stays where it is: a mask, a position."""


@dataclass(frozen=True)
class Room:
    """How much may be kept where.

    Attributes:
        device: Bytes on the device of the computation; None for any number.
        host: Bytes on the host, where the device is another one; None for any number.
        folder: Where to make the file that takes the rest; None for the system's temporary folder.
        products: Bytes of products in a file.
    """

    device: int | None = None
    host: int | None = None
    folder: Path | None = None
    products: int = 0


class Scratch:
    """A file without a name: it is gone with the process, however that ends."""

    def __init__(self, folder: Path | None) -> None:
        """Make it.

        Args:
            folder: Where; it is made if it isn't there. None for the system's temporary folder.
        """
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        self._folder = Path(folder or tempfile.gettempdir())
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - open for as long as anything is kept
        self.size = 0

    def write(self, tensor: Tensor) -> int:
        """Append a tensor.

        Args:
            tensor: Any.

        Returns:
            Where it is.

        Raises:
            GradfixError: if there is no room.
        """
        start, view = self.size, _bytes_of(tensor.detach().cpu().contiguous()).numpy().data
        done = 0
        try:
            while done < len(view):
                done += os.pwrite(self._file.fileno(), view[done:], start + done)
        except OSError as error:
            raise GradfixError(
                f"{self._folder}: the inputs of blocks don't fit in memory, and can't be kept there ({error.strerror} "
                f"after {(start + done) / 1e9:.2f} GB); make room, or set TMPDIR to another disk, and run the same "
                "command again; or give more with --memory, or a smaller --batch-size"
            ) from None
        self.size = start + len(view)
        return start

    def read(self, start: int, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """Read a tensor.

        Args:
            start: Where it is.
            shape: Its shape.
            dtype: Its number format.

        Returns:
            The tensor, on the host.

        Raises:
            GradfixError: if the disk fails.
        """
        tensor = torch.empty(shape, dtype=dtype)
        view, done = _bytes_of(tensor).numpy().data, 0
        while done < len(view):
            count = os.preadv(self._file.fileno(), [view[done:]], start + done)
            if not count:
                raise GradfixError(f"{self._folder}: a file for inputs of blocks was cut; check the disk")
            done += count
        return tensor

    def close(self) -> None:
        """Give its room back."""
        self._file.close()


@dataclass(eq=False)
class Kept:
    """One tensor that units were given.

    Attributes:
        edge: Where its gradient goes in the graph of the model's own code; None where it has none.
    """

    edge: GradientEdge | None
    _tensor: Tensor | None = field(default=None, repr=False)
    _elsewhere: Callable[[], Tensor] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self._version = self._tensor._version if self._tensor is not None else 0

    def value(self, owner: str) -> Tensor:
        """Bring it back.

        Args:
            owner: The unit that was given it, for messages.

        Returns:
            Its numbers as they were, on the device of the computation.

        Raises:
            GradfixError: if the model has written into it since.
        """
        if self._tensor is None:
            assert self._elsewhere is not None
            return self._elsewhere().requires_grad_(self.edge is not None)
        if self._tensor._version != self._version:
            raise GradfixError(
                f"{owner}: the model writes into an input of this block after it has run, so it can't be run again; "
                "give --memory a size that the model fits in"
            )
        return self._tensor


class KeptInputs:
    """What the calls of some passes were given, each tensor once."""

    def __init__(self, room: Room) -> None:
        """Prepare.

        Args:
            room: How much may be kept where.
        """
        self._room = room
        self._known: weakref.WeakValueDictionary[tuple[int, int], Kept] = weakref.WeakValueDictionary()
        self._on_device = self._on_host = 0
        self.scratch: Scratch | None = None

    def keep(self, tensor: Tensor) -> Kept:
        """Keep a tensor for as long as the result lives.

        Args:
            tensor: As a unit was given it.

        Returns:
            The same for the same tensor.
        """
        edge = get_gradient_edge(tensor) if tensor.requires_grad else None
        # What is kept holds the tensor, or its place in the graph, so that neither number is given to another one.
        key = (id(tensor), -1) if edge is None else (id(edge.node), edge.output_nr)
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = self._new(tensor, edge)
        return known

    def close(self) -> None:
        """Give the file's room back."""
        if self.scratch is not None:
            self.scratch.close()

    def _new(self, tensor: Tensor, edge: GradientEdge | None) -> Kept:
        size = tensor.nbytes
        if edge is None or size < SMALLEST:
            return Kept(edge, tensor)
        room, device = self._room, tensor.device
        if room.device is None or self._on_device + size <= room.device:
            self._on_device += size
            return self._counted(Kept(edge, tensor), "_on_device", size)
        if device.type != "cpu" and (room.host is None or self._on_host + size <= room.host):
            there = tensor.detach().cpu()
            self._on_host += size
            return self._counted(Kept(edge, None, lambda: there.to(device)), "_on_host", size)
        scratch = self.scratch = self.scratch or Scratch(room.folder)
        start, shape, dtype = scratch.write(tensor), tensor.shape, tensor.dtype
        return Kept(edge, None, lambda: scratch.read(start, shape, dtype).to(device))

    def _counted(self, kept: Kept, where: str, size: int) -> Kept:
        weakref.finalize(kept, self._left, where, size).atexit = False
        return kept

    def _left(self, where: str, size: int) -> None:
        setattr(self, where, getattr(self, where) - size)


class KeptProducts:
    """What products in blocks gave, in a file that the system has in its cache.

    Reading a number there takes a fraction of the thousands of operations that it is computed by.
    """

    def __init__(self, room: Room) -> None:
        """Prepare.

        Args:
            room: How much may be kept, and where.
        """
        self._left, self._folder = room.products, room.folder
        self._scratch: Scratch | None = None

    def keep(self, output: Tensor) -> Callable[[], Tensor] | None:
        """Put an output away.

        Args:
            output: On the host.

        Returns:
            What brings its numbers back; None where there is no room: it is to be computed again.
        """
        if output.nbytes > self._left:
            return None
        try:
            scratch = self._scratch = self._scratch or Scratch(self._folder)
            start = scratch.write(output)
        except (OSError, GradfixError):  # the disk is full sooner than it said
            self._left = 0
            return None
        self._left -= output.nbytes
        return partial(scratch.read, start, output.shape, output.dtype)

    def close(self) -> None:
        """Give the file's room back."""
        if self._scratch is not None:
            self._scratch.close()


def _bytes_of(tensor: Tensor) -> Tensor:
    return tensor.view(-1).view(torch.uint8)
