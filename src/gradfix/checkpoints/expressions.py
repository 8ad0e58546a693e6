"""Lazy sources of tensors, the terms that task vectors are built from. Each reads only the rows asked of it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from threading import Lock

import torch
from torch import Tensor
from typing_extensions import override

from gradfix.arithmetic import decided_and_net, is_finite, nonzero_and_square, subtract
from gradfix.checkpoints.respelling import Respelling
from gradfix.checkpoints.tensors import TensorSource, TensorSpec, known_zero
from gradfix.errors import GradfixError


def require_finite(block: Tensor, owner: str, name: str) -> None:
    """Refuse a tensor that holds NaN or infinity: ``torch.sign(nan)`` is 0, so it would pass silently.

    Args:
        block: Rows of the tensor.
        owner: The model, as the reader knows it.
        name: The tensor's key.

    Raises:
        GradfixError: naming model, key and count.
    """
    if is_finite(block):
        return
    bad = int((~torch.isfinite(block)).sum())
    raise GradfixError(
        f"{owner}: {name}: expected finite numbers, found {bad} NaN or infinite; "
        "the file is damaged or the training diverged"
    )


@dataclass
class Tally:
    """What a mask kept of one tensor, over the blocks read so far.

    Blocks may come from several threads; in the last digit the sums then depend on the order.

    Attributes:
        coordinates: Where τ is not 0.
        kept: Of those, where the masked vector is not 0 either.
        square: Σ τ_i².
        kept_square: Σ (m_i τ_i)².
        voted: Coordinates on which samples voted, τ_i = 0 included; 0 where the mask asked no votes.
        tied: Of those, where v_i = 0.
        net: Σ abs(v_i) over them.
    """

    coordinates: int = 0
    kept: int = 0
    square: float = 0.0
    kept_square: float = 0.0
    voted: int = 0
    tied: int = 0
    net: int = 0

    def add(self, before: Tensor, after: Tensor) -> None:
        """Count one block.

        Args:
            before: τ.
            after: m ⊙ τ, of the same shape.
        """
        (coordinates, square), (kept, kept_square) = nonzero_and_square(before), nonzero_and_square(after)
        with _COUNTING:
            self.coordinates += coordinates
            self.kept += kept
            self.square += square
            self.kept_square += kept_square

    def add_votes(self, votes: Tensor) -> None:
        """Count the votes of one block.

        Args:
            votes: v, integers; never the lowest number of their type, whose absolute value has no room in it.
        """
        decided, net = decided_and_net(votes)
        with _COUNTING:
            self.voted += votes.numel()
            self.tied += votes.numel() - decided
            self.net += net


_COUNTING = Lock()
"""Held while a tally changes: so short that one for all tallies is enough."""


class Expression:
    """What the lazy sources share: a mask below may have counted what it kept while it was read."""

    def tally(self, name: str) -> Tally | None:
        """Tell what the mask kept of a tensor, over the blocks read so far.

        Args:
            name: A key of the source.

        Returns:
            The counts; None where no mask is involved.
        """
        return None

    def known_zero(self, name: str) -> bool:
        """Tell whether a tensor is 0 everywhere, where that is known without reading it.

        Args:
            name: A key of the source.

        Returns:
            False where it is not known.
        """
        return False


def tally_of(source: TensorSource, name: str) -> Tally | None:
    """Ask a source for a tally if it is one that has them.

    Args:
        source: Any source; files have no tallies.
        name: The tensor's key.

    Returns:
        The counts, or None.
    """
    return source.tally(name) if isinstance(source, Expression) else None


@dataclass(frozen=True)
class Selection(Expression):
    """Some tensors of a source under other names, optionally in another dtype: ``names`` maps ours to theirs."""

    of: TensorSource
    names: Mapping[str, str]
    dtype: torch.dtype | None = None

    @cached_property
    def specs(self) -> Mapping[str, TensorSpec]:
        """The selected tensors, under the new names."""
        found = {name: self.of.specs[theirs] for name, theirs in self.names.items()}
        return {name: TensorSpec(self.dtype or spec.dtype, spec.shape) for name, spec in found.items()}

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        """Read the tensor that ``name`` stands for."""
        block = self.of.read(self.names[name], rows)
        return block if self.dtype is None else block.to(self.dtype)

    @override
    def tally(self, name: str) -> Tally | None:
        return tally_of(self.of, self.names[name])

    @override
    def known_zero(self, name: str) -> bool:
        return known_zero(self.of, self.names[name])


@dataclass(frozen=True)
class Aliased(Expression):
    """A source whose tied tensors can be read under their other names too: ``ties`` maps those to the first."""

    of: TensorSource
    ties: Mapping[str, str]

    @cached_property
    def specs(self) -> Mapping[str, TensorSpec]:
        """The tensors of the source, tied ones under each of their names."""
        own = self.of.specs
        return {**own, **{alias: own[name] for alias, name in self.ties.items() if name in own}}

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        """Read by any name."""
        return self.of.read(self.ties.get(name, name), rows)

    def tally(self, name: str) -> Tally | None:
        """Tell what the mask below kept."""
        return tally_of(self.of, self.ties.get(name, name))

    @override
    def known_zero(self, name: str) -> bool:
        return known_zero(self.of, self.ties.get(name, name))


@dataclass(frozen=True)
class Given(Expression):
    """Tensors that are there already, in memory or mapped from a file."""

    tensors: Mapping[str, Tensor]

    @cached_property
    def specs(self) -> Mapping[str, TensorSpec]:
        """Their dtypes and shapes."""
        return {name: TensorSpec(value.dtype, tuple(value.shape)) for name, value in self.tensors.items()}

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        """Show one range of rows."""
        return self.tensors[name] if rows is None else self.tensors[name][rows]


@dataclass(frozen=True)
class Padded(Expression):
    """A source with zeros for the tensors that it lacks of another one."""

    of: TensorSource
    like: TensorSource

    @cached_property
    def specs(self) -> Mapping[str, TensorSpec]:
        """The other's tensors."""
        return self.like.specs

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        """Read one range of rows, or make zeros of its shape."""
        if name in self.of.specs:
            return self.of.read(name, rows)
        spec = self.specs[name]
        # Expanded, not filled: as many zeros as one takes no memory.
        whole = torch.zeros((), dtype=spec.dtype).expand(spec.shape)
        return whole if rows is None else whole[rows]

    @override
    def tally(self, name: str) -> Tally | None:
        return tally_of(self.of, name) if name in self.of.specs else None


