"""Which content was read: hashes of files, for provenance."""

import hashlib
import re
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from gradfix.errors import GradfixError
from gradfix.progress import Progress, silent

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
        return _hash(target, status.st_size, status.st_mtime_ns, status.st_ino)
    except OSError as error:
        raise GradfixError(f"{path}: cannot be hashed ({error.strerror}): check the file") from None


@lru_cache(maxsize=1024)
def _hash(path: Path, size: int, modified: int, inode: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
