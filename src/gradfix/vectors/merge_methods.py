"""How task vectors are merged, block by block: the methods as pure functions, and the expressions around them.

Index t counts task vectors τ_1 … τ_T, i the coordinates of a whole vector over all its tensors; the policies are
those of :mod:`gradfix.vectors.merging`.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from gradfix.checkpoints import TensorSource, TensorSpec
from gradfix.checkpoints.expressions import Expression, Tally, tally_of
from gradfix.errors import GradfixError
from gradfix.plugins import find
from gradfix.progress import Progress, silent
from gradfix.votes.metadata import counts_dtype

MergeFunction = Callable[[Sequence[Tensor]], Tensor]


@dataclass(frozen=True)
class Method:
    """A way to merge.

    Attributes:
        function: From one block of every task vector, float32 and of one shape, to the merged block.
        thins: What leaves coordinates of each task vector out first: ``"smallest"`` magnitudes, ``"random"`` ones, or
            nothing. ``density`` is the share that it keeps.
    """

    function: MergeFunction
    thins: Literal["smallest", "random"] | None = None


def mean(blocks: Sequence[Tensor]) -> Tensor:
    """Average task vectors: (1/T) Σ_t τ_t, task arithmetic up to α.

    Args:
        blocks: The same rows of every τ_t, float32 of one shape.

    Returns:
        Float32 of that shape, accumulated in float64.
    """
    return _sum(blocks).div_(len(blocks)).to(torch.float32)


def ties(blocks: Sequence[Tensor]) -> Tensor:
    """Average, at each coordinate, those (trimmed) τ_t that have the sign of Σ_t τ_t; 0 where that sum is 0.

    Args:
        blocks: The same rows of every trimmed τ_t, float32 of one shape.

    Returns:
        Float32 of that shape, accumulated in float64.
    """
    elected = _sum(blocks)
    total, agreeing = torch.zeros_like(elected), torch.zeros_like(elected)
    for block in blocks:
        # In float64 the product of two float32 numbers, or of one with such a sum, can't underflow.
        agrees = (block * elected) > 0
        total += block.where(agrees, 0.0)
        agreeing += agrees
    return total.div_(agreeing.clamp_(min=1)).to(torch.float32)


def total(blocks: Sequence[Tensor]) -> Tensor:
    """Add task vectors: Σ_t τ_t, task arithmetic.

    Args:
        blocks: The same rows of every τ_t, float32 of one shape.

    Returns:
        Float32 of that shape, accumulated in float64.
    """
    return _sum(blocks).to(torch.float32)


MERGE_METHODS: dict[str, Method] = {
    "mean": Method(mean),
    "sum": Method(total),
    "ties": Method(ties, thins="smallest"),
    "dare": Method(total, thins="random"),
    "magnitude": Method(total, thins="smallest"),
}
"""The merge methods; see :mod:`gradfix.vectors.merging` for what each is."""


def find_method(name: str) -> Method:
    """Find a merge method: one of :data:`MERGE_METHODS`, or a plug-in.

    Args:
        name: Its name, or a function of the user's own as :func:`gradfix.plugins.find` takes it.

    Returns:
        The method. What a plug-in returns is checked, and it gets blocks of its own, which it may change.

    Raises:
        GradfixError: if there is none, or a plug-in says that something unknown thins.
    """
    if name in MERGE_METHODS:
        return MERGE_METHODS[name]
    plugin = find("merge", name, known=MERGE_METHODS)
    thins = plugin.facts.get("thins")
    if plugin.facts.keys() - {"thins"} or thins not in (None, "smallest", "random"):
        raise GradfixError(
            f"merge {name!r}: registered with {dict(plugin.facts)}; expected thins, smallest or random, or nothing"
        )

    def function(blocks: Sequence[Tensor]) -> Tensor:
        merged = plugin([block.clone() for block in blocks])
        if not isinstance(merged, Tensor) or merged.shape != blocks[0].shape:
            found = (
                f"shape {list(merged.shape)}" if isinstance(merged, Tensor) else f"a {type(merged).__name__}"
            )
            raise GradfixError(
                f"{plugin.name}: returned {found}; expected a tensor {list(blocks[0].shape)}, the merged block"
            )
        return merged.to(torch.float32)

    return Method(function, thins)


def _sum(blocks: Sequence[Tensor]) -> Tensor:
    """Add in float64: float32 sums depend on the order of the vectors, and a rounded one may elect another sign."""
    total = blocks[0].to(torch.float64, copy=True)
    for block in blocks[1:]:
        total += block
    return total


@dataclass(frozen=True)
class Trimmed(Expression):
    """A vector without its smaller magnitudes: those below the k-th largest of all its tensors become 0.

    Attributes:
        of: Finite float32 tensors.
        density: k over the number of coordinates.
        stage: What the progress of ranking is called.
        progress: Told how far the ranking is.
    """

    of: TensorSource
    density: float
    stage: str = "ranking magnitudes"
    progress: Progress = silent

    @property
    def specs(self) -> Mapping[str, TensorSpec]:
        """The source's tensors."""
        return self.of.specs

    @cached_property
    def threshold(self) -> float:
        """The k-th largest magnitude, found at the first use in two passes over the whole vector."""
        size = sum(spec.numel for spec in self.specs.values())
        if self.density == 1 or not size:
            return 0.0
        found = kth_magnitude(
            self.of, max(1, round(self.density * size)), progress=self.progress, stage=self.stage
        )
        # A mask below counted what the two passes read.
        self._ranked.update(
            {name: replace(tally) for name in self.specs if (tally := tally_of(self.of, name))}
        )
        return found

    @cached_property
    def _ranked(self) -> dict[str, Tally]:
        return {}

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        """Trim one range of rows."""
        threshold = self.threshold
        block = self.of.read(name, rows)
        return block.where(block.abs() >= threshold, 0.0)

    @override
    def tally(self, name: str) -> Tally | None:
        total, before = tally_of(self.of, name), self._ranked.get(name)
        return total if total is None or before is None else _tally_of_pairs([(1, total), (-1, before)])


