"""The stored checkpoints: what they are, whether they are whole, and how they become model directories.

Each is one safetensors file in half precision, packed (:mod:`.packing`) beside this module. Of a tuned model only the
image tower is stored, which is all that fine-tuning changes; the rest comes from its base. The wheel has those that the
demo and the documentation use; the others are for the studies beside the package.
"""

import hashlib
import json
import os
import shutil
import tempfile
from functools import cache
from lzma import LZMAError
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as parse_safetensors
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPModel

from gradfix.demo.models import ModelSize, is_image_tower, new_model, save_directory
from gradfix.demo.packing import unpack
from gradfix.errors import GradfixError

CHECKPOINTS = Path(__file__).parent / "checkpoints"
PROVENANCE = "provenance.json"
PACKED = ".packed"


@cache
def provenance() -> dict[str, Any]:
    """Read how the stored checkpoints were made.

    Returns:
        The command and the data, and under ``"checkpoints"`` each file's SHA-256, base, task, size, seed, schedule,
        versions and measured accuracies.
    """
    facts: dict[str, Any] = json.loads((CHECKPOINTS / PROVENANCE).read_text(encoding="utf-8"))
    return facts


def names() -> tuple[str, ...]:
    """List the stored checkpoints.

    Returns:
        The bases ``A``, ``B``, ``B-next`` and, of other sizes, ``wider``, ``deeper``, ``smaller``; the tuned ones,
        each named ``<base>-<task>``.
    """
    return tuple(provenance()["checkpoints"])


def load_model(name: str) -> CLIPModel:
    """Load a stored checkpoint into memory.

    Args:
        name: One of :func:`names`.

    Returns:
        The model in float32, whose values are exactly the stored half-precision ones, in evaluation mode.

    Raises:
        GradfixError: If there is no such checkpoint, or its file is damaged.
    """
    entries = provenance()["checkpoints"]
    if name not in entries:
        raise GradfixError(f"lab checkpoint {name!r}: expected one of {', '.join(entries)}")
    base = entries[name]["base"] if entries[name]["task"] else None
    tensors = _verified(name) if base is None else {**_verified(base), **_verified(name)}
    model = new_model(ModelSize(**entries[name]["size"]), seed=0)
    model.load_state_dict({key: value.float() for key, value in tensors.items()})
    return model.eval()


def load(name: str, directory: str | os.PathLike[str] | None = None) -> Path:
    """Unpack a stored checkpoint into a Hugging Face model directory, unless it already is.

    Args:
        name: One of :func:`names`.
        directory: Where to; it must not exist yet. By default a folder of the user's cache that is named by
            the stored content's hash and used again by the next call.

    Returns:
        A directory that ``CLIPModel``, ``AutoTokenizer`` and ``AutoImageProcessor`` load: weights in float32
        whose values are exactly the stored half-precision ones.

    Raises:
        GradfixError: If there is no such checkpoint, its file is damaged, or ``directory`` exists.
        OSError: If the directory cannot be written.
    """
    if directory is not None:
        target = Path(directory)
        if target.exists():
            raise GradfixError(f"{target}: expected a directory that does not exist yet; give another one")
    else:
        cache_root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        target = cache_root / "gradfix" / "lab" / _identity() / name
        if target.is_dir():
            return target
    model = load_model(name)
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        save_directory(model, unfinished)
        unfinished.chmod(0o755)
        unfinished.rename(target)
    except OSError:
        # Another process may have put the same content there first, and that is as good.
        if directory is not None or not target.is_dir():
            raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return target


def write_checkpoint(model: CLIPModel, path: Path, *, tuned: bool) -> str:
    """Store a model in half precision.

    Args:
        model: The model.
        path: The file to write.
        tuned: Store the image tower only.

    Returns:
        The SHA-256 of the file.
    """
    state: dict[str, Tensor] = model.state_dict()
    kept = {
        key: value.to(torch.float16).contiguous()
        for key, value in state.items()
        if not tuned or is_image_tower(key)
    }
    save_file(kept, path, metadata={"format": "pt"})
    return hashlib.sha256(path.read_bytes()).hexdigest()


def stored(name: str) -> bytes:
    """Read a stored checkpoint, and check its bytes.

    Args:
        name: One of :func:`names`.

    Returns:
        A safetensors file of float16 tensors.

    Raises:
        GradfixError: if its file is damaged, or not in the installed package.
    """
    entry = provenance()["checkpoints"][name]
    path = CHECKPOINTS / f"{name}{PACKED}"
    if not path.exists():
        raise GradfixError(f"{path}: is not in the installed package; it is in gradfix's source repository")
    base = None if entry["base"] is None else stored(entry["base"])
    try:
        content = unpack(path.read_bytes(), base)
    except (LZMAError, ValueError, EOFError):
        content = b""
    found = hashlib.sha256(content).hexdigest()
    if found != entry["sha256"]:
        raise GradfixError(
            f"{path}: expected SHA-256 {entry['sha256'][:12]}… unpacked, found {found[:12]}…; the file is damaged, "
            "install gradfix again"
        )
    return content


def _verified(name: str) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = parse_safetensors(stored(name))
    return tensors


@cache
def _identity() -> str:
    """Twelve hexadecimal digits that change with any stored checkpoint."""
    return hashlib.sha256((CHECKPOINTS / PROVENANCE).read_bytes()).hexdigest()[:12]
