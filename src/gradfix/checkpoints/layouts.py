"""How a model's tensors lie in its files, and how in memory: transformers' own conversion tables, both ways.

transformers renames weights while it loads them (ViT's ``encoder.layer.0`` becomes ``layers.0``), and stores some in
another form than it computes with: Mixtral's experts are a file's ``experts.3.w1.weight`` and ``experts.3.w3.weight``,
and a row of the module's ``experts.gate_up_proj``. A file may have either spelling, whatever its kind of model. Both
ways only move numbers, so they hold for task vectors and votes as they do for weights.
"""

import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn

from gradfix.checkpoints.tensors import TensorSource, TensorSpec, known_zero

_CONVERSION_ERRORS = (
    AttributeError,
    IndexError,
    KeyError,
    RuntimeError,
    StopIteration,
    TypeError,
    ValueError,
)
"""What transformers' operations raise on tensors that are not what the table expects."""


@dataclass(frozen=True)
class Part:
    """Stored tensors and the rows of tensors in memory that are made of them.

    Attributes:
        stored: Names in the file, with their shapes.
        memory: Names in the module, with the shapes of the rows.
        start: Number of the first row; rows of a part are one expert where experts are fused.
        to_memory: From stored tensors to those in memory, by name.
        to_stored: And back.
    """

    stored: Mapping[str, TensorSpec]
    memory: Mapping[str, TensorSpec]
    start: int
    to_memory: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] = field(repr=False, compare=False)
    to_stored: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] = field(repr=False, compare=False)


@dataclass(frozen=True)
class Layout:
    """Where each tensor of a file is in memory.

    Attributes:
        renamed: Names in the file to names in the module, of tensors that are the same in both.
        parts: What is stored in another form.
        unknown: Names in the file that the module has no place for.
    """

    renamed: Mapping[str, str]
    parts: tuple[Part, ...] = ()
    unknown: tuple[str, ...] = ()

    @cached_property
    def of_memory(self) -> dict[str, str]:
        """Names in the module to names in the file, of tensors that are the same in both."""
        return {memory: stored for stored, memory in self.renamed.items()}

    @cached_property
    def parts_of_memory(self) -> dict[str, list[Part]]:
        """The parts that each tensor in memory is made of, in order."""
        found: dict[str, list[Part]] = {}
        for part in sorted(self.parts, key=lambda part: part.start):
            for name in part.memory:
                found.setdefault(name, []).append(part)
        return found

    @cached_property
    def part_of_stored(self) -> dict[str, Part]:
        """The part that each stored tensor belongs to."""
        return {name: part for part in self.parts for name in part.stored}

    def memory_specs(self, specs: Mapping[str, TensorSpec]) -> dict[str, TensorSpec]:
        """Give the shapes of the tensors in memory.

        Args:
            specs: The stored ones.

        Returns:
            By name in the module; what the module has no place for under its stored name.
        """
        found = {memory: specs[stored] for stored, memory in self.renamed.items() if stored in specs}
        for name, parts in self.parts_of_memory.items():
            pieces = [part.memory[name] for part in parts]
            rows = sum(piece.shape[0] for piece in pieces) if len(pieces) > 1 else None
            shape = pieces[0].shape if rows is None else (rows, *pieces[0].shape[1:])
            dtype = next((specs[stored].dtype for stored in parts[0].stored if stored in specs), None)
            found[name] = TensorSpec(dtype or pieces[0].dtype, shape)
        for name in self.unknown:
            if name in specs:
                found.setdefault(name, specs[name])
        return found


def identity(names: Iterable[str]) -> Layout:
    """Lay out a model that transformers does not know: it stores what it computes with.

    Args:
        names: Of the file.

    Returns:
        Every name for itself.
    """
    return Layout({name: name for name in names})


def layout_of(model: nn.Module | None, specs: Mapping[str, TensorSpec]) -> Layout:
    """Find how a file's tensors lie in a module, as ``from_pretrained`` would.

    Args:
        model: A module of transformers, with memory or without; any other stores its own names.
        specs: The file's tensors.

    Returns:
        The layout.
    """
    if model is None or not hasattr(model, "save_pretrained"):
        return identity(specs)
    table = _Table(model, specs)
    renamed: dict[str, str] = {}
    groups: dict[str, list[_Stored]] = {}
    unknown: list[str] = []
    for name in sorted(specs, key=_natural):
        entry = table.find(name)
        if entry.memory not in table.state:
            unknown.append(name)
        elif entry.converter is None:
            taken = entry.memory in renamed.values() if entry.memory != name else False
            (unknown.append(name) if taken else renamed.__setitem__(name, entry.memory))
        else:
            groups.setdefault(entry.memory, []).append(entry)
    parts: list[Part] = []
    for memory, members in groups.items():
        found = _parts(model, memory, members, specs)
        parts += found
        if not found:
            unknown += [member.name for member in members]
    return Layout(renamed, tuple(parts), tuple(unknown))


@dataclass(frozen=True)
class _Stored:
    """A stored tensor and what the table makes of its name."""

    name: str
    renamed: str
    memory: str
    converter: Any = None
    pattern: str = ""


