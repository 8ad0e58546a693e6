"""Task vectors: what fine-tuning changed, τ = θ_A^ft − θ_A, as lazy expressions over files.

A :class:`TaskVector` reads nothing until a tensor, or a range of its rows, is asked for. Arithmetic builds a new
expression; its terms are read and combined block by block, so no operation holds more than a few blocks.
Differences are taken after upcasting to float32: in bfloat16 a subtraction loses the sign of small changes.
"""

import json
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import torch
from pydantic import BaseModel
from torch import Tensor
from typing_extensions import override

from gradfix._version import __version__
from gradfix.arithmetic import count_nonzero
from gradfix.checkpoints import Checkpoint, SafetensorsFile, TensorSource, TensorSpec, write_safetensors
from gradfix.checkpoints.backbone import refuse_other_backbone, refuse_strange_additions, weights_among
from gradfix.checkpoints.expressions import (
    Aliased,
    Checked,
    Difference,
    Elementwise,
    Expression,
    Gathered,
    MappedRows,
    Selection,
    Sum,
    Tally,
    respelled,
    tally_of,
)
from gradfix.checkpoints.fingerprint import (
    CONTENT,
    check_content,
    combined_fingerprint,
    content_fingerprint,
    fingerprints,
)
from gradfix.checkpoints.lora.factors import AdapterParts
from gradfix.checkpoints.model_config import ModelConfig
from gradfix.checkpoints.respelling import Respelling, Spelled, respell
from gradfix.checkpoints.tensors import known_zero
from gradfix.checkpoints.vocabulary import has_tokenizer, vocabulary_rows
from gradfix.errors import GradfixError, listed
from gradfix.progress import Progress, silent
from gradfix.text_files import parse_json, validated

VECTOR_FORMAT = "gradfix-task-vector"


FORMAT_VERSION = "2"


_ADDITION = "addition:"  # key prefix of a saved parameter that only the tuned model has


class _Stored(BaseModel):
    """What a file says of its vector."""

    config: ModelConfig
    ties: dict[str, str]
    origin: dict[str, Any]


