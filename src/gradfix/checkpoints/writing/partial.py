"""The directories of unfinished runs: finding, taking over, checking and deleting them."""

import hashlib
import os
import re
import shutil
import stat
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from gradfix.checkpoints.files import explain_os_errors, unique_sibling
from gradfix.checkpoints.tensors import TensorSpec
from gradfix.checkpoints.writing.atomic import exchange, publish
from gradfix.checkpoints.writing.layout import FileLayout
from gradfix.checkpoints.writing.manifest import MANIFEST_FILE, Manifest, read_manifest
from gradfix.errors import GradfixError
from gradfix.progress import Progress

_PIECE = 1 << 20


def find_siblings(output: Path, purpose: str) -> list[Path]:
    """List the directories that `unique_sibling` named for an output.

    Args:
        output: Absolute path of the output.
        purpose: ``partial`` or ``replaced``.

    Returns:
        Directories named ``<output>.<purpose>-<8 hexadecimal digits>``, sorted; links are not followed.
    """
    pattern = re.compile(re.escape(f"{output.name}.{purpose}-") + "[0-9a-f]{8}")
    with os.scandir(output.parent) as entries:
        return sorted(
            Path(entry.path)
            for entry in entries
            if pattern.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False)
        )


def open_partial(output: Path, manifest: Manifest, resume: bool, restart: bool) -> Path:
    """Take over or make the directory to write into.

    Args:
        output: Absolute path of the output.
        manifest: Of this run; takes over shards and facts of the run that is continued.
        resume: Continue an unfinished run if there is one.
        restart: Delete unfinished runs first.

    Returns:
        A directory of this run only.

    Raises:
        GradfixError: There is an unfinished run and nothing was said about it, or it can't be continued.
    """
    partials = find_siblings(output, "partial")
    if restart:
        for directory in partials:
            discard(directory)
    elif resume:
        claimed = _claim(output, partials, manifest)
        if claimed is not None:
            directory, earlier = claimed
            manifest.shards, manifest.facts = earlier.shards, earlier.facts
            return directory
    elif partials:
        raise GradfixError(
            f"{partials[0]}: left by an unfinished run; continue with --resume or discard it with --restart"
        )
    directory = unique_sibling(output, "partial")
    directory.mkdir()
    return directory


def verify_shards(
    directory: Path,
    shards: Sequence[FileLayout],
    specs: Mapping[str, TensorSpec],
    manifest: Manifest,
    progress: Progress,
) -> None:
    """Forget the shards that are not as they were recorded, and delete all other files.

    Args:
        directory: The unfinished output.
        shards: What the output will consist of.
        specs: Dtype and shape of each tensor.
        manifest: Keeps the shards that are intact.
        progress: Told the bytes checked.
    """
    recorded = manifest.shards
    total = sum(shard.size for shard in shards if shard.file in recorded)
    checked = 0
    for shard in shards:
        if shard.file not in recorded:
            continue
        if not _intact(directory / shard.file, shard, specs, recorded[shard.file]):
            del recorded[shard.file]
            for name in shard.offsets:
                manifest.facts.pop(name, None)
        checked += shard.size
        progress("verifying what is done", checked, total, "bytes")
    keep_only_shards(directory, recorded)


def _claim(output: Path, partials: list[Path], expected: Manifest) -> tuple[Path, Manifest] | None:
    """Take over the furthest unfinished run that is made of the same; delete those without a shard."""
    usable: list[tuple[int, Path, Manifest]] = []
    refusal = None
    for partial in partials:
        manifest = read_manifest(partial)
        if manifest is None or not manifest.shards:
            discard(partial)
            continue
        difference = expected.difference(manifest)
        if difference is None:
            usable.append((len(manifest.shards), partial, manifest))
        else:
            refusal = (
                f"{partial}: the unfinished output is made of something else: {difference}; "
                f"run with those inputs again, or discard it with --restart"
            )
    if usable:
        _, partial, manifest = max(usable, key=lambda item: item[0])
        directory = unique_sibling(output, "partial")
        # A rename succeeds for one run only: should the former owner be alive in spite of the lock, its next
        # step fails instead of mixing with ours.
        with explain_os_errors(partial, "is another run continuing it? try again"):
            os.rename(partial, directory)
        return directory, manifest
    if refusal is not None:
        raise GradfixError(refusal)
    return None


def _intact(path: Path, layout: FileLayout, specs: Mapping[str, TensorSpec], hashes: dict[str, str]) -> bool:
    """Whether a shard's header, length and all data are as they were recorded."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if (
            not stat.S_ISREG(status.st_mode)
            or status.st_size != layout.size
            or set(hashes) != set(layout.offsets)
        ):
            return False
        if file.read(len(layout.header)) != layout.header:
            return False
        return all(
            _hash_range(descriptor, offset, specs[name].nbytes) == hashes[name]
            for name, offset in layout.offsets.items()
        )


def _hash_range(descriptor: int, offset: int, length: int) -> str:
    digest = hashlib.sha256()
    end = offset + length
    while offset < end:
        piece = os.pread(descriptor, min(_PIECE, end - offset), offset)
        if not piece:
            break
        digest.update(piece)
        offset += len(piece)
    return digest.hexdigest()


def keep_only_shards(directory: Path, shards: Collection[str]) -> None:
    """Delete from an unfinished output what isn't a verified shard or the manifest.

    Args:
        directory: The unfinished output.
        shards: File names to keep.
    """
    for entry in list(os.scandir(directory)):
        if entry.name in shards or entry.name == MANIFEST_FILE:
            continue
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path)
        else:
            os.unlink(entry.path)


def publish_partial(directory: Path, output: Path, overwrite: bool) -> None:
    """Give a finished directory its final name.

    Args:
        directory: Whole and on the disk.
        output: Absolute path of the output.
        overwrite: Replace what has that name, and delete it afterwards.

    Raises:
        GradfixError: Another run published first.
    """
    if overwrite:
        exchange(directory, output)
        for earlier in find_siblings(output, "replaced"):
            discard(earlier)
        return
    try:
        publish(directory, output)
    except FileExistsError as error:
        raise GradfixError(
            f"{output}: another run finished this output first, nothing was replaced; "
            f"replace it with --resume --overwrite, or discard {directory} with --restart"
        ) from error


def abandon_partial(directory: Path, shards: Collection[str]) -> Path | None:
    """After an exception, leave a directory to continue from, or nothing.

    Args:
        directory: The unfinished output.
        shards: Its verified shards.

    Returns:
        The directory if it stays.
    """
    with suppress(OSError):  # the error on its way tells more than a failure to tidy up after it
        if shards:
            keep_only_shards(directory, shards)
        else:
            shutil.rmtree(directory)
    return directory if directory.exists() else None


def discard(directory: Path) -> None:
    """Delete an unfinished or replaced output.

    Args:
        directory: A directory of gradfix's own naming.
    """
    with explain_os_errors(directory, "delete it by hand"):
        shutil.rmtree(directory)
