"""Half-precision safetensors files made small without loss: the bits by which one differs from its base, compressed."""

import json
import lzma
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load

Words = NDArray[np.uint16]
_LENGTH = 8  # bytes of the number before a safetensors header


def pack(content: bytes, base: bytes | None = None) -> bytes:
    """Make a file small.

    Args:
        content: A safetensors file of float16 tensors.
        base: Another one, with the same tensors and perhaps more; None for no base.

    Returns:
        What :func:`unpack` makes the same bytes of, given the same base.
    """
    header, words = _split(content)
    change = (words - _of_base(header, base)).view(np.int16)
    folded = ((change << 1) ^ (change >> 15)).view(
        np.uint8
    )  # small changes of both signs become small numbers
    planes = np.ascontiguousarray(folded.reshape(-1, 2).T)
    return lzma.compress(header + planes.tobytes(), preset=9 | lzma.PRESET_EXTREME)


def unpack(packed: bytes, base: bytes | None = None) -> bytes:
    """Make the file again.

    Args:
        packed: What :func:`pack` returned.
        base: The base it was given.

    Returns:
        The file's bytes.
    """
    content = lzma.decompress(packed)
    header = content[: _header_size(content)]
    planes = np.frombuffer(content, np.uint8, offset=len(header)).reshape(2, -1)
    folded = np.ascontiguousarray(planes.T).view(np.uint16).ravel()
    change = (folded >> 1) ^ (np.uint16(0) - (folded & 1))
    return header + (change + _of_base(header, base)).astype("<u2").tobytes()


def _header_size(content: bytes) -> int:
    return _LENGTH + int.from_bytes(content[:_LENGTH], "little")


def _split(content: bytes) -> tuple[bytes, Words]:
    size = _header_size(content)
    return content[:size], np.frombuffer(content, "<u2", offset=size)


def _of_base(header: bytes, base: bytes | None) -> Words:
    """The base's values of the tensors that a header names, in their order; zeros without a base."""
    entries: Mapping[str, Any] = json.loads(header[_LENGTH:])
    places = sorted(
        (entry["data_offsets"], name) for name, entry in entries.items() if name != "__metadata__"
    )
    if base is None:
        return np.zeros(places[-1][0][1] // 2, np.uint16)
    tensors = load(base)
    return np.concatenate([tensors[name].ravel().view(np.uint16) for _, name in places])
