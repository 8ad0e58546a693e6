"""Votes of ranks that counted different batches, added up a few megabytes at a time."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from gradfix.checkpoints.tensors import TensorSource
from gradfix.ranks import ranks
from gradfix.votes.metadata import counts_dtype

AT_ONCE = 4 * 2**20
"""Counts that are exchanged together: small tensors would each wait for the network."""


def summed(counts: TensorSource, order: Sequence[str], samples: int) -> Iterator[dict[str, Tensor]]:
    """Add up counts over the ranks.

    Args:
        counts: This rank's; a parameter that no sample of its batches reached may be missing.
        order: Of the parameters.
        samples: N, of all ranks: it says how wide the sums are.

    Yields:
        Sums of some parameters, the same on every rank.
    """
    group, dtype = ranks(), counts_dtype(samples)
    mine = {name: tuple(spec.shape) for name, spec in counts.specs.items()}
    shapes: Mapping[str, tuple[int, ...]] = {
        name: shape for found in group.gather("tensors of votes", mine) for name, shape in found.items()
    }
    names: list[str] = []
    size = 0
    for name in [name for name in order if name in shapes]:
        names.append(name)
        size += torch.Size(shapes[name]).numel()
        if size >= AT_ONCE:
            yield _exchanged(counts, names, shapes, dtype)
            names, size = [], 0
    if names:
        yield _exchanged(counts, names, shapes, dtype)


def _exchanged(
    counts: TensorSource, names: Sequence[str], shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype
) -> dict[str, Tensor]:
    sizes = [torch.Size(shapes[name]).numel() for name in names]
    whole = torch.zeros(sum(sizes), dtype=dtype)
    for name, part in zip(names, torch.split(whole, sizes), strict=True):
        if name in counts.specs:
            part.copy_(counts.read(name).reshape(-1))
    found = torch.split(ranks().add_up(whole), sizes)
    return {name: part.view(shapes[name]) for name, part in zip(names, found, strict=True)}
