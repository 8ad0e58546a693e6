"""From recorded activations to the maps of a model's spaces, one space's matrices at a time.

Letters: C cross-covariance, R map, h heads, g groups of key and value heads, d width of a head.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gradfix.alignment.activations import Activations
from gradfix.alignment.rotation.maps import (
    Finder,
    HeadMap,
    Map,
    Permutation,
    Rotation,
    assignment,
    cross_covariance,
    identity_matrix,
    permutation_matrix,
    procrustes_matrix,
)
from gradfix.alignment.rotation.spaces import HEADS, Attention, Reading, Spaces

FINDERS: Mapping[str, Finder] = {"procrustes": procrustes_matrix, "permutation": permutation_matrix}
"""What may be done to spaces that are not held to an order: any rotation, or only another order."""


@dataclass(frozen=True)
class Pair:
    """Two recordings of the same inputs, to be compared on some of the rows.

    Attributes:
        activations: Where both are.
        source: Key of A's.
        target: Key of B's.
        share: Which part of the rows to look at, from first to last, as fractions.
    """

    activations: Activations
    source: str
    target: str
    share: tuple[float, float] = (0.0, 1.0)

    def read(self, reading: Reading) -> tuple[Tensor, Tensor]:
        """Read what A and B made at one place.

        Args:
            reading: The place.

        Returns:
            X_A and X_B, ``[rows, width]``.
        """
        both = []
        for key in (self.source, self.target):
            values = self.activations.read(key, reading.point)
            first, last = (round(len(values) * bound) for bound in self.share)
            both.append(values[first:last].chunk(reading.of, dim=1)[reading.part])
        return both[0], both[1]

    def covariance(self, readings: Sequence[Reading]) -> Tensor:
        """Add up the scaled cross-covariances of places that share their coordinates.

        Args:
            readings: At least one place.

        Returns:
            C, ``[a, b]``.
        """
        total = cross_covariance(*self.read(readings[0]))
        for reading in readings[1:]:
            total += cross_covariance(*self.read(reading))
        return total


def find_maps(spaces: Spaces, pair: Pair, finder: Finder) -> dict[str, Map]:
    """Find the map of every space.

    Args:
        spaces: Of the model, restricted to what is needed.
        pair: The recordings.
        finder: For streams, and within heads.

    Returns:
        By name of the space. A space that can't be seen has none: it is left as it is.
    """
    maps: dict[str, Map] = {}
    for name, readings in spaces.streams.items():
        if readings:
            matrix = finder(pair.covariance(readings))
            maps[name] = (
                Permutation(matrix.argmax(dim=0)) if finder is permutation_matrix else Rotation(matrix)
            )
    for name, readings in spaces.units.items():
        maps[name] = Permutation(assignment(pair.covariance(readings)))
    orders = {attention.order for attention in spaces.attentions.values()}
    for order in sorted(orders):
        together = {path: each for path, each in spaces.attentions.items() if each.order == order}
        if all(each.readings.get("merged") for each in together.values()):
            maps.update(_attention_maps(order, together, pair, finder))
    return maps


def _attention_maps(
    order: str, attentions: Mapping[str, Attention], pair: Pair, finder: Finder
) -> dict[str, Map]:
    """Match the heads of attentions that share an order, then find the maps within each head.

    Groups are matched first, and within a group its query heads: two groups match as well as their values and keys do
    under the best maps, and their query heads under the best matching.

    Returns:
        Maps of the four spaces of each attention, and of the spaces with one coordinate a head.
    """
    first = next(iter(attentions.values()))
    groups, each = first.groups, first.heads // first.groups
    scores = torch.zeros(groups, groups, dtype=torch.float64)
    queries = torch.zeros(groups, groups, each, each, dtype=torch.float64)
    for attention in attentions.values():
        blocks = _blocks(attention, pair)
        turn = identity_matrix if attention.rotary else finder
        for i in range(groups):
            for j in range(groups):
                key, value = blocks["key"][i, j], blocks["value"][i, j]
                together = turn(key)
                scores[i, j] += _trace(key, together) + _trace(value, finder(value))
                ours, theirs = slice(i * each, (i + 1) * each), slice(j * each, (j + 1) * each)
                pairs = blocks["query"][ours, theirs]
                if each == 1:
                    # One query head a key head: nothing to match within, so its say is added under one map of both.
                    both = pairs[0, 0] + key
                    scores[i, j] += _trace(both, turn(both)) - _trace(key, together)
                else:
                    queries[i, j] += torch.einsum("abde,de->ab", pairs.double(), together.double())
    inner = {(i, j): assignment(queries[i, j]) for i in range(groups) for j in range(groups)}
    if each > 1:
        for (i, j), matched in inner.items():
            scores[i, j] += queries[i, j][matched, torch.arange(each)].sum()
    groups_order = assignment(scores)
    heads_order = torch.cat([int(i) * each + inner[int(i), j] for j, i in enumerate(groups_order)])
    maps: dict[str, Map] = {HEADS + order: Permutation(heads_order)}
    repeats = torch.arange(first.heads) // each
    for path, attention in attentions.items():
        blocks = _blocks(attention, pair)
        turn = identity_matrix if attention.rotary else finder
        within_keys, within_values = [], []
        for j, i in enumerate(groups_order):
            members = heads_order[j * each : (j + 1) * each]
            key = blocks["key"][i, j] + sum(
                blocks["query"][h, j * each + number] for number, h in enumerate(members)
            )
            merged = sum(blocks["merged"][h, j * each + number] for number, h in enumerate(members))
            within_keys.append(turn(key))
            within_values.append(finder(blocks["value"][i, j] + merged))
        keys, values = torch.stack(within_keys), torch.stack(within_values)
        maps[f"{path}.query"] = HeadMap(heads_order, keys[repeats])
        maps[f"{path}.key"] = HeadMap(groups_order, keys)
        maps[f"{path}.value"] = HeadMap(groups_order, values)
        maps[f"{path}.merged"] = HeadMap(heads_order, values[repeats])
    return maps


def _blocks(attention: Attention, pair: Pair) -> dict[str, Tensor]:
    """Cut the cross-covariances into those of each pair of heads: ``[h, h, d, d]`` or ``[g, g, d, d]``."""
    blocks = {}
    for role, readings in attention.readings.items():
        count = attention.heads if role in {"query", "merged"} else attention.groups
        covariance = pair.covariance(readings)
        width = covariance.shape[0] // count
        blocks[role] = covariance.view(count, width, count, width).transpose(1, 2)
    return blocks


def _trace(covariance: Tensor, matrix: Tensor) -> float:
    return float((covariance * matrix.to(covariance)).sum())
