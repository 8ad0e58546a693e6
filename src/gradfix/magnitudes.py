"""The k-th largest magnitude of a vector too large to hold: exact, in two streaming passes and half a megabyte.

The bits of a non-negative IEEE 754 number, read as an integer, order as the number does. So the k-th largest
magnitude is found by its digits, as in a radix sort: one pass counts the upper 16 bits of every magnitude and finds
those of the k-th, a second counts the lower 16 bits of the magnitudes that share them.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from gradfix.checkpoints import TensorSource
from gradfix.progress import Progress, silent

_DIGIT = 16
_MAGNITUDE = (1 << 31) - 1  # all bits but the sign


def kth_magnitude(
    vector: TensorSource, k: int, *, progress: Progress = silent, stage: str = "ranking magnitudes"
) -> float:
    """Find the k-th largest |x_i| over all tensors of a vector.

    Args:
        vector: Finite float32 tensors; read block by block, twice.
        k: From 1 (the largest) to the number of coordinates; equal magnitudes count as often as they stand there.
        progress: Told the coordinates ranked, both passes counted.
        stage: What the progress is called.

    Returns:
        The magnitude, exactly as it stands in the vector.

    Raises:
        ValueError: if the vector has fewer than k coordinates, or k < 1.
    """
    size = sum(spec.numel for spec in vector.specs.values())
    if not 1 <= k <= size:
        raise ValueError(f"k: expected 1 to {size}, the number of coordinates, found {k}")
    upper = torch.zeros(1 << (31 - _DIGIT), dtype=torch.int64)
    done = 0
    for bits in _magnitude_bits(vector):
        upper += torch.bincount(bits >> _DIGIT, minlength=len(upper))
        done += len(bits)
        progress(stage, done, 2 * size, "coordinates")
    digit, k = _bin_of_kth_largest(upper, k)
    lower = torch.zeros(1 << _DIGIT, dtype=torch.int64)
    for bits in _magnitude_bits(vector):
        lower += torch.bincount(bits[bits >> _DIGIT == digit] & ((1 << _DIGIT) - 1), minlength=len(lower))
        done += len(bits)
        progress(stage, done, 2 * size, "coordinates")
    pattern = (digit << _DIGIT) | _bin_of_kth_largest(lower, k)[0]
    return float(torch.tensor(pattern, dtype=torch.int32).view(torch.float32))


def _magnitude_bits(vector: TensorSource) -> Iterator[Tensor]:
    """Read |x| as int32, flattened, a block at a time."""
    for name, spec in vector.specs.items():
        for rows in spec.row_blocks():
            yield vector.read(name, rows).flatten().view(torch.int32) & _MAGNITUDE


def _bin_of_kth_largest(counts: Tensor, k: int) -> tuple[int, int]:
    """Find the bin of the k-th largest, and which of that bin's members, from the largest, it is."""
    at_least = counts.flip(0).cumsum(0)
    place = int(torch.searchsorted(at_least, k))
    index = len(counts) - 1 - place
    return index, k - int(at_least[place] - counts[index])
