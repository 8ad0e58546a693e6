"""Which tensor of one model is which of another, whatever spelling and form their files have."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor

from gradfix.checkpoints.architecture import skeleton
from gradfix.checkpoints.layouts import AsStored, InMemory, Layout
from gradfix.checkpoints.names import match_names
from gradfix.checkpoints.public_layouts import beside_the_model, layout_in, public_layout
from gradfix.checkpoints.tensors import TensorSource, TensorSpec

_NUMBER = re.compile(r"(?:^|\.)(\d+)(?=\.|$)")


@dataclass(frozen=True)
class Spelled:
    """A model's tensors as its file spells them.

    Attributes:
        specs: By name; other names of tied tensors may be among them.
        config: The model's ``config.json``; empty if unknown.
    """

    specs: Mapping[str, TensorSpec]
    config: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Respelling:
    """Each tensor of a target, and where a source has it.

    Attributes:
        names: Names of the target to names of the source, of tensors that both store in one form.
        converted: Names of the target that the source stores in another form.
        unmatched_source: Names of the source without a counterpart.
        unmatched_target: Names of the target without a counterpart.
        rule: How the names differ, for a report; None where they are equal.
        add: The prefix that the source's names miss.
        remove: The prefix that the source's names have too much.
    """

    names: Mapping[str, str]
    converted: frozenset[str]
    unmatched_source: tuple[str, ...]
    unmatched_target: tuple[str, ...]
    rule: str | None
    add: str = ""
    remove: str = ""
    _layouts: "tuple[Layout, Mapping[str, str], Layout] | None" = None

    def convert(self, source: TensorSource) -> TensorSource:
        """Give what the source stores in another form, in the target's.

        Args:
            source: The source's tensors, or others of the same names.

        Returns:
            The tensors of ``converted``, computed as they are read; tensors of equal form are among them.
        """
        assert self._layouts is not None
        ours, memory, theirs = self._layouts
        return AsStored(_Renamed(InMemory(source, ours), memory), theirs)

    def of_source(self, name: str) -> str:
        """Spell a name of the target with the source's prefix.

        Args:
            name: As the target spells it.

        Returns:
            The same with the prefix that the source's names have and without the one that they miss; unchanged where
            the source has a tensor of this very name.
        """
        if self.names.get(name) == name or not name.startswith(self.add):
            return name
        return self.remove + name.removeprefix(self.add)


def respell(source: Spelled, target: Spelled) -> Respelling:
    """Match the tensors of two models: by their names, else by transformers' own conversion tables.

    Args:
        source: Whose tensors are wanted.
        target: In whose spelling.

    Returns:
        The match; what it leaves unmatched is for the caller to judge.

    Raises:
        GradfixError: if two prefixes explain equally many names differently.
    """
    direct = match_names(source.specs, target.specs)
    plain = Respelling(
        {theirs: ours for ours, theirs in direct.names.items()},
        frozenset(),
        direct.unmatched_source,
        direct.unmatched_target,
        direct.rule if direct.add or direct.remove else None,
        direct.add,
        direct.remove,
    )
    if not plain.unmatched_source or not plain.unmatched_target:
        return plain
    tabled = _by_tables(source, target)
    return tabled if tabled is not None and _score(tabled) < _score(plain) else plain


def container(name: str) -> str | None:
    """Name the list of layers that a tensor is in.

    Args:
        name: The tensor's.

    Returns:
        What stands before the first number in its name; None where it has none.
    """
    found = _NUMBER.search(name)
    return name[: found.start()] if found is not None else None


def layer(name: str) -> str | None:
    """Name the layer that a tensor is in.

    Args:
        name: The tensor's.

    Returns:
        Its name up to the first number; None where it has none.
    """
    found = _NUMBER.search(name)
    return name[: found.end()] if found is not None else None


def _numbered(names: Iterable[str]) -> list[str]:
    return [name for name in names if container(name) is not None]


def _score(respelling: Respelling) -> tuple[int, int]:
    left = *respelling.unmatched_source, *respelling.unmatched_target
    return len(_numbered(left)), len(left)


def _by_tables(source: Spelled, target: Spelled) -> Respelling | None:
    models = skeleton(source.config), skeleton(target.config)
    public = public_layout(source.specs), public_layout(target.specs)
    if models == (None, None) and public == (None, None):
        return None
    ours = layout_in(models[0] or models[1], source.specs)
    theirs = layout_in(models[1] or models[0], target.specs)
    match = match_names(ours.memory_specs(source.specs), theirs.memory_specs(target.specs))
    of_source = {new: old for old, new in match.names.items()}
    names = {
        stored: ours.of_memory.get(of_source[memory], of_source[memory])
        for stored, memory in [*theirs.renamed.items(), *((name, name) for name in theirs.unknown)]
        if memory in of_source and of_source[memory] not in ours.parts_of_memory
    }
    names |= _same_parts(ours, theirs, of_source)
    converted = frozenset(
        [
            *(
                stored
                for part in theirs.parts
                if all(memory in of_source for memory in part.memory)
                for stored in part.stored
                if stored not in names
            ),
            *(
                stored
                for stored, memory in theirs.renamed.items()
                if of_source.get(memory) in ours.parts_of_memory
            ),
        ]
    )
    used = {*names.values()}
    for memory in match.names:
        used.update(stored for part in ours.parts_of_memory.get(memory, ()) for stored in part.stored)
        used.add(ours.of_memory.get(memory, memory))
    tables = "open_clip's or timm's names" if any(public) else "transformers' conversion tables"
    rule = tables + (f", {match.rule}" if match.add or match.remove else "")
    return Respelling(
        names,
        converted,
        tuple(
            name for name in source.specs if name not in used and not (public[0] and beside_the_model(name))
        ),
        tuple(
            name
            for name in target.specs
            if name not in names and name not in converted and not (public[1] and beside_the_model(name))
        ),
        rule,
        match.add,
        match.remove,
        (ours, of_source, theirs),
    )


def _same_parts(ours: Layout, theirs: Layout, of_source: Mapping[str, str]) -> dict[str, str]:
    """Pair stored tensors of parts that lie alike in both files, which need no conversion."""
    pairs: dict[str, str] = {}
    for memory, parts in theirs.parts_of_memory.items():
        others = ours.parts_of_memory.get(of_source.get(memory, ""), [])
        found = [
            (new, old)
            for part, other in zip(parts, others, strict=False)
            for new, old in zip(part.stored, other.stored, strict=False)
        ]
        alike = len(parts) == len(others) and all(
            part.start == other.start and len(part.stored) == len(other.stored)
            for part, other in zip(parts, others, strict=False)
        )
        if alike and all(new.split(".")[-2:] == old.split(".")[-2:] for new, old in found):
            pairs |= dict(found)
    return pairs


@dataclass(frozen=True)
class _Renamed:
    """A source under other names: ``names`` maps ours to theirs."""

    of: TensorSource
    names: Mapping[str, str]

    @cached_property
    def specs(self) -> Mapping[str, TensorSpec]:
        return {name: self.of.specs[old] for name, old in self.names.items() if old in self.of.specs}

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        return self.of.read(self.names[name], rows)
