"""The files of a checkpoint that hold no weights."""

import hashlib
import os
import stat
from collections.abc import Callable, Collection, Iterator
from pathlib import Path, PurePosixPath

from gradfix.checkpoints.files import create_file, explain_os_errors, sync_directory, write_at
from gradfix.errors import GradfixError

_PIECE = 1 << 20


def add_extra_file(
    directory: Path, relative: str, content: bytes | Path, taken: Collection[str], remedy: Callable[[], str]
) -> str:
    """Write a file below a directory and wait until the disk has it.

    Args:
        directory: Nobody else writes into it.
        relative: Path inside it, with ``/``.
        content: Its bytes, or a file to copy; links are followed: the Hub's cache has them.
        taken: Paths that exist or will.
        remedy: Tells what to do about an error of the disk.

    Returns:
        SHA-256 of the content.

    Raises:
        GradfixError: A path that leaves the directory or is taken, or a file that can't be read or written.
    """
    inside = PurePosixPath(relative)
    if (
        inside.is_absolute()
        or not inside.parts
        or ".." in inside.parts
        or "\\" in relative
        or "\0" in relative
    ):
        raise GradfixError(f"{relative!r}: not a path inside {directory}; give a relative path without '..'")
    if str(inside) != relative or relative in taken:
        raise GradfixError(f"{directory}: {relative} is taken or not a plain path; add each file once")
    path = directory / inside
    pieces = _read(content, relative) if isinstance(content, Path) else iter((content,))
    digest = hashlib.sha256()
    with explain_os_errors(path, remedy):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = create_file(path)
        try:
            offset = 0
            for piece in pieces:
                digest.update(piece)
                write_at(descriptor, memoryview(piece), offset)
                offset += len(piece)
            os.fsync(descriptor)
        except BaseException:
            path.unlink()
            raise
        finally:
            os.close(descriptor)
        for parent in path.parents:
            if parent == directory:
                break  # synced with the manifest
            sync_directory(parent)
    return digest.hexdigest()


def _read(source: Path, relative: str) -> Iterator[bytes]:
    """Read a regular file; a FIFO or device, which could wait forever, is refused."""
    try:
        descriptor = os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise GradfixError(
            f"{source}: cannot be read: {error.strerror}; it is needed as {relative}"
        ) from error
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise GradfixError(f"{source}: is not a regular file; it is needed as {relative}")
        while piece := file.read(_PIECE):
            yield piece
