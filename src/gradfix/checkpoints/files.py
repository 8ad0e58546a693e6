"""Files written so that a short write, a full disk or a power cut is noticed and named."""

import ctypes
import errno
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from gradfix.errors import GradfixError

_SYNC_FILE_RANGE_WRITE = 2
# What a kernel, C library or file system answers that lacks an operation.
UNSUPPORTED = frozenset({errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP})


def unique_sibling(output: Path, purpose: str) -> Path:
    """Name a file or directory beside an output that no other run will use.

    Args:
        output: The final path.
        purpose: Readable part of the name, such as ``partial``.

    Returns:
        ``<output>.<purpose>-<8 hexadecimal digits>``.
    """
    return output.with_name(f"{output.name}.{purpose}-{secrets.token_hex(4)}")


def resolve_output(path: Path) -> Path:
    """Make an output path absolute, with its parent's symbolic links resolved and its own name kept.

    Args:
        path: As the user gave it.

    Returns:
        The path to work with, whatever the working directory becomes.

    Raises:
        GradfixError: The parent is missing or no directory, or the path has no name of its own.
    """
    if path.name in {"", ".."}:
        raise GradfixError(f"{path}: not a name for an output; give a path that ends in a new name")
    try:
        parent = path.parent.resolve(strict=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links, before Python 3.13
        raise GradfixError(f"{path}: the directory {path.parent} doesn't exist; create it first") from error
    if not parent.is_dir():
        raise GradfixError(f"{path}: {parent} is not a directory; choose another output")
    return parent / path.name


@contextmanager
def explain_os_errors(path: Path, remedy: str | Callable[[], str]) -> Iterator[None]:
    """Turn what the operating system refuses into one line that says what to do.

    Args:
        path: What was being written.
        remedy: The next step for the user, or a function that knows it when the error is there.

    Yields:
        Nothing.

    Raises:
        GradfixError: For any `OSError` inside.
    """
    try:
        yield
    except OSError as error:
        advice = remedy if isinstance(remedy, str) else remedy()
        raise GradfixError(f"{path}: {describe(error, path)}; {advice}") from error


def describe(error: OSError, path: Path) -> str:
    """Say in words why writing failed.

    Args:
        error: From the operating system.
        path: What was being written.

    Returns:
        The system's own text and code, with the free bytes if space is the matter.
    """
    code = errno.errorcode.get(error.errno or 0, "no error code")
    text = f"cannot write: {error.strerror or error} ({code})"
    if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
        text += f", {free_bytes(path)} bytes free"
    return text


def free_bytes(path: Path) -> int:
    """Space that an ordinary user may still fill.

    Args:
        path: A path on the file system; the nearest parent that exists is asked.

    Returns:
        Bytes; 0 where the system doesn't tell.
    """
    for place in (path, *path.parents):
        try:
            return shutil.disk_usage(place).free
        except OSError:
            continue
    return 0


def check_space(output: Path, needed: int) -> None:
    """Refuse an output that can't fit, before anything is written.

    Args:
        output: Absolute path; its parent exists.
        needed: Bytes still to be written.

    Raises:
        GradfixError: The file system has less free space.
    """
    free = free_bytes(output.parent)
    if needed > free:
        raise GradfixError(
            f"{output}: {needed} bytes needed, {free} free in {output.parent}; "
            f"free {needed - free} bytes or choose an output on another disk"
        )


def create_file(path: Path) -> int:
    """Create a new file with the permissions of the umask.

    Args:
        path: Must not exist, not even as a dangling link.

    Returns:
        A descriptor open for writing.
    """
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)


def write_at(descriptor: int, data: memoryview, offset: int) -> None:
    """Write all of ``data``, of which the system may take a part only, as just before a disk is full.

    Args:
        descriptor: Open for writing.
        data: Contiguous bytes.
        offset: Position in the file.

    Raises:
        OSError: As the system reports.
    """
    while data:
        written = os.pwrite(descriptor, data, offset)
        if written == 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        data, offset = data[written:], offset + written


def write_file(path: Path, content: bytes) -> None:
    """Create a small file and wait until the disk has it.

    Args:
        path: Must not exist.
        content: All of it.
    """
    descriptor = create_file(path)
    try:
        write_at(descriptor, memoryview(content), 0)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_file(path: Path, content: bytes) -> None:
    """Replace a small file so that a reader sees the old or the new content, never a mixture.

    Args:
        path: May exist.
        content: All of it.
    """
    temporary = unique_sibling(path, "new")
    try:
        write_file(temporary, content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_directory(path.parent)


def refuse_inside(output: Path, inputs: Iterable[str | os.PathLike[str]]) -> None:
    """Refuse an output that is an input, lies inside of one, or has one inside: replacing it would delete what is read.

    Args:
        output: Where something is to be written; it may be there or not.
        inputs: What is read. What is no local path (a Hub id) is passed over.

    Raises:
        GradfixError: Naming the input.
    """
    target = Path(os.path.realpath(output))
    for given in inputs:
        source = Path(os.path.realpath(given))
        if not os.path.lexists(source):
            continue
        if target == source:
            relation = "is the input itself"
        elif source.is_dir() and target.is_relative_to(source):
            relation = f"lies inside the input {given}"
        elif target.is_dir() and source.is_relative_to(target):
            relation = f"holds the input {given}"
        else:
            continue
        raise GradfixError(
            f"{output}: {relation}: nothing is written over what is read; choose another output"
        )


def sync_directory(path: Path) -> None:
    """Wait until the disk has a directory's entries.

    Args:
        path: The directory.

    Raises:
        OSError: As the system reports.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in UNSUPPORTED:  # some network file systems sync entries by themselves
            raise
    finally:
        os.close(descriptor)


def start_writeback(descriptor: int, offset: int, length: int) -> None:
    """Ask the system to begin sending a range to the disk, without waiting.

    The final fsync then finds little left to do. A hint: where the system has no such call, nothing happens.

    Args:
        descriptor: Open for writing.
        offset: First byte of the range.
        length: Bytes.
    """
    function = libc_function("sync_file_range", ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    if function is not None:
        function(descriptor, offset, length, _SYNC_FILE_RANGE_WRITE)


@cache
def libc_function(name: str, *arguments: Any) -> Any:
    """Find a C function that Python doesn't offer.

    Args:
        name: Its name.
        arguments: Its argument types; it returns an int.

    Returns:
        The function, or None where the C library lacks it.
    """
    function = getattr(ctypes.CDLL(None, use_errno=True), name, None)
    if function is not None:
        function.argtypes = arguments
        function.restype = ctypes.c_int
    return function
