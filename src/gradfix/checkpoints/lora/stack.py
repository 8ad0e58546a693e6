"""Several adapters on one base, one after the other, each with a weight: ``first+0.5*second``.

Each adapter changes what those before it made of the base, as merging them in this order would. Low-rank changes of
one layer add up: side by side their factors are those of one change, whose rank is the sum.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from gradfix.checkpoints.lora.factors import AdapterParts, Change
from gradfix.checkpoints.tensors import TensorSpec
from gradfix.errors import GradfixError, listed

_WEIGHTED = re.compile(
    r"\s*(?:(?P<weight>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*\*)?\s*(?P<place>.*\S)\s*"
)


def stacked(location: str) -> list[tuple[float, str]] | None:
    """Read a location as a sum of adapters.

    Args:
        location: Such as ``first+0.5*second`` or ``0.5*first``; a path that exists means itself.

    Returns:
        Weights and locations in order; None for a single location without a weight.

    Raises:
        GradfixError: if a part is empty.
    """
    if not re.search(r"[+*]", location) or Path(location).exists():
        return None
    found = []
    for part in re.split(r"(?<!\d[eE])\+", location):
        matched = _WEIGHTED.fullmatch(part)
        if matched is None:
            raise GradfixError(
                f"{location}: expected adapters with + between them and weights before them, such as first+0.5*second"
            )
        found.append((float(matched["weight"] or 1), matched["place"]))
    return found


@dataclass(frozen=True)
class StackedChange:
    """Low-rank changes of one weight that add up.

    Attributes:
        parts: The changes.
    """

    parts: Sequence[Change]

    @property
    def input_first(self) -> bool:
        """Whether the weight is stored [i, o]."""
        return self.parts[0].input_first

    @property
    def specs(self) -> tuple[TensorSpec, TensorSpec]:
        """Shapes of B and A."""
        up, down = self.parts[0].specs
        rank = sum(part.specs[0].shape[1] for part in self.parts)
        return TensorSpec(up.dtype, (up.shape[0], rank, *up.shape[2:])), TensorSpec(
            down.dtype, (rank, *down.shape[1:])
        )

    def factors(self) -> tuple[Tensor, Tensor]:
        """Give B [o, r] and A [r, i] side by side."""
        ups, downs = zip(*(part.factors() for part in self.parts), strict=True)
        return torch.cat(ups, 1), torch.cat(downs, 0)


def over(inner: AdapterParts, outer: AdapterParts) -> AdapterParts:
    """Put what an adapter changes over what the one below it changes.

    Args:
        inner: Of the lower adapter.
        outer: Of the upper one, by the same names.

    Returns:
        What both change. Of a tensor that both store whole, the upper one's counts.

    Raises:
        GradfixError: if the upper one stores whole what the lower one changes by low rank.
    """
    hidden = sorted(outer.whole & inner.updates.keys())
    if hidden:
        raise GradfixError(
            f"{listed(hidden, 2)}: is changed by one adapter and stored whole by a later one, which would undo that: "
            "give them in another order, or train the later one without it"
        )
    mixed = sorted(inner.whole & outer.updates.keys())
    updates: dict[str, Change] = dict(inner.updates)
    for name, update in outer.updates.items():
        below = updates.get(name)
        updates[name] = update if below is None else StackedChange([below, update])
    obstacle = inner.obstacle or outer.obstacle
    if obstacle is None and mixed:
        obstacle = f"one adapter stores {listed(mixed, 2)} whole, and another changes it by low rank"
    return replace(
        outer,
        updates=updates,
        whole=inner.whole | outer.whole,
        obstacle=obstacle,
        dtype=torch.promote_types(inner.dtype, outer.dtype),
        task_type=outer.task_type or inner.task_type,
        unplaced=(*inner.unplaced, *outer.unplaced),
    )