class _Table:
    """transformers' table for one module, applied to names."""

    def __init__(self, model: Any, specs: Mapping[str, TensorSpec]) -> None:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter

        entries = get_model_conversion_mapping(model)
        self.state = set(model.state_dict().keys())
        self._renamings = [entry for entry in entries if not isinstance(entry, WeightConverter)]
        self._converters = [entry for entry in entries if isinstance(entry, WeightConverter)]
        self._prefix: str = getattr(model, "base_model_prefix", "") or ""
        self._surplus = ""
        self._surplus = self._find_surplus(specs)

    def find(self, name: str) -> _Stored:
        """Rename as ``from_pretrained`` does: all renamings, then one conversion; or not at all where that fits."""
        own = name.removeprefix(self._surplus)
        renamed = own
        for entry in self._renamings:
            renamed, _ = entry.rename_source_key(renamed)
        for converter in self._converters:
            memory, pattern = converter.rename_source_key(renamed)
            if pattern is not None and (memory := self._prefixed(memory)) in self.state:
                return _Stored(name, renamed, memory, converter, pattern)
        memory = self._prefixed(renamed)
        if memory not in self.state and self._prefixed(own) in self.state:
            return _Stored(name, own, self._prefixed(own))
        return _Stored(name, renamed, memory)

    def _prefixed(self, name: str) -> str:
        prefix = f"{self._prefix}."
        if self._prefix and name not in self.state:
            if name.startswith(prefix) and name.removeprefix(prefix) in self.state:
                return name.removeprefix(prefix)
            if prefix + name in self.state:
                return prefix + name
        return name

    def _find_surplus(self, specs: Mapping[str, TensorSpec]) -> str:
        """Find a first component that all names have and the module's lack, as trainers leave it."""
        first = {name.split(".", 1)[0] for name in specs}
        if len(first) != 1 or any(self.find(name).memory in self.state for name in specs):
            return ""
        return f"{first.pop()}."


def _parts(
    model: nn.Module, memory: str, members: list[_Stored], specs: Mapping[str, TensorSpec]
) -> list[Part]:
    """Cut a conversion into parts, one an expert where it stacks experts; none where the table doesn't fit."""
    numbered = [(_number(member), member) for member in members]
    if not _by_expert(members[0].converter) or any(number is None for number, _ in numbered):
        part = _part(model, memory, members, specs, 0)
        return [part] if part is not None else []
    experts: dict[int, list[_Stored]] = {}
    for number, member in numbered:
        experts.setdefault(number or 0, []).append(member)
    if sorted(experts) != list(range(len(experts))):
        return []
    found = [_part(model, memory, experts[number], specs, number) for number in sorted(experts)]
    return [part for part in found if part is not None] if all(found) else []


def _by_expert(converter: Any) -> bool:
    """Whether row i of what is in memory is made of what is stored of expert i alone."""
    first, *others = converter.operations
    return (
        type(first).__name__ == "MergeModulelist"
        and first.dim == 0
        and all(
            (type(other).__name__ == "Concatenate" and other.dim > 0)
            or (
                type(other).__name__ == "Transpose"
                and min(other.dim0, other.dim1) > 0
                and not getattr(other, "check_dims", False)
            )
            for other in others
        )
    )


def _numbered(member: _Stored) -> re.Match[str] | None:
    pattern = member.pattern.lstrip("^")
    return re.search(pattern.replace("*", r"(\d+)", 1), member.renamed) if "*" in pattern else None


def _number(member: _Stored) -> int | None:
    found = _numbered(member)
    return int(found[1]) if found is not None else None


