"""Which depth of the source each block of the target corresponds to.

Blocks are paired by what they compute, in order: of all monotone pairings the one with the largest sum of linear CKA
between the source's stream, read at or between its blocks, and the target's stream after each of its blocks. Source:
Kornblith et al., "Similarity of Neural Network Representations Revisited", 2019.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

import torch
from torch import Tensor

from gradfix.alignment.activations import Activations, Point
from gradfix.alignment.blocks import Writer
from gradfix.errors import AlignmentError

STEPS = 4
"""Depths that are tried from one block of the source to the next: between two, the stream is interpolated."""

COMPARED = 512
"""Rows on which two streams are compared."""

DIAGONAL = 0.01
"""What being a whole network's depth away from the same relative depth costs, in units of CKA."""


@dataclass(frozen=True)
class Depth:
    """A depth of the source: ``(1 − share) · below + share · above``.

    Attributes:
        below: Where the stream is read.
        above: Where it is read a block later.
        share: From 0 to 1.
        block: The depth in blocks, for people; None where it is the same place.
    """

    below: Point
    above: Point
    share: float
    block: float | None

    def read(self, activations: Activations, key: str) -> Tensor:
        """Give what was recorded at this depth.

        Args:
            activations: The recordings.
            key: Which.

        Returns:
            ``[rows, width]`` float32.
        """
        if self.share == 0:
            return activations.read(key, self.below)
        return torch.lerp(activations.read(key, self.below), activations.read(key, self.above), self.share)


def points_of(writers: Sequence[Writer]) -> list[Point]:
    """List where a source is to be read, so that any depth can be interpolated.

    Args:
        writers: The source's.

    Returns:
        What enters its first block of each list, and the stream after each block.
    """
    entries = [blocks[0].entry for blocks in _stacks(writers)]
    return list(dict.fromkeys([*(entry for entry in entries if entry), *(one.stream for one in writers)]))


def depths_of(
    source: Sequence[Writer], target: Sequence[Writer], activations: Activations, keys: tuple[str, str]
) -> Mapping[Point, Depth]:
    """Pair each block of a target with a depth of the source.

    Args:
        source: The source's writers, in the order in which they run.
        target: The target's.
        activations: Holds both recordings.
        keys: The source's and the target's.

    Returns:
        A depth for the stream of each of the target's writers.

    Raises:
        AlignmentError: if one has encoder and decoder, or towers, that the other lacks.
    """
    ours, theirs = _stacks(source), _stacks(target)
    if len(ours) != len(theirs):
        raise AlignmentError(
            f"the source has {len(ours)} lists of blocks ({', '.join(blocks[0].module for blocks in ours)} …), the "
            f"target {len(theirs)} ({', '.join(blocks[0].module for blocks in theirs)} …): they can't be paired; "
            "use --align none"
        )
    found: dict[Point, Depth] = {}
    for one, other in zip(ours, theirs, strict=True):
        ladder = _ladder(one)
        if len(one) == len(other):
            chosen = ladder[-1 - STEPS * (len(one) - 1) :: STEPS]
        else:
            chosen = _monotone(ladder, [writer.stream for writer in other], activations, keys)
        found |= {writer.stream: depth for writer, depth in zip(other, chosen, strict=True)}
    return found


def cka(one: Tensor, other: Tensor) -> float:
    """Compare what two models make of the same inputs, whatever their coordinates.

    Args:
        one: ``[rows, a]``.
        other: ``[rows, b]``.

    Returns:
        Linear CKA, from 0 to 1; 0 where either is constant.
    """
    return _alike(_gram(one), _gram(other))


def _stacks(writers: Sequence[Writer]) -> list[list[Writer]]:
    return [list(group) for _, group in groupby(writers, key=lambda writer: writer.stack)]


def _ladder(writers: Sequence[Writer]) -> list[Depth]:
    """The depths of a list of blocks, from what enters the first to what leaves the last."""
    entry = writers[0].entry
    points = [*([entry] if entry else []), *(writer.stream for writer in writers)]
    first = 1 - len(points) + len(writers)
    between = [
        Depth(below, above, step / STEPS, first + number + step / STEPS)
        for number, (below, above) in enumerate(pairwise(points))
        for step in range(STEPS)
    ]
    return [*between, Depth(points[-1], points[-1], 0.0, float(len(writers)))]


def _monotone(
    ladder: Sequence[Depth], streams: Sequence[Point], activations: Activations, keys: tuple[str, str]
) -> list[Depth]:
    """The ascending choice of depths with the largest sum of likeness; the last block has the last depth."""
    rows = len(activations.read(keys[1], streams[0]))
    some = slice(None, None, max(1, rows // COMPARED))
    theirs = [_gram(activations.read(keys[1], point)[some]) for point in streams]
    table = torch.empty(len(streams), len(ladder))
    for column, depth in enumerate(ladder):
        ours = _gram(depth.read(activations, keys[0])[some])
        for row, gram in enumerate(theirs):
            apart = (row + 1) / len(streams) - column / max(1, len(ladder) - 1)
            table[row, column] = _alike(ours, gram) - DIAGONAL * apart * apart
    table[-1, :-1] = -torch.inf
    best = table[0]
    origins = []
    for row in table[1:]:
        values, indices = best.cummax(dim=0)
        origins.append(indices)
        best = row + values
    place = len(ladder) - 1
    chosen = [place]
    for indices in reversed(origins):
        place = int(indices[place])
        chosen.append(place)
    return [ladder[place] for place in reversed(chosen)]


def _gram(rows: Tensor) -> Tensor:
    centred = rows.double() - rows.double().mean(0)
    return centred @ centred.T


def _alike(one: Tensor, other: Tensor) -> float:
    size = float(one.norm() * other.norm())
    return float((one * other).sum()) / size if size else 0.0
