"""A task vector in the target's coordinates: each tensor rotated when it is read.

A linear map y = W x of A becomes R_outᵀ W R_in in B's coordinates, where rows x_A R_in ≈ x_B and y_A R_out ≈ y_B. So
does its change τ. Source: Ainsworth et al., "Git Re-Basin", 2023, for permutations.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor, nn

from gradfix.alignment.activations import Activations, Point
from gradfix.alignment.rotation.estimate import FINDERS, Pair, find_maps
from gradfix.alignment.rotation.families import spaces_of
from gradfix.alignment.rotation.maps import Map, unexplained
from gradfix.alignment.rotation.spaces import Place, Reading, Spaces
from gradfix.checkpoints import TensorSource, TensorSpec
from gradfix.checkpoints.expressions import Expression
from gradfix.vectors.task_vector import TaskVector

HELD_OUT = 0.25
"""Share of the rows, the last, on which maps that were found from the others are judged."""


@dataclass(frozen=True)
class Rotated(Expression):
    """Tensors in other coordinates.

    A rotation of rows needs a whole tensor; the last one is kept, so that reading it by rows costs one rotation.

    Attributes:
        of: Tensors in A's coordinates.
        places: The spaces of each tensor, by its name here; tensors without a place pass unchanged.
        maps: By space; a space without a map is left as it is.
    """

    of: TensorSource
    places: Mapping[str, Place]
    maps: Mapping[str, Map]
    _last: dict[str, Tensor] = field(default_factory=dict, compare=False, repr=False)

    @cached_property
    def specs(self) -> Mapping[str, TensorSpec]:
        """The same tensors: both models are of one architecture."""
        return self.of.specs

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        """Read rows of the rotated tensor."""
        turned = [
            number
            for number, axis in enumerate(self.places[name].axes if name in self.places else ())
            if any(space in self.maps for space in axis)
        ]
        if not turned:
            return self.of.read(name, rows)
        if 0 not in turned:
            return self._turn(name, self.of.read(name, rows), turned)
        if name not in self._last:
            whole = self._turn(name, self.of.read(name), turned)
            self._last.clear()
            self._last[name] = whole
        return self._last[name] if rows is None else self._last[name][rows]

    def _turn(self, name: str, values: Tensor, turned: Iterable[int]) -> Tensor:
        place = self.places[name]
        for number in turned:
            axis = place.axes[number]
            parts = values.movedim(number, -1).chunk(len(axis), dim=-1)
            mapped = [
                self._map(space, part, gain=place.gain) for space, part in zip(axis, parts, strict=True)
            ]
            values = torch.cat(mapped, dim=-1).movedim(-1, number)
        return values.contiguous()

    def _map(self, space: str, values: Tensor, *, gain: bool) -> Tensor:
        found = self.maps.get(space)
        if found is None:
            return values
        return found.gains(values) if gain else found.apply(values)


def rotate(tau: TaskVector, places: Mapping[str, Place], maps: Mapping[str, Map]) -> TaskVector:
    """Rotate a task vector.

    Args:
        tau: τ in A's coordinates, with the target's names.
        places: The spaces of each tensor, by its name in τ.
        maps: By space, from A's coordinates to B's.

    Returns:
        τ in B's coordinates, computed as it is read.
    """
    return tau.derive(Rotated(tau, places, maps), operation="rotate")


@dataclass(frozen=True)
class RotationAlignment:
    """A rotated task vector, and how well the rotations hold.

    Attributes:
        vector: τ in B's coordinates, with the names it had.
        maps: By space.
        places: The spaces of each tensor of τ, by its name.
        residuals: By tensor of a linear map: ``"residual_in"`` and ``"residual_out"``, the share of the variance of
            B's activations there that A's, rotated and scaled, do not explain. Maps for these are found from the
            first three quarters of the rows, and judged on the rest.
    """

    vector: TaskVector
    maps: Mapping[str, Map]
    places: Mapping[str, Place]
    residuals: Mapping[str, Mapping[str, float]]


def rotation_points(model: nn.Module, parameters: Iterable[str] | None = None) -> list[Point]:
    """List where activations must be recorded for :func:`rotation`.

    Args:
        model: Either model.
        parameters: Names of the parameters, as the module has them, that will be rotated; all by default. Those of a
            tower that the task does not run must be left out.

    Returns:
        The points, each once.

    Raises:
        GradfixError: if the architecture is not known.
    """
    return _spaces(model, parameters).points()


def rotation(
    vector: TaskVector,
    model: nn.Module,
    names: Mapping[str, str],
    activations: Activations,
    *,
    source: str,
    target: str,
    method: Literal["procrustes", "permutation"],
) -> RotationAlignment:
    """Rotate a task vector into the target's coordinates.

    Args:
        vector: τ, placed on the target.
        model: The target, or any model of its architecture; only names, modules and configuration are looked at.
        names: The target checkpoint's names by parameter name.
        activations: Holds recordings of both bases at :func:`rotation_points`.
        source: Key of A's.
        target: Key of B's.
        method: Streams and heads may be rotated, or only reordered. Units are reordered in any case.

    Returns:
        The rotated vector; the maps are found now, the tensors rotated when read.

    Raises:
        GradfixError: if the architecture is not known.
    """
    # What is zero stays so: a head that only the tuned model has was recorded in no base.
    present = [
        name for name, stored in names.items() if stored in vector.specs and not vector.is_zero(stored)
    ]
    spaces = _spaces(model, present)
    places = {names[name]: place for name, place in spaces.places.items()}
    finder = FINDERS[method]
    trained = find_maps(spaces, Pair(activations, source, target, (0.0, 1.0 - HELD_OUT)), finder)
    residuals = _residuals(places, trained, Pair(activations, source, target, (1.0 - HELD_OUT, 1.0)))
    del trained
    maps = find_maps(spaces, Pair(activations, source, target), finder)
    rotated = vector.derive(Rotated(vector, places, maps), operation="align", method=method)
    return RotationAlignment(rotated, maps, places, residuals)


def _spaces(model: nn.Module, parameters: Iterable[str] | None) -> Spaces:
    spaces = spaces_of(model)
    return spaces.needed(spaces.places if parameters is None else parameters)


def _residuals(
    places: Mapping[str, Place], maps: Mapping[str, Map], pair: Pair
) -> dict[str, dict[str, float]]:
    known: dict[tuple[Point, tuple[str, ...]], float] = {}
    residuals: dict[str, dict[str, float]] = {}
    for name, place in places.items():
        if place.inward is None:
            continue
        for number, axis in enumerate(place.axes):
            side = "residual_in" if number == place.inward else "residual_out"
            point = place.reads if number == place.inward else place.writes
            if point is None or not axis or not all(space in maps for space in axis):
                continue
            if (point, axis) not in known:
                known[point, axis] = _residual(point, axis, maps, pair)
            residuals.setdefault(name, {})[side] = known[point, axis]
    return residuals


def _residual(point: Point, axis: tuple[str, ...], maps: Mapping[str, Map], pair: Pair) -> float:
    """The residual of one place, of whose parts each has its map."""
    ours, theirs = pair.read(Reading(point))
    parts = ours.chunk(len(axis), dim=1)
    mapped = torch.cat([maps[space].apply(part) for space, part in zip(axis, parts, strict=True)], dim=1)
    return unexplained(mapped, theirs)
