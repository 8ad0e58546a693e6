"""The header of a safetensors file, parsed and checked before a byte of data is read.

The format (https://huggingface.co/docs/safetensors/index#format): eight bytes, little-endian, with the length
of the header; the header, JSON in UTF-8, mapping each tensor's name to its dtype, shape and byte range; the
data, which the ranges cover without overlap and without holes. The checks are gradfix's own because readers
in the field accept files that they should name as broken: duplicate keys, or an HTML page reported as a
header of 10¹⁸ bytes.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from gradfix.checkpoints.reading.json_files import parse_json_object
from gradfix.checkpoints.reading.recognition import is_pytorch, other_kind
from gradfix.checkpoints.tensors import TensorSpec
from gradfix.errors import GradfixError

MAX_HEADER_BYTES = 100_000_000
"""Longest header read; the same limit as the safetensors library's."""

MAX_ELEMENTS = 2**63 - 1

DTYPES: dict[str, torch.dtype] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "U16": torch.uint16,
    "I16": torch.int16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E8M0": torch.float8_e8m0fnu,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "C64": torch.complex64,
}
"""The dtypes of the format that torch has; packed ones of less than a byte an element are not among them."""


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies in its file.

    Attributes:
        spec: Dtype and shape.
        start: Offset of its first byte from the start of the FILE.
    """

    spec: TensorSpec
    start: int


@dataclass(frozen=True)
class Header:
    """What the header of a safetensors file says.

    Attributes:
        entries: Each tensor's place, in the order of the header.
        metadata: The free text stored with the tensors; empty if none is.
    """

    entries: dict[str, Entry]
    metadata: dict[str, str] = field(default_factory=dict)


def header_length(path: Path, start: bytes, size: int) -> int:
    """Check the first bytes of a file and tell how long its header is.

    Args:
        path: The file, for messages.
        start: Its first 64 bytes, or all it has.
        size: Its size in bytes.

    Returns:
        Length of the header in bytes, within the file.

    Raises:
        GradfixError: If the file is no safetensors file, or shorter than its header.
    """
    if size == 0:
        raise GradfixError(
            f"{path}: is empty (0 bytes), expected a safetensors file: download or write it again"
        )
    if (meaning := other_kind(start)) is not None:
        raise GradfixError(f"{path}: {meaning}")
    if is_pytorch(start):
        raise GradfixError(f"{path}: is a PyTorch file, expected a safetensors file: rename it to .pt")
    if size < 8 or len(start) < 8:
        raise GradfixError(
            f"{path}: is truncated: expected at least 8 bytes, found {size}: download or write it again"
        )
    length = int.from_bytes(start[:8], "little")
    if length > MAX_HEADER_BYTES:
        raise GradfixError(
            f"{path}: header too long: at most {MAX_HEADER_BYTES} bytes expected, {length} announced; "
            "this is no safetensors file or it is corrupt: download or write it again"
        )
    if 8 + length > size:
        raise GradfixError(
            f"{path}: is truncated: expected a header of {length} bytes, found {size - 8}: "
            "download or write it again"
        )
    return length


def parse_header(path: Path, header: bytes, size: int) -> Header:
    """Parse a header and check it against the size of its file.

    Args:
        path: The file, for messages.
        header: The header's bytes, without the eight that give their number.
        size: Size of the file in bytes.

    Returns:
        The header; each of its tensors lies inside the file and has the bytes its shape needs.

    Raises:
        GradfixError: If anything in it is not as the format demands.
    """
    entries_by_name = parse_json_object(path, header, "its header")
    metadata = _metadata(path, entries_by_name.pop("__metadata__", None))
    data_start = 8 + len(header)
    entries: dict[str, Entry] = {}
    ranges: list[tuple[int, int, str]] = []
    for name, value in entries_by_name.items():
        spec, begin, end = _entry(path, name, value)
        entries[name] = Entry(spec, data_start + begin)
        ranges.append((begin, end, name))
    _check_ranges(path, sorted(ranges), size - data_start)
    return Header(entries, metadata)


def _metadata(path: Path, value: object) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise GradfixError(f"{path}: __metadata__ in the header must map text to text: write the file again")
    return value


def _entry(path: Path, name: str, value: Any) -> tuple[TensorSpec, int, int]:
    def refuse(expected: str, found: object) -> GradfixError:
        shown = repr(found)
        shown = shown if len(shown) <= 80 else shown[:77] + "…"
        return GradfixError(
            f"{path}: tensor {name!r}: expected {expected}, found {shown}: the file is corrupt; "
            "download or write it again"
        )

    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise refuse(
            "exactly dtype, shape and data_offsets", sorted(value) if isinstance(value, dict) else value
        )
    stored, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(stored, str) or stored not in DTYPES:
        raise GradfixError(
            f"{path}: tensor {name!r}: dtype {str(stored)[:40]!r} is not one gradfix reads "
            f"({', '.join(DTYPES)}): convert the tensor"
        )
    if not _naturals(shape) or math.prod(length for length in shape if length) > MAX_ELEMENTS:
        raise refuse("a shape of integers ≥ 0 that torch can hold", shape)
    if not _naturals(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise refuse("data_offsets of two ascending integers ≥ 0", offsets)
    spec = TensorSpec(DTYPES[stored], tuple(shape))
    if offsets[1] - offsets[0] != spec.nbytes:
        raise refuse(
            f"{spec.nbytes} bytes for {stored} of shape {list(spec.shape)[:8]}", offsets[1] - offsets[0]
        )
    return spec, offsets[0], offsets[1]


def _naturals(value: object) -> bool:
    # bool is an int in Python, and JSON's true is no length
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _check_ranges(path: Path, ranges: list[tuple[int, int, str]], available: int) -> None:
    position = 0
    for begin, end, name in ranges:
        if begin != position:
            fault = "overlaps the tensor before it" if begin < position else "leaves a hole before it"
            raise GradfixError(
                f"{path}: tensor {name!r} {fault}: expected its data at offset {position}, found {begin}: "
                "the file is corrupt; download or write it again"
            )
        position = end
    if position > available:
        raise GradfixError(
            f"{path}: is truncated or its offsets are out of range: expected {position} bytes of data, found "
            f"{available}: download or write it again"
        )
    if position < available:
        raise GradfixError(
            f"{path}: has bytes that no tensor owns: expected {position} bytes of data, found {available}: "
            "the file is corrupt; download or write it again"
        )
