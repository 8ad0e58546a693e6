"""Recognise a model by its weights: a few values of each tensor, hashed.

A fingerprint tells whether votes belong to the model they are applied to. It is no protection against
somebody who forges a model: it catches the wrong release, the wrong checkpoint step, the wrong file.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn

from gradfix.checkpoints.tensors import TensorSource, pick
from gradfix.errors import GradfixError
from gradfix.progress import Progress, silent

POSITIONS = 64
"""At most this many values of a tensor enter its fingerprint."""


CONTENT = "content"
"""The metadata entry with a file's own fingerprint."""


_READ_WHOLE = 4096
"""A stored tensor with no more elements than this is read in one piece."""


def tensor_fingerprint(tensor: Tensor) -> str:
    """Hash a tensor's shape and at most 64 of its values.

    The values stand at evenly strided positions of the flattened tensor and are rounded to bfloat16, so that
    the same weights held in float32, float64 or bfloat16 have one fingerprint. (float16 rounds elsewhere than
    bfloat16, so weights that went through it are taken for others.)

    Args:
        tensor: Of any shape and dtype, on any device.

    Returns:
        Sixteen hexadecimal digits.
    """
    flat = tensor.detach().reshape(-1)
    return _hash(tuple(tensor.shape), flat[_positions(flat.numel()).to(flat.device)])


def stored_fingerprint(source: TensorSource, name: str) -> str:
    """Hash a tensor on disk as :func:`tensor_fingerprint` does, reading only the values that enter, or their rows.

    Args:
        source: A checkpoint, or anything else with ``specs`` and ``read``; its ``pick`` is asked first if it has one.
        name: The tensor's name there.

    Returns:
        Sixteen hexadecimal digits.
    """
    spec = source.specs[name]
    if spec.numel <= _READ_WHOLE or not spec.shape:
        return tensor_fingerprint(source.read(name))
    positions = _positions(spec.numel).tolist()
    picked = pick(source, name, positions)
    return _hash(spec.shape, _read_rows(source, name, positions) if picked is None else picked)


def _read_rows(source: TensorSource, name: str, positions: Iterable[int]) -> Tensor:
    spec = source.specs[name]
    row_length = spec.numel // spec.shape[0]
    values, held, row_values = [], -1, torch.empty(0)
    for position in positions:
        row, column = divmod(position, row_length)
        if row != held:
            held, row_values = row, source.read(name, slice(row, row + 1)).reshape(-1)
        values.append(row_values[column])
    return torch.stack(values)


def fingerprints(target: nn.Module | TensorSource, names: Iterable[str] | None = None) -> dict[str, str]:
    """Fingerprint the tensors of a model in memory or on disk.

    Args:
        target: A module, of which parameters and buffers count, tied names included; or stored tensors.
        names: Which ones; those that ``target`` lacks are left out. Default: all it has.

    Returns:
        Name to fingerprint, in the order of ``names``.
    """
    if isinstance(target, nn.Module):
        tensors: dict[str, Tensor] = dict(target.named_parameters(remove_duplicate=False))
        tensors.update(target.named_buffers(remove_duplicate=False))
        chosen = list(tensors if names is None else (name for name in names if name in tensors))
        return {name: tensor_fingerprint(tensors[name]) for name in chosen}
    stored = list(target.specs if names is None else (name for name in names if name in target.specs))
    return {name: stored_fingerprint(target, name) for name in stored}


def combined_fingerprint(parts: Mapping[str, str]) -> str:
    """Hash the fingerprints of many tensors to one, whatever their order.

    Args:
        parts: Name to fingerprint.

    Returns:
        Sixteen hexadecimal digits.
    """
    lines = "\n".join(f"{name} {parts[name]}" for name in sorted(parts))
    return hashlib.sha256(lines.encode()).hexdigest()[:16]


def content_fingerprint(metadata: Mapping[str, str], source: TensorSource) -> str:
    """Hash what a file of tensors says of itself together with a few values of each tensor.

    It is kept in the file and compared when that is opened, so that an edited or mixed-up one is noticed.

    Args:
        metadata: The text entries of the header, without the fingerprint's own.
        source: The tensors as they are stored.

    Returns:
        Sixteen hexadecimal digits.
    """
    texts = {f"metadata {key}": hashlib.sha256(text.encode()).hexdigest() for key, text in metadata.items()}
    tensors = {f"tensor {name}": print_ for name, print_ in fingerprints(source).items()}
    return combined_fingerprint({**texts, **tensors})


def check_content(path: Path | str, metadata: Mapping[str, str], source: TensorSource, remedy: str) -> None:
    """Refuse a file whose metadata or tensors are not those it was written with.

    Args:
        path: The file, for messages.
        metadata: The text entries of its header.
        source: Its tensors.
        remedy: What to do about it.

    Raises:
        GradfixError: If the fingerprint is missing or another one.
    """
    rest = {key: text for key, text in metadata.items() if key != CONTENT}
    if metadata.get(CONTENT) != content_fingerprint(rest, source):
        raise GradfixError(
            f"{path}: {CONTENT}: its metadata or its tensors are not those that it was written with: {remedy}"
        )


@lru_cache(maxsize=256)  # a model has many tensors of few sizes
def _positions(numel: int) -> Tensor:
    """Flat positions that enter a fingerprint: at most 64, the first one 0, evenly strided."""
    count = min(numel, POSITIONS)
    return torch.arange(count) * numel // max(count, 1)


def _hash(shape: tuple[int, ...], values: Tensor) -> str:
    # Adding zero makes −0 a 0: arithmetic that leaves a weight alone may still turn its sign bit.
    rounded = values.to("cpu", torch.bfloat16) + 0.0
    digest = hashlib.sha256(repr(tuple(shape)).encode())
    digest.update(rounded.contiguous().view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:16]


_CHUNK = 1 << 22


def content_digest(files: Iterable[Path], progress: Progress = silent) -> str:
    """Identify the content of some files, whatever they are called and wherever they lie.

    Args:
        files: The files.
        progress: Called as files are hashed.

    Returns:
        SHA-256, in hexadecimal, of the sorted SHA-256 of the files.
    """
    paths = list(files)
    hashes = []
    for done, path in enumerate(paths):
        progress("hashing inputs", done, len(paths), "files")
        hashes.append(file_digest(path))
    progress("hashing inputs", len(paths), len(paths), "files")
    return hashlib.sha256("\n".join(sorted(hashes)).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """Hash one file, unless its hash is known.

    In the Hub's cache a large file is a link to a blob that is named by the SHA-256 of its content, which the
    Hub's library checked when it fetched it. Within a process, a file is hashed again only if it changed.

    Args:
        path: The file.

    Returns:
        SHA-256 in hexadecimal.

    Raises:
        GradfixError: If the file can't be read.
    """
    target = path.resolve()
    if target.parent.name == "blobs" and re.fullmatch(r"[0-9a-f]{64}", target.name):
        return target.name
    try:
        status = target.stat()
        return _hash_ranges(target, status.st_size, status.st_mtime_ns, status.st_ino)
    except OSError as error:
        raise GradfixError(f"{path}: cannot be hashed ({error.strerror}): check the file") from None


@lru_cache(maxsize=1024)
def _hash_ranges(path: Path, size: int, modified: int, inode: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
