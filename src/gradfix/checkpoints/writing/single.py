"""Single files: safetensors written as they are computed (votes, task vectors), and small ones of text."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch

from gradfix.checkpoints.files import (
    check_space,
    explain_os_errors,
    resolve_output,
    sync_directory,
    unique_sibling,
    write_file,
)
from gradfix.checkpoints.tensors import TensorSpec
from gradfix.checkpoints.writing.atomic import publish
from gradfix.checkpoints.writing.background import Background, HashingFile, checked_blocks
from gradfix.checkpoints.writing.layout import file_layout
from gradfix.checkpoints.writing.lock import OutputLock
from gradfix.errors import GradfixError


def write_safetensors(
    path: Path,
    specs: Mapping[str, TensorSpec],
    blocks: Callable[[str], Iterable[torch.Tensor]],
    metadata: Mapping[str, str],
    *,
    overwrite: bool = False,
    lasting: bool = True,
) -> None:
    """Write one safetensors file that has its name only when it is whole and on the disk.

    Args:
        path: The file to be; its directory exists.
        specs: Dtype and shape of each tensor, in the order of writing.
        blocks: Gives a tensor's rows in order, each block ``[rows, *shape[1:]]``; a scalar is one block. The
            writer keeps a block until it is on its way to the disk, so it must not be changed afterwards.
        metadata: Free text for the header.
        overwrite: Replace an existing file, at the end and in one step.
        lasting: False for a file that nobody needs after this process: it need not reach the disk.

    Raises:
        GradfixError: The file exists, or another run is writing it; no such directory, no permission or no space;
            blocks that don't make up their tensor. Nothing is left behind then.
    """
    with claimed(Path(path), overwrite=overwrite) as target:
        _write(target, specs, blocks, metadata, overwrite=overwrite, lasting=lasting)


def _write(
    target: Path,
    specs: Mapping[str, TensorSpec],
    blocks: Callable[[str], Iterable[torch.Tensor]],
    metadata: Mapping[str, str],
    *,
    overwrite: bool,
    lasting: bool,
) -> None:
    layout = file_layout(target.name, specs, metadata)
    check_space(target, layout.size)
    temporary = unique_sibling(target, "partial")
    remedy = "nothing was written under this name; run again when that is solved"
    background = Background()
    file = None
    try:
        with explain_os_errors(target, remedy):
            file = HashingFile(temporary, layout.header, lasting=lasting)
            for name, spec in specs.items():
                offset = layout.offsets[name]
                for data in checked_blocks(str(target), name, spec, blocks(name)):
                    background.submit(partial(file.append, data, offset), len(data))
                    offset += len(data)
            background.drain()
            if lasting:
                file.sync()
                _place(temporary, target, overwrite)
            else:
                os.replace(temporary, target)
    finally:
        background.stop()
        if file is not None:
            file.close()
        temporary.unlink(missing_ok=True)


@contextmanager
def claimed(path: Path, *, overwrite: bool) -> Iterator[Path]:
    """Keep a single file to be for one run, from before its content is computed until it is written.

    Args:
        path: As the user gave it.
        overwrite: Replace a file that is there.

    Yields:
        The absolute path.

    Raises:
        GradfixError: There is no such directory; the path is a directory, or a file that may not be replaced; another
            run is writing it.
    """
    target = resolve_output(path)
    with OutputLock(target):
        if os.path.lexists(target):
            if not overwrite:
                raise GradfixError(
                    f"{target}: exists already; replace it with --overwrite or choose another output"
                )
            if target.is_symlink() or not target.is_file():
                raise GradfixError(f"{target}: is not a regular file; choose another output")
        yield target


def write_text(target: Path, text: str, *, overwrite: bool) -> None:
    """Write a small file that a user asked for, in one step.

    Args:
        target: Of :func:`claimed`.
        text: All of it.
        overwrite: As it was told.
    """
    temporary = unique_sibling(target, "new")
    with explain_os_errors(target, "choose an output in a directory you may write to"):
        try:
            write_file(temporary, text.encode())
            _place(temporary, target, overwrite)
        finally:
            temporary.unlink(missing_ok=True)


def _place(temporary: Path, target: Path, overwrite: bool) -> None:
    """Give a finished file its name."""
    if overwrite:
        os.replace(temporary, target)
        sync_directory(target.parent)
    else:
        publish(temporary, target)
