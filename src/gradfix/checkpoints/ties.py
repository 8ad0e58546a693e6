"""Tied weights: one tensor under several names, known and canonical."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from gradfix.checkpoints.architecture import architecture_of, may_tie
from gradfix.checkpoints.names import match_names
from gradfix.checkpoints.reading.index import WeightFile
from gradfix.checkpoints.tensors import TensorSpec


class TiedModel(Protocol):
    """A model's weights with their ties resolved: what an adapter stands on."""

    location: str
    config: dict[str, Any]
    files: tuple[Path, ...]

    @property
    def specs(self) -> Mapping[str, TensorSpec]:
        """Canonical names."""
        ...

    @property
    def ties(self) -> Mapping[str, str]:
        """Other names of tied tensors."""
        ...

    def fetch(self) -> None:
        """Bring here what is still on the Hub."""
        ...

    def peek(self, name: str) -> bytes | None:
        """Give a few bytes of a tensor that is still on the Hub."""
        ...

    def read(self, name: str, rows: slice | None = None, *, out: torch.Tensor | None = None) -> torch.Tensor:
        """Read rows of a tensor."""
        ...


@dataclass(frozen=True)
class Ties:
    """How names map to stored tensors.

    Attributes:
        stored: Each canonical name to the name under which its tensor is stored, in stored order.
        aliases: Each other name of a tied tensor to its canonical name, whether stored or not.
        notes: What a report should say about them.
        assumed: Pairs of stored names held for tied by a glance at both, which are still on the Hub: to be
            compared once they are here.
    """

    stored: dict[str, str]
    aliases: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    assumed: tuple[tuple[str, str], ...] = ()


def find_ties(weights: WeightFile, config: Mapping[str, object]) -> Ties:
    """Find which names are one tensor.

    The architecture that the config names declares its ties and which name is the source. A file of
    ``torch.save`` shows them by shared memory. Of a pair that is declared tied and stored twice, both copies
    are compared: they are one tensor only if equal, as transformers decides it (a config may say "tied" of a
    model that was not). Copies that are still on the Hub are not fetched for it: a glance at the middle of
    both tells trained copies apart.

    Args:
        weights: The opened files.
        config: The model's config; empty if unknown.

    Returns:
        The canonical names and their aliases.
    """
    groups = _declared(weights.specs, config)
    for alias, name in weights.shared.items():
        if not any(alias in (source, *aliases) for source, aliases in groups.items()):
            groups.setdefault(name, []).append(alias)
    aliases: dict[str, str] = {}
    moved: dict[str, str] = {}
    notes = []
    assumed: list[tuple[str, str]] = []
    for source, others in groups.items():
        present = [name for name in (source, *others) if name in weights.specs]
        if not present:
            continue
        moved[present[0]] = source
        for alias in others:
            if alias in weights.specs and not _judged(weights, present[0], alias, assumed):
                notes.append(
                    f"{alias} is stored with other values than {source}, to which the config ties it: untied"
                )
            else:
                aliases[alias] = source
    stored = {moved.get(name, name): name for name in weights.specs if name in moved or name not in aliases}
    return Ties(stored, aliases, tuple(notes), tuple(assumed))


def _declared(names: Iterable[str], config: Mapping[str, object]) -> dict[str, list[str]]:
    """Each source to its aliases, as the architecture declares them, spelled as the checkpoint does."""
    architecture = architecture_of(config) if may_tie(config) else None
    if architecture is None or not architecture.ties:
        return {}
    spelled = match_names(architecture.names, names).rename
    groups: dict[str, list[str]] = {}
    for alias, source in architecture.ties.items():
        groups.setdefault(spelled(source), []).append(spelled(alias))
    return groups


def _judged(weights: WeightFile, first: str, second: str, assumed: list[tuple[str, str]]) -> bool:
    """Whether two stored tensors are one; added to ``assumed`` where that is known by a glance only."""
    if first != second and weights.specs[first] == weights.specs[second]:
        glances = weights.peek(first), weights.peek(second)
        if None not in glances:
            if glances[0] == glances[1]:
                assumed.append((first, second))
            return glances[0] == glances[1]
    return same_values(weights, first, second)


def same_values(weights: WeightFile, first: str, second: str) -> bool:
    """Compare two stored tensors, bit by bit.

    Args:
        weights: The opened files.
        first: Name of one.
        second: Name of the other.

    Returns:
        Whether they are of one dtype and shape, and equal.
    """
    if first == second or weights.shared.get(second, second) == weights.shared.get(first, first):
        return True
    spec = weights.specs[first]
    if weights.specs[second] != spec:
        return False
    return all(
        torch.equal(_bits(weights.read(first, rows)), _bits(weights.read(second, rows)))
        for rows in spec.row_blocks()
    )


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    bits: torch.Tensor = tensor.reshape(-1).view(torch.uint8)
    return bits
