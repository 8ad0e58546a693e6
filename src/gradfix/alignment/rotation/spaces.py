"""Which axes of a model's parameters share coordinates: what is added together, or meets index by index, is one space.

- A *stream* is what all blocks of a tower read and add to, with its embeddings and norms. Its coordinates may be
  rotated together. (T5's towers read one embedding, so they share one stream.)
- *Units* pass through a function of each alone (the hidden layer of an MLP, a pooler): only their order is free.
- An *attention*'s heads may be reordered. Within a head, values may be rotated if the output map rotates them back,
  and queries and keys if both rotate alike, since only their products count. Rotary positions turn pairs of
  coordinates by angles of their own, so there queries and keys keep their places within a head. A table of position
  biases has a column a head: all attentions that use it share one order.
- Vocabulary, positions, pixels and classes mean the same in both models, and are left alone.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from gradfix.alignment.activations import Point
from gradfix.checkpoints.layers import layer_of

JOINT = "joint"
"""The stream that both towers of an image and text model end in."""

HEADS = "heads of "
"""Prefix of a space with one coordinate a head."""


class Reading(NamedTuple):
    """Where a space's values can be seen: a point, or one of several equal parts of its width."""

    point: Point
    part: int = 0
    of: int = 1


@dataclass(frozen=True)
class Place:
    """The spaces of one parameter.

    Attributes:
        axes: For each axis the spaces of its equal parts, in order; empty for an axis that is left alone.
        gain: It multiplies coordinates one by one.
        inward: Which axis meets the module's input; None where none does.
        reads: Where the module's input can be seen, if it is a linear map.
        writes: Where its output can be seen, if it is a linear map or a norm.
    """

    axes: tuple[tuple[str, ...], ...]
    gain: bool = False
    inward: int | None = None
    reads: Point | None = None
    writes: Point | None = None


@dataclass(frozen=True)
class Attention:
    """The four spaces of one attention, and what ties them together.

    Attributes:
        readings: Where to see each of ``"query"``, ``"key"``, ``"value"`` and ``"merged"`` (what the output map
            reads); empty where nothing can be seen.
        heads: Number of query heads.
        groups: Number of key and value heads.
        rotary: Positions are turned into queries and keys, pair by pair of coordinates.
        order: Attentions of the same order have their heads matched together.
    """

    readings: Mapping[str, tuple[Reading, ...]]
    heads: int
    groups: int
    rotary: bool
    order: str


@dataclass(frozen=True)
class Spaces:
    """The spaces of a model, by name.

    Attributes:
        places: By parameter name, as the module has it.
        streams: Where to see each space that may be rotated.
        units: Where to see each space that may only be reordered.
        attentions: By path; their spaces are ``"{path}.query"`` and so on.
    """

    places: dict[str, Place] = field(default_factory=dict)
    streams: dict[str, tuple[Reading, ...]] = field(default_factory=dict)
    units: dict[str, tuple[Reading, ...]] = field(default_factory=dict)
    attentions: dict[str, Attention] = field(default_factory=dict)

    def needed(self, parameters: Iterable[str]) -> "Spaces":
        """Leave out what some parameters have nothing to do with.

        Args:
            parameters: Names of the parameters to keep.

        Returns:
            Their places and spaces.
        """
        places = {name: self.places[name] for name in parameters if name in self.places}
        used = {space for place in places.values() for axis in place.axes for space in axis}
        orders = {space.removeprefix(HEADS) for space in used if space.startswith(HEADS)}
        towers = {layer_of(name).tower for name in places}
        joint = tuple(
            reading
            for reading in self.streams.get(JOINT, ())
            if layer_of(reading.point.module + ".weight").tower in towers
        )
        paths = {space.rpartition(".")[0] for space in used}
        orders |= {attention.order for path, attention in self.attentions.items() if path in paths}
        return Spaces(
            places,
            {
                name: joint if name == JOINT else readings
                for name, readings in self.streams.items()
                if name in used
            },
            {name: readings for name, readings in self.units.items() if name in used},
            {path: each for path, each in self.attentions.items() if each.order in orders},
        )

    def points(self) -> list[Point]:
        """List every point at which something can be seen that is of use.

        Returns:
            The points, each once.
        """
        seen: dict[Point, None] = {}
        for readings in [*self.streams.values(), *self.units.values()]:
            seen.update(dict.fromkeys(reading.point for reading in readings))
        for attention in self.attentions.values():
            for readings in attention.readings.values():
                seen.update(dict.fromkeys(reading.point for reading in readings))
        for place in self.places.values():
            seen.update(dict.fromkeys(point for point in (place.reads, place.writes) if point is not None))
        return list(seen)
