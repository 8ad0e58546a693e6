"""The counted votes: integers a coordinate, and what is needed to trust them later."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from gradfix.checkpoints.expressions import Elementwise, Expression, Gathered, Given, Selection
from gradfix.checkpoints.fingerprint import CONTENT, check_content, content_fingerprint, fingerprints
from gradfix.checkpoints.reading.safetensors_file import SafetensorsFile
from gradfix.checkpoints.tensors import TensorSource, TensorSpec
from gradfix.checkpoints.writing.single import write_safetensors
from gradfix.errors import GradfixError, listed
from gradfix.votes.metadata import VoteRecord, counts_dtype
from gradfix.votes.stability import Stability, stability_from_histogram


class Votes(Mapping[str, Tensor]):
    """Votes for the direction of descent: v = Σ_n sign(−∇ℓ_n), an integer in [−N, N] a coordinate.

    A mapping of parameter names to integers of the parameter's shape: int8, int16 where N > 127. With
    ``vote="mean"`` a count is sign(−g) ∈ {−1, 0, 1}. Votes loaded from a file are read a tensor, or a
    range of rows, at a time.

    Attributes:
        record: Everything beside the counts; its fields are attributes of the votes too.
    """

    def __init__(self, counts: Mapping[str, Tensor] | TensorSource, record: VoteRecord) -> None:
        self.record = record
        self._source: TensorSource = Given(dict(counts)) if isinstance(counts, Mapping) else counts

    @property
    def vote(self) -> str:
        """``"majority"`` or ``"mean"``."""
        return self.record.vote

    @property
    def samples(self) -> int:
        """N, how many samples voted."""
        return self.record.samples

    @property
    def sample_ids(self) -> tuple[str, ...]:
        """One id a sample, in the order counted."""
        return self.record.sample_ids

    @property
    def dtype(self) -> str:
        """Number format in which gradients were computed."""
        return self.record.dtype

    @property
    def seed(self) -> int | None:
        """Seed of the draw of samples, where there is one."""
        return self.record.seed

    @property
    def fingerprints(self) -> Mapping[str, str]:
        """Parameter name to the fingerprint of the weights at which votes were counted."""
        return self.record.fingerprints

    @property
    def uncovered(self) -> tuple[str, ...]:
        """Parameters that were asked for and got no gradient from any sample: they have no votes."""
        return self.record.uncovered

    @property
    def plain(self) -> Mapping[str, str]:
        """Parameters that the one-sample-at-a-time loop counted, with the reason."""
        return self.record.plain

    @property
    def specs(self) -> Mapping[str, TensorSpec]:
        """Dtype and shape of each tensor of counts."""
        return self._source.specs

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        """Read a tensor of counts, or a contiguous range of its first dimension.

        Args:
            name: The parameter.
            rows: Range of the first dimension; all of it by default.

        Returns:
            Integers of the parameter's shape, or of those rows.
        """
        return self._source.read(name, rows)

    def __getitem__(self, name: str) -> Tensor:
        return self.read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.specs)

    def __len__(self) -> int:
        return len(self.specs)

    def __contains__(self, name: object) -> bool:
        return name in self.specs

    def __repr__(self) -> str:
        return f"Votes({self.vote}, {self.samples} samples, {len(self)} tensors, {self.dtype})"

    def sign(self) -> Elementwise:
        """Give ŝ, the sign of v, int8 in {−1, 0, 1}, tensor by tensor; a tie is 0 and agrees with nothing."""
        return Elementwise(self, lambda counts: counts.sign().to(torch.int8), torch.int8)

    def margin(self) -> Elementwise:
        """Give abs(v)/N, float32 in [0, 1], a tensor at a time.

        Returns:
            How united the samples are on each coordinate. For ``vote="mean"`` there is one vote, and so 1
            wherever there is a sign.
        """
        ballots = float(max(self.samples, 1)) if self.vote == "majority" else 1.0
        return Elementwise(self, lambda counts: counts.abs().to(torch.float32) / ballots, torch.float32)

    def tie_rate(self, name: str | None = None) -> float:
        """Share of coordinates with v = 0.

        Args:
            name: One parameter; all by default.

        Returns:
            A number in [0, 1]; 0 where there are no coordinates.
        """
        names = [name] if name is not None else list(self)
        total = sum(self.specs[each].numel for each in names)
        decided = sum(
            int(torch.count_nonzero(self.read(each, rows)))
            for each in names
            for rows in self.specs[each].row_blocks()
        )
        return (total - decided) / total if total else 0.0

    def histogram(self) -> np.ndarray:
        """Count coordinates by abs(v).

        Returns:
            Shape (N + 1,), int64.
        """
        total = np.zeros(self.samples + 1, dtype=np.int64)
        for name, spec in self.specs.items():
            for rows in spec.row_blocks():
                # absolute values in a wider type: |−128| does not fit int8
                counts = self.read(name, rows).reshape(-1).to(torch.int32).abs()
                total += torch.bincount(counts, minlength=self.samples + 1).cpu().numpy()
        return total

    def stability(self) -> Stability:
        """Estimate how far the signs would change if the samples were drawn again.

        Returns:
            The expected agreement between halves of a random split, exact from the counts, and that with
            a redraw of all N.

        Raises:
            GradfixError: For fewer than two samples, and for ``vote="mean"``, which keeps no counts.
        """
        if self.vote != "majority" or self.samples < 2:
            raise GradfixError(
                f"{self!r} can't be split in halves; expected vote='majority' and at least 2 samples: count again "
                "with vote='majority' or more samples"
            )
        return stability_from_histogram(self.histogram(), self.samples)

    def check_target(self, target: nn.Module | TensorSource, names: Mapping[str, str] | None = None) -> None:
        """Refuse a target that these votes were not counted at.

        Args:
            target: A model in memory or a checkpoint.
            names: Name in the votes to name in the target, where they differ (known prefixes).

        Raises:
            GradfixError: Naming the first tensors that are missing or hold other weights.
        """
        names = names or {}
        there = fingerprints(target, [names.get(name, name) for name in self])
        missing = [name for name in self if names.get(name, name) not in there]
        if missing:
            raise GradfixError(
                f"the target lacks {listed(missing)} of the {len(self)} tensors that got votes; "
                "apply the votes to the model they were counted at"
            )
        other = [name for name in self if there[names.get(name, name)] != self.fingerprints.get(name)]
        if other:
            raise GradfixError(
                f"the target's weights are not those the votes were counted at: {listed(other)} of {len(self)} "
                "tensors differ; count votes at this target, or apply them to their own"
            )

    def renamed(self, names: Mapping[str, str]) -> "Votes":
        """Give the votes the names under which a checkpoint stores the parameters.

        Args:
            names: Parameter name to checkpoint name; see :func:`gradfix.checkpoints.architecture.checkpoint_names`.

        Returns:
            The same counts; parameters that ``names`` lacks have no tensor in the checkpoint and are left out.
        """
        kept = {name: names[name] for name in self if name in names}
        record = replace(
            self.record,
            fingerprints={
                new: self.fingerprints[old] for old, new in kept.items() if old in self.fingerprints
            },
            uncovered=tuple(names.get(name, name) for name in self.uncovered),
            plain={names.get(name, name): reason for name, reason in self.plain.items()},
        )
        return Votes(Selection(self, {new: old for old, new in kept.items()}), record)

    def joined(self, counts: TensorSource, fingerprints: Mapping[str, str]) -> "Votes":
        """Take in what the same samples voted on other tensors.

        Args:
            counts: Integers by name; none of them is here already.
            fingerprints: Of the weights at which they were counted.

        Returns:
            All of them.
        """
        record = replace(self.record, fingerprints={**self.fingerprints, **fingerprints})
        sources: dict[str, TensorSource] = {
            **dict.fromkeys(self.specs, self),
            **dict.fromkeys(counts.specs, counts),
        }
        return Votes(Gathered(sources), record)

    def __add__(self, other: "Votes") -> "Votes":
        """Add the votes of other samples for the same target."""
        if not isinstance(other, Votes):
            return NotImplemented
        for what, mine, theirs in (("vote", self.vote, other.vote), ("dtype", self.dtype, other.dtype)):
            if mine != theirs:
                raise GradfixError(f"can't add votes of {what} {mine!r} and {theirs!r}; count both alike")
        if self.vote != "majority":
            raise GradfixError(
                "votes of kind 'mean' keep no sums and can't be added; count all samples together"
            )
        common = self.fingerprints.keys() & other.fingerprints.keys()
        differ = sorted(name for name in common if self.fingerprints[name] != other.fingerprints[name])
        if differ or (self and other and not common):
            raise GradfixError(
                f"can't add votes of different targets: {listed(differ or list(self))} differ; count both "
                f"at one"
            )
        overlap = sorted(set(self.sample_ids) & set(other.sample_ids))
        if overlap:
            raise GradfixError(
                f"can't add votes: {len(overlap)} samples are in both, first {overlap[0]}; add disjoint "
                f"samples only"
            )
        record = replace(
            self.record,
            samples=self.samples + other.samples,
            sample_ids=self.sample_ids + other.sample_ids,
            seed=self.seed if self.seed == other.seed else None,
            fingerprints={**self.fingerprints, **other.fingerprints},
            uncovered=tuple(
                n for n in (*self.uncovered, *other.uncovered) if n not in self and n not in other
            ),
            plain={**self.plain, **other.plain},
        )
        record = replace(record, uncovered=tuple(dict.fromkeys(record.uncovered)))
        return Votes(_Added((self, other), counts_dtype(record.samples)), record)

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write the counts and all that is known of them to one safetensors file.

        Args:
            path: Where to; it appears when it is whole.
            overwrite: Replace a file that is there.

        Returns:
            The path.

        Raises:
            GradfixError: Where the file exists, or can't be written.
        """
        metadata = self.record.to_metadata()
        metadata[CONTENT] = content_fingerprint(metadata, self)
        write_safetensors(
            Path(path), self.specs, lambda name: [self.read(name)], metadata, overwrite=overwrite
        )
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> "Votes":
        """Open a file of votes; the counts are read when asked for.

        Args:
            path: What :meth:`save` wrote.

        Returns:
            The votes.

        Raises:
            GradfixError: Where the file holds something else, or votes of a later format.
        """
        source = SafetensorsFile(path)
        record = VoteRecord.from_metadata(source.metadata, path)
        check_content(path, source.metadata, source, "count the votes again")
        return cls(_InBounds(source, record.samples if record.vote == "majority" else 1), record)


