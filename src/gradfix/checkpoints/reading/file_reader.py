"""Files read at positions: no map that a truncation could turn into a SIGBUS, no shared offset to lock."""

import os
import stat
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from gradfix.checkpoints.reading.reuse import empty
from gradfix.errors import GradfixError

READERS = 4
"""Threads that read one tensor together, at most: the copy out of the system's cache is bound by the processor."""

READ_BYTES = 4 << 20
"""What each of them reads at least."""


class PositionedFile:
    """A regular file, open for reading ranges of bytes from any thread.

    It stays open, so that what is read is of the file that was checked, also if its name is replaced.

    Attributes:
        path: The file as it was named.
        size: Its size in bytes when opened.
    """

    def __init__(self, path: Path) -> None:
        """Open the file.

        Args:
            path: A regular file, or a symbolic link to one (the Hub's cache is made of those).

        Raises:
            GradfixError: If it is absent, unreadable or no regular file.
        """
        self.path = path
        try:
            # O_NONBLOCK: opening a FIFO that nobody writes would otherwise hang before it could be refused
            self._descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            raise GradfixError(f"{path}: no such file: check the path, or download it again") from None
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise GradfixError(f"{path}: cannot be opened ({reason}): check its permissions") from None
        weakref.finalize(self, os.close, self._descriptor)
        status = os.fstat(self._descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise GradfixError(f"{path}: is not a regular file: give the path of a file with weights")
        self.size = status.st_size

    def current_size(self) -> int:
        """The size of the file in bytes as it is now."""
        return os.fstat(self._descriptor).st_size

    def cut(self, what: str) -> GradfixError:
        """Word the error of a file that lost bytes after it was opened.

        Args:
            what: What was being read.

        Returns:
            The error, to raise.
        """
        return GradfixError(
            f"{self.path}: {what}: the file was cut while it was read: expected {self.size} bytes, found "
            f"{self.current_size()}: let whatever writes it finish, then start again"
        )

    def read_bytes(self, start: int, length: int) -> bytes:
        """Read a few bytes, fewer than asked at the end of the file.

        Args:
            start: Offset of the first.
            length: How many.

        Returns:
            The bytes.

        Raises:
            GradfixError: If the device fails.
        """
        try:
            return os.pread(self._descriptor, length, start)
        except OSError as error:
            raise GradfixError(f"{self.path}: cannot be read ({error.strerror}): check the disk") from None

    def expect(self, start: int, length: int) -> bool:
        """Have the system read a range into its cache, without waiting for it.

        Args:
            start: Offset of the first byte.
            length: How many.

        Returns:
            Whether the system can be told so.
        """
        if not hasattr(os, "posix_fadvise"):
            return False
        os.posix_fadvise(self._descriptor, start, length, os.POSIX_FADV_WILLNEED)
        return True

    def read_into(self, target: Tensor, start: int, what: str) -> None:
        """Fill a buffer from a position.

        Args:
            target: A contiguous uint8 tensor on the CPU, shape ``[bytes]``.
            start: Offset of the first byte.
            what: What is read, for messages.

        Raises:
            GradfixError: If the file ends before, as it does when it was cut after it was opened.
        """
        view = target.numpy().data
        parts = min(READERS, torch.get_num_threads(), len(view) // READ_BYTES)
        if parts <= 1:
            self._fill(view, start, what)
            return
        size = -(-len(view) // parts)
        with ThreadPoolExecutor(parts - 1, "gradfix-reader") as readers:
            begun = [
                readers.submit(self._fill, view[at : at + size], start + at, what)
                for at in range(size, len(view), size)
            ]
            self._fill(view[:size], start, what)
        for each in begun:
            each.result()

    def _fill(self, view: memoryview, start: int, what: str) -> None:
        done = 0
        while done < len(view):
            try:
                count = os.preadv(self._descriptor, [view[done:]], start + done)
            except OSError as error:
                raise GradfixError(
                    f"{self.path}: {what}: cannot be read ({error.strerror}): check the disk"
                ) from None
            if count == 0:
                raise self.cut(what)
            done += count


def allocate(dtype: torch.dtype, shape: tuple[int, ...], out: Tensor | None) -> tuple[Tensor, Tensor]:
    """Find memory for a tensor, in a reusable buffer if one is given.

    Fresh memory costs more than the copy from the page cache: each of its pages faults once.

    Args:
        dtype: Element type wanted.
        shape: Shape wanted.
        out: A contiguous uint8 CPU tensor, shape ``[bytes]``, at least as long as needed; None to allocate.

    Returns:
        The tensor, and its memory as uint8, shape ``[bytes]``.

    Raises:
        ValueError: If ``out`` is of another kind or too short.
    """
    nbytes = dtype.itemsize
    for length in shape:
        nbytes *= length
    if out is None:
        memory = empty(nbytes)
    else:
        if out.dtype != torch.uint8 or out.ndim != 1 or not out.is_contiguous() or out.device.type != "cpu":
            raise ValueError(f"out must be a contiguous uint8 CPU vector, got {out.dtype} {tuple(out.shape)}")
        if out.numel() < nbytes:
            raise ValueError(f"out holds {out.numel()} bytes, {nbytes} are needed")
        memory = out[:nbytes]
    tensor: Tensor = memory.view(dtype)
    return tensor.view(shape), memory


def row_range(shape: tuple[int, ...], rows: slice | None) -> tuple[int, int]:
    """Resolve a range of rows as Python's slicing does.

    Args:
        shape: Shape of the whole tensor.
        rows: Range of the first dimension with step 1; None for all.

    Returns:
        First row, and one past the last; ``(0, 1)`` for a scalar.

    Raises:
        ValueError: If the range has a step, or rows are asked of a scalar.
    """
    if not shape:
        if rows is not None:
            raise ValueError("a scalar has no rows")
        return 0, 1
    if rows is None:
        return 0, shape[0]
    start, stop, step = rows.indices(shape[0])
    if step != 1:
        raise ValueError(f"rows must be a contiguous range, got step {step}")
    return start, max(start, stop)