@dataclass(frozen=True)
class Checked(Expression):
    """A source of which every block is looked at for NaN and infinity; ``owner`` names it in messages."""

    of: TensorSource
    owner: str

    @cached_property
    def specs(self) -> Mapping[str, TensorSpec]:
        """The tensors of the source."""
        return self.of.specs

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        """Read one range of rows; numbers that are not finite are refused."""
        block = self.of.read(name, rows)
        require_finite(block, self.owner, name)
        return block

    @override
    def tally(self, name: str) -> Tally | None:
        return tally_of(self.of, name)


@dataclass(frozen=True)
class Remembered(Expression):
    """A source that is read again and again, of which the first tensors that find room stay in memory.

    Of many small tensors each read takes longer than what is done with it. What is read must not be written to.
    """

    of: TensorSource
    room: int
    _kept: dict[str, Tensor] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def specs(self) -> Mapping[str, TensorSpec]:
        """The tensors of the source."""
        return self.of.specs

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        """Read one range of rows."""
        whole = self._kept.get(name)
        if whole is None:
            if self.specs[name].nbytes > self.room - sum(one.nbytes for one in self._kept.values()):
                return self.of.read(name, rows)
            whole = self._kept[name] = self.of.read(name)
        return whole if rows is None else whole[rows]


@dataclass(frozen=True)
class Gathered(Expression):
    """Tensors of several sources under one roof: ``sources`` maps each name to the source that has it."""

    sources: Mapping[str, TensorSource]

    @cached_property
    def specs(self) -> Mapping[str, TensorSpec]:
        """All tensors of all sources."""
        return {name: source.specs[name] for name, source in self.sources.items()}

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        """Read from the source that has ``name``."""
        return self.sources[name].read(name, rows)

    def tally(self, name: str) -> Tally | None:
        """Tell what the mask below kept."""
        return tally_of(self.sources[name], name)


def respelled(source: TensorSource, respelling: Respelling, names: Iterable[str]) -> TensorSource:
    """Give tensors of a source as a target spells and stores them.

    Args:
        source: Of the names that the respelling knows as the source's.
        respelling: Where the source has each tensor of the target.
        names: The tensors wanted, by the target's names.

    Returns:
        The same numbers, read lazily.
    """
    wanted = list(names)
    plain = Selection(source, {name: respelling.names[name] for name in wanted if name in respelling.names})
    if len(plain.names) == len(wanted):
        return plain
    converted = respelling.convert(source)
    return Gathered({name: plain if name in plain.names else converted for name in wanted})