@dataclass(frozen=True)
class _Added(Expression):
    """Sums of votes, read lazily; a tensor that one of them lacks is the other's."""

    parts: tuple[Votes, ...]
    dtype: torch.dtype

    @cached_property
    def specs(self) -> Mapping[str, TensorSpec]:
        """All tensors, in integers wide enough for the sums."""
        found = {name: spec for votes in self.parts for name, spec in votes.specs.items()}
        return {name: TensorSpec(self.dtype, spec.shape) for name, spec in found.items()}

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        """Add up one range of rows."""
        first, *others = (votes.read(name, rows) for votes in self.parts if name in votes)
        total = first.to(self.dtype, copy=True)
        for other in others:
            total += other
        return total


class _InBounds:
    """Votes in a file, of which every block is looked at: no coordinate has more votes than there were samples."""

    def __init__(self, file: SafetensorsFile, most: int) -> None:
        self._file, self._most = file, most
        for name, spec in file.specs.items():
            if spec.dtype not in {torch.int8, torch.int16, torch.int32}:
                raise GradfixError(
                    f"{file.path}: {name}: expected whole numbers, found {spec.dtype}; count the votes again"
                )

    @property
    def specs(self) -> Mapping[str, TensorSpec]:
        """Dtype and shape of each tensor of counts."""
        return self._file.specs

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        """Read rows; counts out of bounds are refused."""
        counts = self._file.read(name, rows)
        if counts.numel() and (int(counts.max()) > self._most or int(counts.min()) < -self._most):
            raise GradfixError(
                f"{self._file.path}: {name}: has more votes than the {self._most} that were cast; count the votes again"
            )
        return counts