class TaskVector(Expression, Mapping[str, Tensor]):
    """A lazy mapping from parameter names to float32 tensors, with the arithmetic of a vector space.

    Attributes:
        source: The expression that computes the tensors.
        additions: Parameters that only the tuned model has (a new head), read as stored.
        config: The tuned model's configuration; ``{}`` where there was none.
        directory: The tuned model's folder, where its tokenizer is; None where there is none.
        base_directory: The base's folder; None where there is none, or it isn't known any more.
        placement: How it was laid onto a target, once it was (see :mod:`gradfix.vectors.placement`).
        ties: Other names of its tensors, where both models tie them.
        adapter: What the LoRA adapter changes that the tuned model is, by the vector's names; None for whole models,
            and for what was computed from a vector.
    """

    def __init__(
        self,
        source: TensorSource,
        *,
        additions: TensorSource | None = None,
        config: Mapping[str, Any] | None = None,
        directory: Path | None = None,
        placement: "Placement | None" = None,
        ties: Mapping[str, str] = MappingProxyType({}),
        origin: Callable[[], Mapping[str, Any]] = dict,
    ) -> None:
        self.source = source
        self.additions: TensorSource = additions or Selection(source, {})
        self.config = dict(config or {})
        self.directory = directory
        self.base_directory: Path | None = None
        self.placement = placement
        self.ties = ties
        self.adapter: AdapterParts | None = None
        self._origin = origin
        self._zeros: set[str] = set()

    @classmethod
    def between(cls, base: "str | Path | Checkpoint", tuned: "str | Path | Checkpoint") -> "TaskVector":
        """Take the difference tuned − base, lazily; source: Ilharco et al., "Editing models with task arithmetic".

        Names that differ only by a known prefix are matched. Integer and boolean buffers are not part of it.

        Args:
            base: θ_A: a directory, file, Hub id or open checkpoint.
            tuned: θ_A^ft, likewise; or a LoRA adapter, which is read on top of ``base``.

        Returns:
            τ, keyed by the tuned model's names. What only the tuned model has is in ``additions``; what only the
            base has (a pre-training head) is in ``origin["base_only"]``.

        Raises:
            GradfixError: if no name is shared, or shared tensors differ in shape.
        """
        base = base if isinstance(base, Checkpoint) else Checkpoint.open(base)
        tuned = tuned if isinstance(tuned, Checkpoint) else Checkpoint.open(tuned, base=base.location)
        ours, theirs = Aliased(tuned, tuned.ties), Aliased(base, base.ties)
        match = respell(Spelled(theirs.specs, base.config), Spelled(ours.specs, tuned.config))
        found = {*match.names, *match.converted}
        floating = [name for name in tuned.specs if name in found and _is_parameter(tuned, name)]
        if not floating:
            raise GradfixError(
                f"{tuned.location}: no tensor has a counterpart in {base.location}; "
                f"found {listed(tuned.specs, 3)} against {listed(base.specs, 3)}; "
                "the tuned model must come from this base"
            )
        new, base_only = _judged(base, tuned, match)
        # A name that the tuned model ties and the base does not is a tensor of τ: both its sides are known.
        ties = {
            alias: name for alias, name in tuned.ties.items() if same_tensor(match, base.ties, alias, name)
        }
        floating += [alias for alias in tuned.ties if alias not in ties and alias in found]
        # Tokens added for the fine-tune have no row in the base: nothing to subtract there, so τ is 0.
        named = {match.names[name]: name for name in floating if name in match.names}
        described = Described.of(base), Described.of(tuned)
        maps = {named[name]: rows for name, rows in vocabulary_rows(*described, named).items()}
        counterpart = respelled(theirs, match, floating)
        differing = [
            f"{name} {list(ours.specs[name].shape)} against {list(counterpart.specs[name].shape)}"
            for name in floating
            if name not in maps and ours.specs[name].shape != counterpart.specs[name].shape
        ]
        if differing:
            raise GradfixError(
                f"{tuned.location}: shapes differ from {base.location}: {listed(differing)}; "
                "the tuned model must come from this base, without resized layers"
            )
        shared = Selection(ours, {name: name for name in floating})
        if maps:
            counterpart = MappedRows(counterpart, maps, fill=shared)
        vector = cls(
            Difference(shared, counterpart, (tuned.location, base.location)),
            additions=Selection(tuned, {name: name for name in new}),
            config=tuned.config,
            directory=tuned.directory or base.directory,
            ties=ties,
            origin=lambda: {
                "operation": "difference",
                "base": {"location": base.location, "fingerprint": combined_fingerprint(fingerprints(base))},
                "tuned": {
                    "location": tuned.location,
                    "fingerprint": combined_fingerprint(fingerprints(tuned)),
                },
                "names": match.rule or "equal names",
                "base_only": list(base_only),
            },
        )
        vector.base_directory = base.directory
        vector.adapter = tuned.adapter
        return vector

    @classmethod
    def load(cls, path: str | Path) -> "TaskVector":
        """Open a task vector that :meth:`save` wrote; tensors are read when asked for.

        Args:
            path: The safetensors file.

        Returns:
            The task vector, with the origin it was saved with.

        Raises:
            GradfixError: if the file is not a task vector, or of another format version.
        """
        file = SafetensorsFile(path)
        found = (file.metadata.get("format"), file.metadata.get("version"))
        if found != (VECTOR_FORMAT, FORMAT_VERSION):
            raise GradfixError(
                f"{path}: not a task vector of this version: expected {VECTOR_FORMAT} {FORMAT_VERSION}, found "
                f"{found[0] or 'no format'} {found[1] or ''}; write one with `gradfix diff`".replace(
                    " ;", ";"
                )
            )
        # transformers writes infinities into some configurations
        entries = {
            key: parse_json(file.metadata.get(key, ""), f"{path}: metadata {key!r}", finite=key != "config")
            for key in ("config", "ties", "origin")
        }
        validated(
            _Stored,
            entries,
            f"{path}: metadata",
            "write it again with `gradfix diff`",
        )
        check_content(path, file.metadata, file, "write it again with `gradfix diff`")
        whole = [name for name, spec in file.specs.items() if not spec.dtype.is_floating_point]
        if whole:
            raise GradfixError(
                f"{path}: {listed(whole)}: expected floating-point numbers; write it again with `gradfix diff`"
            )
        new = {key.removeprefix(_ADDITION): key for key in file.specs if key.startswith(_ADDITION)}
        changed = {key: key for key in file.specs if not key.startswith(_ADDITION)}
        return cls(
            Checked(Selection(file, changed, dtype=torch.float32), str(path)),
            additions=Selection(file, new),
            config=entries["config"],
            directory=_tokenizer_of(entries["origin"]),
            ties=entries["ties"],
            origin=lambda: entries["origin"],
        )

    def save(
        self,
        path: str | Path,
        *,
        dtype: torch.dtype = torch.float32,
        overwrite: bool = False,
        progress: Progress = silent,
    ) -> None:
        """Write the vector as one safetensors file whose metadata hold its origin.

        Args:
            path: Where to write; it appears there only when whole.
            dtype: Element type on disk. Below float32 small changes keep their sign but lose digits.
            overwrite: Replace an existing file.
            progress: Told the bytes written.
        """
        specs = {name: TensorSpec(dtype, spec.shape) for name, spec in self.specs.items()}
        added = {_ADDITION + name: spec for name, spec in self.additions.specs.items()}
        total, done = sum(spec.nbytes for spec in [*specs.values(), *added.values()]), 0

        def blocks(key: str) -> Iterator[Tensor]:
            nonlocal done
            is_new = key in added
            source: TensorSource = self.additions if is_new else self
            name = key.removeprefix(_ADDITION) if is_new else key
            for rows in source.specs[name].row_blocks():
                block = source.read(name, rows)
                block = block if is_new else block.to(dtype)
                yield block
                done += block.nbytes
                progress("writing the task vector", done, total, "bytes")

        metadata = {
            "format": VECTOR_FORMAT,
            "version": FORMAT_VERSION,
            "gradfix": __version__,
            "origin": json.dumps(self.origin, sort_keys=True),
            "config": json.dumps(self.config, sort_keys=True),
            "ties": json.dumps(dict(self.ties), sort_keys=True),
        }
        stored = {name: Selection(self, {name: name}, dtype=dtype) for name in specs}
        stored |= {key: Selection(self.additions, {key: key.removeprefix(_ADDITION)}) for key in added}
        metadata[CONTENT] = content_fingerprint(metadata, Gathered(stored))
        write_safetensors(Path(path), {**specs, **added}, blocks, metadata, overwrite=overwrite)

    @cached_property
    def origin(self) -> dict[str, Any]:
        """What the vector was made from, as JSON: enough to tell two vectors apart and to make one again.

        Finding it out the first time reads a few values of each tensor of the models concerned.
        """
        return dict(self._origin())

    @property
    def specs(self) -> Mapping[str, TensorSpec]:
        """Names and shapes; every dtype is float32."""
        return self.source.specs

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        """Compute one tensor, or a range of its rows.

        Args:
            name: A key.
            rows: Contiguous range of the first dimension; None for all.

        Returns:
            Float32, of the spec's shape with the first dimension cut to ``rows``.
        """
        return self.source.read(name, rows)

    def blocks(self, name: str) -> Iterator[Tensor]:
        """Compute one tensor piece by piece.

        Args:
            name: A key.

        Yields:
            Its rows in order, a few megabytes at a time.
        """
        for rows in self.specs[name].row_blocks():
            yield self.read(name, rows)

    def is_zero(self, name: str) -> bool:
        """Whether a tensor is 0 everywhere; it is read up to its first number that is not.

        Args:
            name: A key.

        Returns:
            True for what the fine-tune left as it was.
        """
        if self.known_zero(name):
            return True
        if any(count_nonzero(block) for block in self.blocks(name)):
            return False
        self._zeros.add(name)
        return True

    @override
    def known_zero(self, name: str) -> bool:
        return name in self._zeros or known_zero(self.source, name)

    @override
    def tally(self, name: str) -> Tally | None:
        return tally_of(self.source, name)

    def derive(self, source: TensorSource, **origin: Any) -> "TaskVector":
        """Make a vector of the same model from another expression.

        Args:
            source: What computes the new tensors.
            origin: What was done, as JSON; this vector's own origin is kept inside as ``"of"``.

        Returns:
            A task vector with this one's additions and configuration.
        """
        vector = TaskVector(
            source,
            additions=self.additions,
            config=self.config,
            directory=self.directory,
            placement=self.placement,
            ties=self.ties,
            origin=lambda: {**origin, "of": self.origin},
        )
        vector.base_directory = self.base_directory
        return vector

    def __getitem__(self, name: str) -> Tensor:
        return self.read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.specs)

    def __len__(self) -> int:
        return len(self.specs)

    def __add__(self, other: "TaskVector") -> "TaskVector":
        return combine([(1.0, self), (1.0, other)])

    def __sub__(self, other: "TaskVector") -> "TaskVector":
        return combine([(1.0, self), (-1.0, other)])

    def __mul__(self, factor: float) -> "TaskVector":
        return self.derive(
            Elementwise(self, lambda block: block.mul(factor)), operation="scale", factor=factor
        )

    __rmul__ = __mul__

    def __neg__(self) -> "TaskVector":
        return self * -1.0

    def __repr__(self) -> str:
        count = sum(spec.numel for spec in self.specs.values())
        return f"TaskVector({len(self)} tensors, {count:,} coordinates, {len(self.additions.specs)} added)"

    def norm(self) -> float:
        """Euclidean length ‖τ‖ over all tensors, accumulated in float64 in one streaming pass.

        Returns:
            The norm; 0 for an empty vector.
        """
        return math.sqrt(self.dot(self))

    def dot(self, other: "TaskVector") -> float:
        """Inner product over all tensors, in one streaming pass.

        Args:
            other: A vector with the same keys and shapes.

        Returns:
            Σ_i τ_i · other_i.
        """
        return moments(self, other)[0]

    def cosine(self, other: "TaskVector") -> float:
        """Cosine of the angle to another vector, in one streaming pass over both.

        Args:
            other: A vector with the same keys and shapes.

        Returns:
            A number in [−1, 1].

        Raises:
            GradfixError: if one of the two is exactly zero, where no angle is defined.
        """
        dot, ours, theirs = moments(self, other)
        if not ours or not theirs:
            raise GradfixError("cosine: a task vector is exactly zero, so it has no direction")
        return max(-1.0, min(1.0, dot / math.sqrt(ours * theirs)))


