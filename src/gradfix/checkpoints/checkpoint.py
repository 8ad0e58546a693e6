"""A model's weights, wherever they are: a lazy mapping of names to tensors."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from gradfix.checkpoints.dequantised import dequantised
from gradfix.checkpoints.fingerprint import content_digest
from gradfix.checkpoints.lora.adapter import AdaptedWeights
from gradfix.checkpoints.lora.config import read_lora_config
from gradfix.checkpoints.lora.factors import AdapterParts
from gradfix.checkpoints.lora.stack import over, stacked
from gradfix.checkpoints.lora.styles import has_factors, styled
from gradfix.checkpoints.model_config import read_model_config
from gradfix.checkpoints.quantisation import refuse_quantised
from gradfix.checkpoints.reading.hub import is_hub_id, locate_on_hub
from gradfix.checkpoints.reading.index import WeightFile, expect
from gradfix.checkpoints.reading.locate import (
    ADAPTER_CONFIG,
    PICKLE_SUFFIXES,
    Found,
    Located,
    locate_weights,
    open_weights,
)
from gradfix.checkpoints.reading.registries import hub_id
from gradfix.checkpoints.tensors import TensorSpec, pick
from gradfix.checkpoints.ties import Ties, find_ties, same_values
from gradfix.checkpoints.vocabulary import has_tokenizer
from gradfix.checkpoints.wrappers import unwrap
from gradfix.errors import GradfixError
from gradfix.progress import Progress, silent


class Checkpoint(Mapping[str, Tensor]):
    """The weights of a model, read one tensor or range of rows at a time.

    Opening reads headers and configs only, of a model on the Hub too: its weights are fetched when the first
    tensor is read, or by :meth:`fetch`. Iteration gives canonical names: of tied weights, which are one
    tensor under several names, the one that the architecture declares as the source. The aliases can be read
    too.

    Attributes:
        location: What was opened, as a person would name it.
        directory: Where the tokenizer is, an adapter's own if it brings one; None for a file without config beside it.
        model_directory: Where the files of the whole model are: the base's of an adapter.
        config: The model's ``config.json``; empty if there is none.
        kind: What kind of files it was read from, for messages.
        files: The files that hold the weights; those of a model on the Hub are there after :meth:`fetch`.
        adapter_of: Of an adapter, the base that its own configuration names, ``""`` if none; None for whole
            models.
        quantised: How its files, or its base's, are quantised, where their codes are decoded as they are read.
    """

    def __init__(
        self,
        weights: WeightFile,
        *,
        location: str,
        directory: Path | None = None,
        config: Mapping[str, Any] = MappingProxyType({}),
        kind: str = "weights",
        adapter_of: str | None = None,
        model_directory: Path | None = None,
        quantised: str | None = None,
    ) -> None:
        """Wrap opened weights; :meth:`open` is what finds them.

        Args:
            weights: The opened files.
            location: What was opened.
            directory: Where config and tokenizer are.
            config: The model's config.
            kind: What kind of files it is.
            adapter_of: Of an adapter, the base that its own configuration names, ``""`` if none.
            model_directory: Where the whole model's files are, if not there.
            quantised: How its files, or its base's, are quantised.
        """
        self._weights = unwrap(weights)
        self.location = location
        self.directory = directory
        self.model_directory = model_directory or directory
        self.config: dict[str, Any] = dict(config)
        self.kind = kind
        self.adapter_of = adapter_of
        self.quantised = quantised
        self._below: AdapterParts | None = None
        self.files: tuple[Path, ...] = weights.files
        self._confirmed = False

    @classmethod
    def open(
        cls,
        location: str | os.PathLike[str],
        *,
        revision: str | None = None,
        base: "Checkpoint | str | os.PathLike[str] | None" = None,
        allow_quantised: bool = False,
        dequantise: bool = False,
    ) -> "Checkpoint":
        """Open a checkpoint; only headers and configs are read.

        Args:
            location: A Hugging Face directory, a safetensors or ``torch.save`` file, an index of shards, a
                LoRA adapter, or the id of any of them on the Hub. A local path wins over a Hub id. Several adapters,
                one after the other and each with a weight: ``first+0.5*second``.
            revision: Branch, tag or commit on the Hub; None for the default branch. ``org/name@revision`` as
                the location says the same.
            base: Base model of a LoRA adapter; None for the one that its config names. Whole models need none
                and ignore it.
            allow_quantised: Open a model whose tensors hold codes, too: to look at it, not to compute with it.
            dequantise: Open it, and read the numbers that its codes stand for: to compute with it, not to write one.

        Returns:
            The checkpoint.

        Raises:
            GradfixError: If it is absent, malformed, quantised, or of a kind that is not supported.
        """
        stack = stacked(os.fspath(location))
        if stack is not None:
            return cls._stacked(os.fspath(location), stack, base)
        source = resolve(os.fspath(location), revision)
        opened = source.open()
        adapter = cls._adapter(source, opened, base, needed=not allow_quantised)
        if adapter is not None:
            return adapter
        return cls._whole(source, opened, allow_quantised=allow_quantised, dequantise=dequantise)

    @classmethod
    def _stacked(
        cls,
        location: str,
        stack: Sequence[tuple[float, str]],
        base: "Checkpoint | str | os.PathLike[str] | None",
    ) -> "Checkpoint":
        """Open several adapters, each on the base with those before it."""
        model = base
        for weight, place in stack:
            source = resolve(place, None)
            found = cls._adapter(source, source.open(), model, weight=weight)
            if found is None:
                raise GradfixError(
                    f"{location}: {place} is no adapter: only adapters are added to one another"
                )
            if isinstance(model, Checkpoint):
                found._below = model.adapter
                found.adapter  # noqa: B018 - refuses what can't stand on one another
            model = found
        assert isinstance(model, Checkpoint)
        model.location = location
        return model

    @classmethod
    def _adapter(
        cls,
        source: Located,
        opened: WeightFile,
        base: "Checkpoint | str | os.PathLike[str] | None",
        *,
        weight: float = 1.0,
        needed: bool = True,
    ) -> "Checkpoint | None":
        """Open a location that holds an adapter; None for whole models, and for factors alone if not needed."""
        if source.found.adapter:
            return cls._adapted(source.found, opened, source.location, base, weight)
        if has_factors(opened.specs) and (base is not None or needed):
            return cls._styled(source, opened, base, weight)
        return None

    @classmethod
    def _styled(
        cls,
        source: Located,
        weights: WeightFile,
        base: "Checkpoint | str | os.PathLike[str] | None",
        weight: float = 1.0,
    ) -> "Checkpoint":
        """Open an adapter that has no configuration."""
        if base is None:
            raise GradfixError(
                f"{source.location}: holds low-rank factors and names no base model: pass the base they were trained on"
            )
        model = base if isinstance(base, Checkpoint) else cls._base(base, None, source.location)
        keys, settings = styled(source.found.weights, weights, [*model.specs, *model.ties])
        return cls(
            AdaptedWeights(model, weights, settings, keys, weight),
            location=source.location,
            directory=model.directory,
            model_directory=model.model_directory,
            config=model.config,
            kind=f"LoRA adapter on {model.location}",
            adapter_of="",
            quantised=model.quantised,
        )

    @classmethod
    def _whole(
        cls,
        source: Located,
        weights: WeightFile,
        *,
        allow_quantised: bool = False,
        dequantise: bool = False,
    ) -> "Checkpoint":
        directory = source.found.directory
        config_path = directory / "config.json" if directory is not None else None
        config = read_model_config(config_path) if config_path is not None and config_path.exists() else {}
        method = None
        if dequantise:
            weights, method = dequantised(source.location, config, weights)
        elif not allow_quantised:
            refuse_quantised(source.location, config, weights.specs)
        return cls(
            weights,
            location=source.location,
            directory=directory,
            config=config,
            kind=_kind(weights),
            quantised=method,
        )

    @classmethod
    def _adapted(
        cls,
        found: Found,
        weights: WeightFile,
        location: str,
        base: "Checkpoint | str | os.PathLike[str] | None",
        weight: float = 1.0,
    ) -> "Checkpoint":
        folder = found.weights.parent
        config = read_lora_config(folder / ADAPTER_CONFIG)
        refuse_quantised(location, {}, weights.specs)
        name, revision = (base, None) if base is not None else config.base
        if name is None:
            raise GradfixError(
                f"{config.path}: names no base model: pass the base the adapter was trained on"
            )
        model = name if isinstance(name, Checkpoint) else cls._base(name, revision, location)
        return cls(
            AdaptedWeights(model, unwrap(weights), config, weight=weight),
            location=location,
            directory=folder if has_tokenizer(folder) else model.directory,
            model_directory=model.model_directory,
            config=model.config,
            kind=f"LoRA adapter on {model.location}",
            adapter_of=config.base[0] or "",
            quantised=model.quantised,
        )

    @classmethod
    def _base(cls, name: str | os.PathLike[str], revision: str | None, adapter: str) -> "Checkpoint":
        source = resolve(os.fspath(name), revision if not Path(name).exists() else None)
        if source.found.adapter:
            raise GradfixError(
                f"{adapter}: its base {source.location} is itself an adapter: expected a whole model: "
                "merge that"
            )
        return cls._whole(source, source.open())

    @cached_property
    def specs(self) -> Mapping[str, TensorSpec]:
        """Dtype and shape of each tensor, by canonical name."""
        return MappingProxyType(
            {name: self._weights.specs[stored] for name, stored in self._tied.stored.items()}
        )

    @cached_property
    def ties(self) -> Mapping[str, str]:
        """Every other name of a tied tensor, and its canonical one."""
        return MappingProxyType(self._tied.aliases)

    @cached_property
    def _tied(self) -> Ties:
        return find_ties(self._weights, self.config)

    @cached_property
    def adapter(self) -> AdapterParts | None:
        """What an adapter changes of its base, by canonical name; None for whole models."""
        if not isinstance(self._weights, AdaptedWeights):
            return None
        parts, names = self._weights.parts, {stored: name for name, stored in self._tied.stored.items()}
        named = replace(
            parts,
            updates={names.get(name, name): update for name, update in parts.updates.items()},
            whole=frozenset(names.get(name, name) for name in parts.whole),
        )
        return named if self._below is None else over(self._below, named)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a report should say about how the files were understood; one line each."""
        return (*self._weights.notes, *self._tied.notes)

    @property
    def dtypes(self) -> dict[torch.dtype, int]:
        """Elements stored in each dtype."""
        count: dict[torch.dtype, int] = {}
        for spec in self.specs.values():
            count[spec.dtype] = count.get(spec.dtype, 0) + spec.numel
        return count

    @property
    def nbytes(self) -> int:
        """Size of all tensors in bytes; tied ones once."""
        return sum(spec.nbytes for spec in self.specs.values())

    def digest(self, progress: Progress = silent) -> str:
        """Identify the content of the files read, for provenance: equal for equal bytes, wherever they lie.

        It is of files, not of tensors: the same weights cut into other shards have another digest. Files in
        the Hub's cache are named by their hash and not read for it; others are, once.

        Args:
            progress: Called as files are hashed.

        Returns:
            SHA-256 in hexadecimal, over the weights, their index, and an adapter's config and base.
        """
        self.fetch()
        return content_digest(self.files, progress)

    def fetch(self) -> None:
        """Make sure that the weights are on this machine, beside the config in ``directory``.

        Needed before anything but :meth:`read` and :meth:`digest` opens the files. Weights that are still on
        the Hub are downloaded into its cache, all others are where they are.

        Raises:
            GradfixError: If they can't be downloaded, or aren't what their headers and a glance said.
        """
        self._weights.fetch()
        if not self._confirmed:
            for name, alias in self._tied.assumed:
                if not same_values(self._weights, name, alias):
                    raise GradfixError(
                        f"{self.location}: {alias!r} has other values than {name!r}, to which the config ties "
                        "it; that showed only now that the weights are here: start again, and they are two"
                    )
            self._confirmed = True

    def peek(self, name: str) -> bytes | None:
        """Give a few bytes of a tensor that is still on the Hub, without fetching it.

        Args:
            name: A key of ``specs``.

        Returns:
            Bytes from its middle; None if it is here.
        """
        return self._weights.peek(self._tied.stored[name])

    def read(self, name: str, rows: slice | None = None, *, out: Tensor | None = None) -> Tensor:
        """Read a tensor, or a contiguous range of its rows.

        Args:
            name: A key of ``specs`` or of ``ties``.
            rows: Range of the first dimension, as in Python's slicing with step 1; None for all of it.
            out: Memory to reuse: a contiguous uint8 CPU tensor, shape ``[bytes]``. Where it is used the
                result is a view of it; some kinds of files can't and return fresh memory.

        Returns:
            The tensor in the dtype of its spec, the first dimension cut to ``rows``.

        Raises:
            KeyError: If there is no such tensor.
        """
        return self._weights.read(self._key_of(name), rows, out=out)

    def pick(self, name: str, positions: Sequence[int]) -> Tensor | None:
        """Read single numbers of a tensor.

        Args:
            name: A key of ``specs`` or of ``ties``.
            positions: Of the flattened tensor.

        Returns:
            The numbers in the dtype of its spec, shape ``[len(positions)]``; None where only whole rows can be had.

        Raises:
            KeyError: If there is no such tensor.
        """
        return pick(self._weights, self._key_of(name), positions)

    def _key_of(self, name: str) -> str:
        """The stored key of a tensor that is about to be read; ties that were taken on trust are looked at first."""
        stored = self._tied.stored[self._tied.aliases.get(name, name)]
        if self._tied.assumed and not self._confirmed:
            self.fetch()
        return stored

    def expect(self, name: str) -> bool:
        """Have the system read a tensor into its cache, without waiting for it.

        Args:
            name: A key of ``specs`` or of ``ties``.

        Returns:
            Whether it will; if not, whoever wants that reads the tensor.
        """
        return expect(self._weights, self._tied.stored[self._tied.aliases.get(name, name)])

    def __getitem__(self, name: str) -> Tensor:
        """Read a whole tensor."""
        return self.read(name)

    def __iter__(self) -> Iterator[str]:
        """Canonical names, in stored order."""
        return iter(self.specs)

    def __len__(self) -> int:
        """Number of tensors; tied ones once."""
        return len(self.specs)

    def __contains__(self, name: object) -> bool:
        """Whether ``name`` is a canonical name."""
        return name in self.specs

    def __repr__(self) -> str:
        """The location, not the values."""
        return f"Checkpoint({self.location!r}: {len(self)} tensors, {self.kind})"