def _part(
    model: nn.Module, memory: str, members: list[_Stored], specs: Mapping[str, TensorSpec], number: int
) -> Part | None:
    """Make one part, if the table's operations and their inverses hold for these shapes."""
    converter = members[0].converter
    back = {_first_spelling(member): member.name for member in members}
    known: Any = model

    def to_memory(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        instance = deepcopy(converter)
        for member in members:
            instance.add_tensor(memory, member.name, member.pattern, tensors[member.name])
        return _single(instance.convert(memory, model=known, config=known.config))

    def to_stored(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        instance = converter.reverse_transform()
        for name, tensor in tensors.items():
            renamed, pattern = instance.rename_source_key(name)
            instance.add_tensor(renamed, name, pattern, tensor)
        key, _ = instance.rename_source_key(next(iter(tensors)))
        found = _single(instance.convert(key, model=known, config=known.config))
        # the module's prefix may stand before a name that the file has without
        return {stored: _ending(found, renamed) for renamed, stored in back.items()}

    stored = {member.name: specs[member.name] for member in members}
    try:
        shapes = to_memory({name: torch.empty(spec.shape, device="meta") for name, spec in stored.items()})
        again = to_stored(shapes)
    except _CONVERSION_ERRORS:
        return None
    if any(tuple(again[name].shape) != spec.shape for name, spec in stored.items()):
        return None
    dtype = next(iter(stored.values())).dtype
    made = {name: TensorSpec(dtype, tuple(value.shape)) for name, value in shapes.items()}
    return Part(stored, made, number, to_memory, to_stored)


def _first_spelling(member: _Stored) -> str:
    """A member's name as the inverse of a part of one expert gives it: with number 0."""
    found = _numbered(member)
    if found is None:
        return member.renamed
    return member.renamed[: found.start(1)] + "0" + member.renamed[found.end(1) :]


def _single(found: Mapping[str, Any]) -> dict[str, Tensor]:
    return {name: value[0] if isinstance(value, list) else value for name, value in found.items()}


def _ending(found: Mapping[str, Tensor], name: str) -> Tensor:
    if name in found:
        return found[name]
    return next(value for key, value in found.items() if key.endswith("." + name) or name.endswith("." + key))


def _natural(name: str) -> list[tuple[int, int | str]]:
    """Sort numbers in names as numbers."""
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in name.split(".")]


@dataclass(frozen=True)
class InMemory:
    """Tensors of a file in the form that the module has; converted as they are read, an expert at a time."""

    of: TensorSource
    layout: Layout
    _kept: "_Kept" = field(default_factory=lambda: _Kept(), repr=False, compare=False)

    @cached_property
    def specs(self) -> Mapping[str, TensorSpec]:
        """By name in the module; tensors of which a stored part is missing are left out."""
        specs = self.layout.memory_specs(self.of.specs)
        return {
            name: spec
            for name, spec in specs.items()
            if all(
                stored in self.of.specs
                for part in self.layout.parts_of_memory.get(name, ())
                for stored in part.stored
            )
        }

    def known_zero(self, name: str) -> bool:
        """Tell whether a tensor is 0 everywhere, where that is known without reading it."""
        parts = self.layout.parts_of_memory.get(name)
        if parts is None:
            return known_zero(self.of, self.layout.of_memory.get(name, name))
        return all(known_zero(self.of, stored) for part in parts for stored in part.stored)

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        """Read a tensor, or a contiguous range of its rows.

        Args:
            name: A key of ``specs``.
            rows: Range of the first dimension; None for all of it.

        Returns:
            The tensor in the dtype of what is stored.
        """
        parts = self.layout.parts_of_memory.get(name)
        if parts is None:
            return self.of.read(self.layout.of_memory.get(name, name), rows)
        if len(parts) == 1:
            whole = self._part(parts[0])[name]
            return whole if rows is None else whole[rows]
        start, stop, _ = (rows or slice(None)).indices(self.specs[name].shape[0])
        return torch.cat(
            [self._part(part)[name] for part in parts if start <= part.start < stop]
            or [self._part(parts[0])[name][:0]]
        )

    def _part(self, part: Part) -> Mapping[str, Tensor]:
        return self._kept.get(
            part, lambda: part.to_memory({name: self.of.read(name) for name in part.stored})
        )


@dataclass(frozen=True)
class AsStored:
    """Tensors of a module in the form that a file has; converted as they are read, an expert at a time."""

    of: TensorSource
    layout: Layout
    _kept: "_Kept" = field(default_factory=lambda: _Kept(), repr=False, compare=False)

    @cached_property
    def specs(self) -> Mapping[str, TensorSpec]:
        """By name in the file; tensors of which a part in memory is missing are left out."""
        return dict(self._specs())

    def _specs(self) -> Iterator[tuple[str, TensorSpec]]:
        for stored, memory in self.layout.renamed.items():
            if memory in self.of.specs:
                yield stored, self.of.specs[memory]
        for part in self.layout.parts:
            if all(name in self.of.specs for name in part.memory):
                dtype = self.of.specs[next(iter(part.memory))].dtype
                for stored, spec in part.stored.items():
                    yield stored, TensorSpec(dtype, spec.shape)
        for name in self.layout.unknown:
            if name in self.of.specs:
                yield name, self.of.specs[name]

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        """Read a tensor, or a contiguous range of its rows.

        Args:
            name: A key of ``specs``.
            rows: Range of the first dimension; None for all of it.

        Returns:
            The tensor in the dtype of what is in memory.
        """
        part = self.layout.part_of_stored.get(name)
        if part is None:
            return self.of.read(self.layout.renamed.get(name, name), rows)
        whole = self._kept.get(part, lambda: part.to_stored(self._rows(part)))[name]
        return whole if rows is None else whole[rows]

    def _rows(self, part: Part) -> dict[str, Tensor]:
        several = {name: len(self.layout.parts_of_memory[name]) > 1 for name in part.memory}
        return {
            name: self.of.read(name, slice(part.start, part.start + spec.shape[0]) if several[name] else None)
            for name, spec in part.memory.items()
        }


class _Kept:
    """The last converted parts: what reads by rows asks for the same part many times."""

    MOST = 2

    def __init__(self) -> None:
        self._values: OrderedDict[int, tuple[Part, Mapping[str, Tensor]]] = OrderedDict()
        self._lock = Lock()

    def get(self, part: Part, make: Callable[[], Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
        with self._lock:
            if id(part) not in self._values:
                while len(self._values) >= self.MOST:
                    self._values.popitem(last=False)
                self._values[id(part)] = (part, make())
            return self._values[id(part)][1]