def moments(first: TaskVector, second: TaskVector) -> tuple[float, float, float]:
    """Compute Σ aᵢbᵢ, Σ aᵢ² and Σ bᵢ² in one streaming pass; each tensor is read once.

    Args:
        first: a.
        second: b, with the same keys and shapes; it may be the same object.

    Returns:
        The three sums, accumulated in float64.
    """
    _require_same_tensors([first, second])
    dot = ours = theirs = 0.0
    for name, spec in first.specs.items():
        for rows in spec.row_blocks():
            a = first.read(name, rows).flatten().double()
            b = a if first is second else second.read(name, rows).flatten().double()
            dot += float(a.dot(b))
            ours += float(a.dot(a))
            theirs += float(b.dot(b))
    return dot, ours, theirs


def combine(terms: Sequence[tuple[float, TaskVector]]) -> TaskVector:
    """Form the linear combination Σ_k c_k τ_k.

    Args:
        terms: Coefficients and vectors, which must have the same keys and shapes.

    Returns:
        The lazy sum. A parameter that only one of the tuned models has stays an addition.

    Raises:
        GradfixError: if keys or shapes differ, or two tuned models add a parameter of the same name.
    """
    vectors = [vector for _, vector in terms]
    _require_same_tensors(vectors)
    additions: dict[str, TensorSource] = {}
    for vector in vectors:
        twice = [name for name in vector.additions.specs if name in additions]
        if twice:
            raise GradfixError(
                f"two tuned models bring a parameter of the same name: {listed(twice)}; "
                "heads can't be added, so combine vectors whose additions differ in name"
            )
        additions.update(dict.fromkeys(vector.additions.specs, vector.additions))
    return TaskVector(
        Sum([(coefficient, vector.source) for coefficient, vector in terms]),
        additions=Gathered(additions),
        config=vectors[0].config,
        directory=vectors[0].directory,
        placement=vectors[0].placement,
        ties=vectors[0].ties,
        origin=lambda: {
            "operation": "sum",
            "terms": [{"coefficient": c, "vector": vector.origin} for c, vector in terms],
        },
    )