def _kind(weights: WeightFile) -> str:
    written_by = "PyTorch" if weights.files[-1].suffix in PICKLE_SUFFIXES else "safetensors"
    return f"sharded {written_by}" if len(weights.files) > 1 else f"{written_by} file"


def resolve(location: str, revision: str | None) -> Located:
    """Find the weights that a location names; a local path wins over a Hub id.

    Args:
        location: A path, or ``org/name``, with ``@revision`` or without; or a name of open_clip or timm, see
            :func:`gradfix.checkpoints.reading.registries.hub_id`.
        revision: Branch, tag or commit on the Hub; None for the default branch.

    Returns:
        The weights, not opened yet.

    Raises:
        GradfixError: If there are none, or a revision is given twice or for a local path.
    """
    path = Path(location)
    if path.exists():
        if revision is not None:
            raise GradfixError(
                f"{location}: revision {revision!r} was asked for, but this is a local path, which has "
                "none: drop the revision, or rename the local directory to mean the Hub"
            )
        found = locate_weights(path)
        return Located(found, location, partial(open_weights, found.weights))
    location = hub_id(location) or location
    name, at, tagged = location.partition("@")
    if not is_hub_id(name) or (at and (revision is not None or not tagged)):
        raise GradfixError(f"{location}: no such file or directory: check the path")
    return locate_on_hub(name, tagged or revision)