@dataclass(frozen=True)
class Difference(Expression):
    """First − second in float32, of two sources with the same tensors; ``owners`` name them in messages."""

    first: TensorSource
    second: TensorSource
    owners: tuple[str, str]

    @cached_property
    def specs(self) -> Mapping[str, TensorSpec]:
        """The tensors of the first, in float32."""
        return {name: TensorSpec(torch.float32, spec.shape) for name, spec in self.first.specs.items()}

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        """Subtract one range of rows; NaN and infinity in either source are refused, naming its owner."""
        first, second = self.first.read(name, rows), self.second.read(name, rows)
        difference, finite = subtract(first, second)
        if not finite:
            require_finite(first, self.owners[0], name)
            require_finite(second, self.owners[1], name)
            raise GradfixError(
                f"{self.owners[0]}: {name}: its difference to {self.owners[1]} leaves the range of float32; "
                "one of the two is damaged"
            )
        return difference


@dataclass(frozen=True)
class Sum(Expression):
    """Σ_k c_k τ_k of sources with the same tensors."""

    terms: Sequence[tuple[float, TensorSource]]

    @cached_property
    def specs(self) -> Mapping[str, TensorSpec]:
        """The tensors of the first term, which all share."""
        return self.terms[0][1].specs

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        """Add one range of rows of every term."""
        (coefficient, source), *others = self.terms
        total = source.read(name, rows) * coefficient  # a copy, whatever the source
        for coefficient, source in others:
            total.add_(source.read(name, rows).mul(coefficient))
        require_finite(total, "the sum of task vectors", name)
        return total


@dataclass(frozen=True)
class Elementwise(Expression):
    """A function of each coordinate alone, which may therefore be computed block by block.

    Attributes:
        of: What it is computed from.
        function: Of a block.
        dtype: Of what it gives; None where that is the block's own.
    """

    of: TensorSource
    function: Callable[[Tensor], Tensor]
    dtype: torch.dtype | None = None

    @cached_property
    def specs(self) -> Mapping[str, TensorSpec]:
        """The tensors it is computed from, in the function's dtype."""
        specs = self.of.specs
        return {name: TensorSpec(self.dtype or spec.dtype, spec.shape) for name, spec in specs.items()}

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        """Compute one range of rows."""
        return self.function(self.of.read(name, rows))

    @override
    def tally(self, name: str) -> Tally | None:
        return tally_of(self.of, name)


@dataclass(frozen=True)
class MappedRows(Expression):
    """Tensors whose rows stand in another order: ``maps[name][i]`` is the row of ``of`` that row i shows.

    Attributes:
        of: Where rows come from.
        maps: By name, int64 of shape [rows]; −1 where ``of`` has no such row. Other tensors pass unchanged.
        fill: What stands in rows without a counterpart, read at the same place; None for zeros.
    """

    of: TensorSource
    maps: Mapping[str, Tensor]
    fill: TensorSource | None = None

    @cached_property
    def specs(self) -> Mapping[str, TensorSpec]:
        """The source's tensors, with as many rows as their map."""
        return {
            name: TensorSpec(spec.dtype, (len(self.maps[name]), *spec.shape[1:]))
            if name in self.maps
            else spec
            for name, spec in self.of.specs.items()
        }

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        """Read one range of rows, a run of consecutive source rows at a time."""
        if name not in self.maps:
            return self.of.read(name, rows)
        wanted = self.maps[name][rows if rows is not None else slice(None)]
        spec = self.specs[name]
        if self.fill is None:
            block = torch.zeros((len(wanted), *spec.shape[1:]), dtype=spec.dtype)
        else:
            block = self.fill.read(name, rows).to(spec.dtype, copy=True)
        # A run ends where the next row is not the next of the source; between two releases runs are long.
        ends = (wanted[1:] != wanted[:-1] + 1) | (wanted[:-1] < 0)
        breaks = torch.nonzero(ends).flatten().add(1).tolist()
        for start, end in zip([0, *breaks], [*breaks, len(wanted)], strict=True):
            if start < end and (first := int(wanted[start])) >= 0:
                block[start:end] = self.of.read(name, slice(first, first + end - start))
        return block

    @override
    def tally(self, name: str) -> Tally | None:
        return tally_of(self.of, name)
