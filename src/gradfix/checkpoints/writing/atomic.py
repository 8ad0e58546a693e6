"""The renames that make an output appear whole or not at all."""

import ctypes
import errno
import os
import shutil
import stat
from collections.abc import Mapping
from pathlib import Path

from gradfix.checkpoints.files import (
    UNSUPPORTED,
    explain_os_errors,
    libc_function,
    replace_file,
    resolve_output,
    sync_directory,
    unique_sibling,
    write_file,
)
from gradfix.checkpoints.writing.lock import OutputLock
from gradfix.errors import GradfixError

_AT_FDCWD = -100


_RENAME_NOREPLACE = 1


_RENAME_EXCHANGE = 2


def publish(source: Path, target: Path) -> None:
    """Rename without ever replacing, and wait until the disk has it.

    Args:
        source: The finished file or directory.
        target: Its final path on the same file system.

    Raises:
        FileExistsError: The target exists; both are as they were.
    """
    if not _renameat2(source, target, _RENAME_NOREPLACE):
        _publish_without_renameat2(source, target)
    sync_directory(target.parent)


def _publish_without_renameat2(source: Path, target: Path) -> None:
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
    if stat.S_ISDIR(source.lstat().st_mode):
        # POSIX rename puts a directory over an EMPTY directory at most, so a run that was faster is safe.
        try:
            os.rename(source, target)
        except OSError as error:
            if error.errno in {errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR}:
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from error
            raise
        return
    try:
        os.link(source, target)  # fails when the target exists, in one step
    except OSError as error:
        if error.errno not in UNSUPPORTED | {errno.EPERM}:
            raise
        os.rename(source, target)  # no links here (FAT): the check above is all there is
    else:
        os.unlink(source)


def exchange(source: Path, target: Path) -> None:
    """Put a finished directory in the place of an earlier one, which is moved to ``<target>.replaced-…``.

    Where the system can, the two are exchanged in one step; else the earlier one is moved aside first, and
    back if the second step fails.

    Args:
        source: The finished directory.
        target: The final path; may be missing.

    Raises:
        OSError: As the system reports; the earlier directory has its name.
    """
    aside = unique_sibling(target, "replaced")
    if not os.path.lexists(target):
        publish(source, target)
    elif _renameat2(source, target, _RENAME_EXCHANGE):
        os.rename(source, aside)
    else:
        os.rename(target, aside)
        try:
            publish(source, target)
        except OSError:
            os.rename(aside, target)
            raise
    sync_directory(target.parent)


def refuse_existing(output: Path, overwrite: bool) -> None:
    """Refuse an output path that is taken.

    Args:
        output: Absolute path of a directory to be.
        overwrite: Allow a directory that holds a checkpoint, or nothing. Anything else is refused even so:
            a mistyped path must not delete somebody's files.

    Raises:
        GradfixError: The path exists and may not be replaced.
    """
    if not os.path.lexists(output):
        return
    if not overwrite:
        raise GradfixError(f"{output}: exists already; replace it with --overwrite or choose another output")
    if output.is_symlink() or not output.is_dir():
        raise GradfixError(f"{output}: is not a directory, so it is not replaced; choose another output")
    names = os.listdir(output)
    if names and "config.json" not in names and not any(name.endswith(".safetensors") for name in names):
        raise GradfixError(
            f"{output}: holds neither config.json nor .safetensors files, so it is not replaced; "
            f"choose another output or empty it"
        )


def _renameat2(source: Path, target: Path, flags: int) -> bool:
    """Call renameat2(2); False where kernel, C library or file system don't have it."""
    function = libc_function(
        "renameat2", ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint
    )
    if function is None:
        return False
    if function(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), flags) == 0:
        return True
    code = ctypes.get_errno()
    if code in UNSUPPORTED:
        return False
    raise OSError(code, os.strerror(code), str(source), None, str(target))


def refuse_taken(output: Path, *, overwrite: bool) -> None:
    """Refuse an output that can't be made, or is there already, whatever it is, before anything long starts.

    Args:
        output: Where the result will go.
        overwrite: It may be there.

    Raises:
        GradfixError: if it is there and may not be, or its parent is missing.
    """
    output = resolve_output(output)
    if output.exists() and not overwrite:
        raise GradfixError(f"{output}: exists already; choose another output or give --overwrite")


def write_folder(output: Path, files: Mapping[str, str | bytes], *, overwrite: bool = False) -> None:
    """Write files into a folder.

    Args:
        output: The folder; its parent exists. A new one appears whole; in an existing one each file is replaced in
            one step, and other files stay.
        files: Contents by name.
        overwrite: Allow an existing folder.

    Raises:
        GradfixError: if the folder exists and may not be changed, another run writes it, or it can't be written.
    """
    output = resolve_output(output)
    contents = {name: text.encode() if isinstance(text, str) else text for name, text in files.items()}
    refuse_taken(output, overwrite=overwrite)
    with OutputLock(output), explain_os_errors(output, "choose a folder you may write to"):
        if output.exists():
            for name, content in contents.items():
                replace_file(output / name, content)
            return
        partial = unique_sibling(output, "partial")
        partial.mkdir()
        try:
            for name, content in contents.items():
                write_file(partial / name, content)
            publish(partial, output)
        finally:
            shutil.rmtree(partial, ignore_errors=True)  # gone by now if all went well