def _require_same_tensors(vectors: Sequence[TaskVector]) -> None:
    first = vectors[0]
    for other in vectors[1:]:
        differing = sorted(
            name
            for name in first.specs.keys() | other.specs.keys()
            if first.specs.get(name) != other.specs.get(name)
        )
        if differing:
            raise GradfixError(
                f"task vectors of different models can't be combined; keys or shapes differ: {listed(differing)}"
            )


def _is_parameter(checkpoint: Checkpoint, name: str) -> bool:
    return checkpoint.specs[name].dtype.is_floating_point


def _tokenizer_of(origin: Mapping[str, Any]) -> Path | None:
    """Find the folder whose tokenizer a saved vector's rows follow, while the model it was made from is still there."""
    while "of" in origin:
        origin = origin["of"]
    places = [Path(str(origin.get(role, {}).get("location", ""))) for role in ("tuned", "base")]
    return next((place for place in places if place.is_dir() and has_tokenizer(place)), None)


@dataclass(frozen=True)
class Described:
    """What is known of a model beside its numbers; tied tensors under each of their names."""

    specs: Mapping[str, TensorSpec]
    config: Mapping[str, Any]
    directory: Path | None

    @classmethod
    def of(cls, model: "Checkpoint | TaskVector") -> "Described":
        """Describe a model.

        Args:
            model: A checkpoint or a task vector.

        Returns:
            Its names and shapes, configuration and folder.
        """
        return cls(Aliased(model, model.ties).specs, model.config, model.directory)