@dataclass(frozen=True)
class Dropped(Expression):
    """A vector of which each coordinate is dropped with probability 1 − density, and what is left divided by density.

    The expectation is the vector itself. Which coordinates stay is a function of seed, tensor name and coordinate
    alone, however a tensor is cut into blocks.

    Attributes:
        of: Float32 tensors.
        density: The probability to stay.
        seed: Of the draw.
    """

    of: TensorSource
    density: float
    seed: int

    @property
    def specs(self) -> Mapping[str, TensorSpec]:
        """The source's tensors."""
        return self.of.specs

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        """Drop coordinates of one range of rows."""
        block = self.of.read(name, rows)
        row = math.prod(self.specs[name].shape[1:])
        offset = 0 if rows is None else (rows.start or 0) * row
        kept = torch.from_numpy(uniform(name, self.seed, offset, block.numel()) < self.density)
        # In float64: divided in float32 the last bit depends on how torch divides.
        return block.where(kept.view(block.shape), 0.0).double().div_(self.density).to(block.dtype)

    @override
    def tally(self, name: str) -> Tally | None:
        return tally_of(self.of, name)


def uniform(name: str, seed: int, offset: int, count: int) -> NDArray[np.float64]:
    """Draw uniform numbers ``offset`` to ``offset + count`` of the stream that seed and name select.

    Args:
        name: The tensor's key.
        seed: Of the draw.
        offset: Flat index of the first coordinate.
        count: How many.

    Returns:
        ``[count]`` in [0, 1), of 53 random bits each.
    """
    digest = hashlib.sha256(f"dare\0{seed}\0{name}".encode()).digest()
    generator = np.random.Philox(key=int.from_bytes(digest[:16], "little"))
    generator.advance(offset // 4)  # a step of the counter makes four words
    words = generator.random_raw(offset % 4 + count)[offset % 4 :]
    return np.asarray((words >> np.uint64(11)) * 2.0**-53, dtype=np.float64)


@dataclass(frozen=True)
class Merged(Expression):
    """A function of the same rows of several vectors, which have the same tensors."""

    terms: Sequence[TensorSource]
    function: MergeFunction

    @property
    def specs(self) -> Mapping[str, TensorSpec]:
        """The tensors of the first term, which all share."""
        return self.terms[0].specs

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        """Merge one range of rows of every term."""
        return self.function([term.read(name, rows) for term in self.terms])

    @override
    def tally(self, name: str) -> Tally | None:
        tallies = [tally for term in self.terms if (tally := tally_of(term, name))]
        return _tally_of_pairs([(1, tally) for tally in tallies]) if tallies else None


@dataclass(frozen=True)
class SignSum(Expression):
    """Σ_t sign(v_t), an integer in [−T, T]: the vote of several tasks, each with one ballot a coordinate.

    Attributes:
        votes: v_t: integers, or float tensors whose signs count.
        counterparts: For each of the votes, the task vectors' names mapped to the votes' names.
        origin: What the votes are of, as JSON.
    """

    votes: Sequence[TensorSource]
    counterparts: Sequence[Mapping[str, str]]
    origin: Mapping[str, Any]

    @cached_property
    def specs(self) -> Mapping[str, TensorSpec]:
        """The parameters that any task has votes for, under the task vectors' names."""
        dtype = counts_dtype(len(self.votes))
        return {
            name: TensorSpec(dtype, votes.specs[theirs].shape)
            for votes, names in zip(self.votes, self.counterparts, strict=True)
            for name, theirs in names.items()
        }

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        """Add one range of rows of the signs of all who voted on ``name``."""
        dtype = self.specs[name].dtype
        ballots = [
            votes.read(names[name], rows).sign().to(dtype)
            for votes, names in zip(self.votes, self.counterparts, strict=True)
            if name in names
        ]
        total = ballots[0]
        for ballot in ballots[1:]:
            total = total + ballot
        return total


def _tally_of_pairs(terms: Sequence[tuple[int, Tally]]) -> Tally:
    names = [field.name for field in fields(Tally)]
    return Tally(**{name: sum(sign * getattr(tally, name) for sign, tally in terms) for name in names})


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
