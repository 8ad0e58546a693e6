"""Where every byte of an output goes, fixed from dtypes and shapes before the first weight is read.

The format is that of https://github.com/huggingface/safetensors (a length, a JSON header,
the data); the names of shards and their index are those of ``transformers``.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass

from gradfix.checkpoints.reading.header import DTYPES, MAX_HEADER_BYTES
from gradfix.checkpoints.tensors import TensorSpec
from gradfix.errors import GradfixError

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class FileLayout:
    """One safetensors file before it has data.

    Attributes:
        file: Name inside the output directory.
        header: The bytes in front of the data, their length prefix included.
        offsets: Tensor name to the position of its first byte in the file, in the order of writing.
        size: Length of the whole file in bytes.
    """

    file: str
    header: bytes
    offsets: Mapping[str, int]
    size: int


def file_layout(file: str, specs: Mapping[str, TensorSpec], metadata: Mapping[str, str]) -> FileLayout:
    """Lay out one safetensors file.

    Data are ordered by element size, largest first and otherwise as in ``specs``, so that each tensor starts
    at a multiple of its element size: readers map the file and view it in place.

    Args:
        file: Name of the file.
        specs: Dtype and shape of each tensor.
        metadata: Free text for the header's ``__metadata__``.

    Returns:
        Header and offsets.

    Raises:
        GradfixError: A dtype or name that the format doesn't have, or a header longer than readers take.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    begins: dict[str, int] = {}
    end = 0
    for name in sorted(specs, key=lambda name: -specs[name].dtype.itemsize):
        spec = specs[name]
        if spec.dtype not in _DTYPE_NAMES:
            raise GradfixError(
                f"{file}: {name}: safetensors has no dtype {spec.dtype}; convert the tensor first"
            )
        if name == "__metadata__":
            raise GradfixError(f"{file}: '__metadata__' is reserved in safetensors; rename the tensor")
        begins[name], end = end, end + spec.nbytes
        header[name] = {
            "dtype": _DTYPE_NAMES[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": [begins[name], end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER_BYTES:
        raise GradfixError(
            f"{file}: header of {len(text)} bytes, the limit is {MAX_HEADER_BYTES}; use smaller shards"
        )
    prefix = len(text).to_bytes(8, "little") + text
    offsets = {name: len(prefix) + begins[name] for name in specs}
    return FileLayout(file, prefix, offsets, len(prefix) + end)


def plan_shards(
    specs: Mapping[str, TensorSpec], shard_size: int, metadata: Mapping[str, str], single: str = SINGLE_FILE
) -> list[FileLayout]:
    """Distribute tensors over files as ``transformers`` names them.

    Tensors are taken in order; a file is closed before the tensor that would make its data longer than
    ``shard_size``. A tensor longer than that has a file of its own.

    Args:
        specs: Dtype and shape of each tensor, in the order of writing.
        shard_size: Most bytes of data in one file.
        metadata: Free text for each header's ``__metadata__``.
        single: Name of the file when everything fits into one.

    Returns:
        The files in order.

    Raises:
        GradfixError: The shard size isn't positive, or as `file_layout`.
    """
    if shard_size < 1:
        raise GradfixError(f"shard_size is {shard_size}: expected a positive number of bytes")
    groups: list[dict[str, TensorSpec]] = [{}]
    filled = 0
    for name, spec in specs.items():
        if groups[-1] and filled + spec.nbytes > shard_size:
            groups.append({})
            filled = 0
        groups[-1][name] = spec
        filled += spec.nbytes
    if len(groups) == 1:
        return [file_layout(single, groups[0], metadata)]
    return [
        file_layout(f"model-{number:05d}-of-{len(groups):05d}.safetensors", group, metadata)
        for number, group in enumerate(groups, start=1)
    ]


def index_content(specs: Mapping[str, TensorSpec], shards: list[FileLayout]) -> bytes:
    """Write the index that tells readers which shard has which tensor.

    Args:
        specs: Dtype and shape of each tensor.
        shards: The files of `plan_shards`.

    Returns:
        JSON with ``weight_map`` and the total size of the data in bytes.
    """
    weight_map = {name: shard.file for shard in shards for name in shard.offsets}
    total = sum(spec.nbytes for spec in specs.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    return (json.dumps(index, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()