def _judged(base: Checkpoint, tuned: Checkpoint, match: Respelling) -> tuple[list[str], list[str]]:
    """Refuse a tuned model that is no fine-tune of the base by its names; give its new weights, and the base's own."""
    paired = {*match.names, *match.converted}
    lost = {base.ties.get(name, name) for name in match.unmatched_source} - {
        base.ties.get(name, name) for name in match.names.values()
    }
    unmatched = [name for name in match.unmatched_target if name in tuned.specs]
    new = weights_among(unmatched, tuned.specs, tuned.config)
    base_only = [name for name in base.specs if name in lost]
    gone = weights_among(base_only, base.specs, base.config)
    there = [name for name in base.specs if name not in lost]
    refuse_other_backbone(tuned.location, base.location, new, gone, paired, there)
    refuse_strange_additions(tuned.location, base.location, new, tuned.specs, tuned.config)
    return list(new), base_only


def same_tensor(match: Respelling, ties: Mapping[str, str], alias: str, name: str) -> bool:
    """Tell whether two names that a target ties are one tensor of a source, too.

    Args:
        match: Where the source has each tensor of the target.
        ties: The source's own.
        alias: A name of the target.
        name: The one that it is tied to.

    Returns:
        True also where the source lacks the alias.
    """
    if alias not in match.names or name not in match.names:
        return alias not in match.names and alias not in match.converted
    one, other = match.names[alias], match.names[name]
    return ties.get(one, one) == ties.get(other, other)


Granularity = Literal["coordinate", "row", "component"]
"""What of an adapter's B votes: each coordinate, each row, or each singular direction of the change."""


@dataclass(frozen=True)
class PlacedAdapter:
    """An adapter in a target's names and rows.

    Attributes:
        parts: What it changes, by the target's names.
        rows: For tensors whose rows are tokens of another vocabulary: the source's row for each of the target's, −1 for
            none.
        obstacle: Why it can't stand on the target as an adapter; None if it can.
        granularity: What of it votes.
    """

    parts: AdapterParts
    rows: Mapping[str, Tensor]
    obstacle: str | None
    granularity: Granularity = "coordinate"


@dataclass(frozen=True)
class Placement:
    """A task vector in a target's names and rows.

    Attributes:
        target: Location of the target.
        vector: τ, keyed by the target's names, of the target's shapes.
        base: θ_B under these names; tensors that the output holds apart are there under each of their names.
        rule: How names were matched, for people; None where they are the same.
        outputs: The output's tensors in order: name to the target's name, or None for an addition.
        untouched: The target's parameters that τ has nothing for: they keep θ_B's value.
        dropped: The target's tensors that the output leaves out: its pre-training head, where the tuned model
            brings another one and its architecture has no place for this.
        unplaced: τ's tensors that the target has no place for.
        matched_tokens: Tokens whose rows were matched by text, out of the target's, a vocabulary tensor each.
        untied: Names that the target ties and the output holds as tensors of their own.
        adapter: What the source's LoRA adapter changes; None where it was a whole model.
        apart: Of other shapes than τ: the vector is zero, and an alignment fills it.
    """

    target: str
    vector: TaskVector
    base: TensorSource
    rule: str | None
    outputs: Mapping[str, str | None]
    untouched: Sequence[str]
    dropped: Sequence[str]
    unplaced: Sequence[str]
    matched_tokens: Mapping[str, tuple[int, int]]
    untied: Sequence[str] = ()
    adapter: PlacedAdapter | None = None
    apart: bool = False

    @property
    def changing(self) -> Collection[str]:
        """The target's tensors that τ may change, told without reading them: of a plain LoRA adapter, its own."""
        if self.adapter is None or self.adapter.obstacle is not None:
            return self.vector.specs.keys()
        own = (*self.adapter.parts.updates, *self.adapter.parts.whole, *self.vector.additions.specs)
        return [name for name in own if name in self.vector.specs]
