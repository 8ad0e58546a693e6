"""Batches: nestings of tuples, lists and mappings of tensors whose first dimension is the sample.

Index letters: ``n`` sample, ``N`` samples of a batch.
"""

import copy
import hashlib
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any, TypeAlias

import torch
from torch import Tensor

from gradfix.errors import GradfixError

Batch: TypeAlias = Any
"""A nesting of tuples, lists and mappings of tensors; what is none of these is handed on as it is."""


def map_tensors(batch: Batch, function: Callable[[Tensor], Tensor]) -> Batch:
    """Apply a function to every tensor of a nesting.

    Args:
        batch: The nesting. It is left as it was.
        function: Tensor to tensor.

    Returns:
        A nesting of the same types and keys.
    """
    if isinstance(batch, Tensor):
        return function(batch)
    if isinstance(batch, Mapping):
        items = {key: map_tensors(value, function) for key, value in batch.items()}
        if type(batch) is dict or not isinstance(batch, MutableMapping):
            return items
        rebuilt = copy.copy(batch)  # a BatchEncoding stays one, with its attributes
        for key, value in items.items():
            rebuilt[key] = value
        return rebuilt
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(map_tensors(value, function) for value in batch))
    if isinstance(batch, (list, tuple)):
        return type(batch)(map_tensors(value, function) for value in batch)
    return batch


def tensors_of(batch: Batch, path: str = "batch") -> Iterator[tuple[str, Tensor]]:
    """Walk the tensors of a nesting.

    Args:
        batch: The nesting.
        path: How to call the outermost level.

    Yields:
        Each tensor with the expression that leads to it, as in ``batch['input_ids']``.
    """
    if isinstance(batch, Tensor):
        yield path, batch
    elif isinstance(batch, Mapping):
        for key, value in batch.items():
            yield from tensors_of(value, f"{path}[{key!r}]")
    elif isinstance(batch, (list, tuple)):
        for index, value in enumerate(batch):
            yield from tensors_of(value, f"{path}[{index}]")


def batch_size(batch: Batch) -> int:
    """Count the samples of a batch.

    Args:
        batch: The nesting.

    Returns:
        N, the length of the first dimension that all tensors share.

    Raises:
        GradfixError: Where there is no tensor, or one has no first dimension or another length.
    """
    first: tuple[str, int] | None = None
    for path, tensor in tensors_of(batch):
        if tensor.ndim == 0:
            raise GradfixError(
                f"{path} is a scalar tensor, but a batch's tensors have the sample as their first dimension; "
                "pass it as a Python number or repeat it for each sample"
            )
        if first is None:
            first = path, len(tensor)
        elif len(tensor) != first[1]:
            raise GradfixError(
                f"{path} holds {len(tensor)} samples, {first[0]} holds {first[1]}: the first dimension of every "
                "tensor of a batch is the sample; bring them to one length"
            )
    if first is None:
        raise GradfixError(
            f"a batch of type {type(batch).__name__} holds no tensor; expected a nesting of tuples, lists and "
            "mappings of tensors"
        )
    return first[1]


def select(batch: Batch, samples: slice | list[int]) -> Batch:
    """Take samples out of a batch.

    Args:
        batch: The nesting.
        samples: Which ones.

    Returns:
        The same nesting: of views for a range, of copies for places.
    """
    return map_tensors(batch, lambda tensor: tensor[samples])


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Move a batch's tensors.

    Args:
        batch: The nesting.
        device: Where to.

    Returns:
        The same nesting on that device.
    """

    def moved(tensor: Tensor) -> Tensor:
        # made in inference mode, a tensor may not enter a graph
        return (tensor.clone() if tensor.is_inference() else tensor).to(device)

    return map_tensors(batch, moved)


def sample_fingerprints(batch: Batch) -> list[str]:
    """Hash what each sample's tensors hold.

    The names, dtypes and shapes enter with the values, so the same text padded to another length has another
    fingerprint: hand ids of your own to ``count_votes(samples=…)`` to recognise samples across batches.

    Args:
        batch: The nesting, of N samples.

    Returns:
        N times sixteen hexadecimal digits.
    """
    digests = [hashlib.blake2b(digest_size=8) for _ in range(batch_size(batch))]
    for path, tensor in tensors_of(batch):
        rows = tensor.detach().cpu().contiguous()
        header = f"{path} {rows.dtype} {tuple(rows.shape[1:])}".encode()
        for digest, row in zip(digests, rows, strict=True):
            digest.update(header)
            digest.update(row.reshape(-1).view(torch.uint8).numpy().tobytes())
    return [digest.hexdigest() for digest in digests]
