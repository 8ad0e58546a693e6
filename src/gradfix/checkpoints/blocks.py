"""From the blocks a caller computes to the bytes of a file, checked against what the header promised."""

from collections.abc import Iterable, Iterator

import torch

from gradfix.checkpoints.specs import TensorSpec
from gradfix.errors import GradfixError


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """View a tensor's data as bytes, without a copy when it is contiguous on the CPU.

    Args:
        tensor: Any shape and dtype. Files are little-endian, as is every platform torch is built for.

    Returns:
        Its elements in row-major order.
    """
    flat = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data  # bytes, as numpy has no bfloat16


def checked_blocks(
    where: str, name: str, spec: TensorSpec, blocks: Iterable[torch.Tensor]
) -> Iterator[memoryview]:
    """View consecutive blocks of rows as bytes and check that together they are the tensor.

    Args:
        where: File or directory that is written, for the messages.
        name: The tensor's name.
        spec: What its header says; a scalar is one block.
        blocks: Each ``[rows, *spec.shape[1:]]``, in order.

    Yields:
        The bytes of each block.

    Raises:
        GradfixError: A block of another dtype or shape, or too few or too many rows.
    """
    expected = spec.shape[0] if spec.shape else 1
    rows = 0
    for block in blocks:
        if block.dtype != spec.dtype:
            raise GradfixError(
                f"{where}: {name}: expected {spec.dtype}, got {block.dtype}; convert it before writing"
            )
        if block.dim() != len(spec.shape) or tuple(block.shape[1:]) != spec.shape[1:]:
            raise GradfixError(
                f"{where}: {name}: expected rows of shape {spec.shape}, got {tuple(block.shape)}"
            )
        rows += block.shape[0] if spec.shape else 1
        if rows > expected:
            raise GradfixError(f"{where}: {name}: expected {expected} rows, got at least {rows}")
        yield tensor_bytes(block)
    if rows < expected and spec.nbytes:
        raise GradfixError(f"{where}: {name}: expected {expected} rows, got {rows}")


def checked_bytes(
    where: str, name: str, spec: TensorSpec, chunks: Iterable[bytes | memoryview]
) -> Iterator[memoryview]:
    """Check that raw data are as long as the tensor.

    Args:
        where: File or directory that is written, for the messages.
        name: The tensor's name.
        spec: What its header says.
        chunks: Its bytes, in order.

    Yields:
        The chunks.

    Raises:
        GradfixError: Too few or too many bytes.
    """
    done = 0
    for chunk in chunks:
        view = memoryview(chunk).cast("B")
        done += len(view)
        if done > spec.nbytes:
            break
        yield view
    if done != spec.nbytes:
        raise GradfixError(f"{where}: {name}: expected {spec.nbytes} bytes, got {done}")
