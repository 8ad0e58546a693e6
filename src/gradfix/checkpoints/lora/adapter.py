"""A LoRA adapter on its base, read as the dense weights it stands for."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor

from gradfix.checkpoints.architecture import architecture_of
from gradfix.checkpoints.expressions import Given
from gradfix.checkpoints.lora.config import LoraConfig
from gradfix.checkpoints.lora.factors import AdapterParts
from gradfix.checkpoints.lora.keys import AdapterKeys, Factors, sort_keys
from gradfix.checkpoints.lora.low_rank import LowRankUpdate
from gradfix.checkpoints.lora.parameters import parameter_changes
from gradfix.checkpoints.names import match_names
from gradfix.checkpoints.reading.index import WeightFile
from gradfix.checkpoints.tensors import TensorSource, TensorSpec
from gradfix.checkpoints.ties import TiedModel
from gradfix.errors import GradfixError, listed


class AdaptedWeights:
    """The weights of a base with an adapter merged into them, computed as they are read.

    Adapted weights are given in float32 (float64 on a base of that) whatever the base's dtype, so that a
    small update is not rounded away before a task vector is taken from it; all others as they are stored,
    heads and biases as the adapter stores them. Merging casts to the base's dtype at the end; that is left to
    whoever writes a model.

    Attributes:
        specs: Dtype and shape of each tensor, by the base's names; those that the base hasn't got by the
            adapter's.
        files: The base's, the adapter's and its config.
        shared: Nothing: the base's ties are its own.
        notes: How many tensors are adapted and replaced.
    """

    def __init__(
        self,
        base: TiedModel,
        adapter: WeightFile,
        config: LoraConfig,
        keys: AdapterKeys | None = None,
        weight: float = 1.0,
    ) -> None:
        """Match the tensors of an adapter with those of its base.

        Args:
            base: The base model.
            adapter: The file with the adapter's tensors.
            config: The adapter's settings.
            keys: Its tensors, where they are not named as peft's.
            weight: What its changes are multiplied with.

        Raises:
            GradfixError: If the base has none of these layers, or of other shapes, or ties what the adapter parts.
        """
        self._base, self._adapter, self._config, self._weight = base, adapter, config, weight
        self._path = adapter.files[0]
        keys = sort_keys(self._path, adapter.specs) if keys is None else keys
        self._parameters: TensorSource = Given({})
        if config.parameters:
            self._parameters, used = parameter_changes(self._path, adapter, config, keys.modules, base)
            for module in used:
                del keys.modules[module]
        weights = {module: f"{module}.weight" for module in keys.modules}
        biases = {module: f"{module}.bias" for module, factors in keys.modules.items() if factors.bias}
        names = self._names([*weights.values(), *biases.values(), *keys.whole])
        self._whole = {names[name]: key for name, key in keys.whole.items()}
        self._unplaced = self._without_place(keys, names)
        for module in self._unplaced:
            del keys.modules[module], weights[module]
            biases.pop(module, None)
        self._check_parted(keys_of=[names[name] for name in (*weights.values(), *keys.whole)])
        specs = dict(base.specs)
        for name, key in self._whole.items():
            if name not in base.ties:
                specs[name] = adapter.specs[key]
        self._updates: dict[str, LowRankUpdate] = {}
        self._bias_updates: dict[str, tuple[str, float]] = {}
        for module, factors in keys.modules.items():
            name = names[weights[module]]
            if name in base.ties:
                continue  # trained as one with its source, which has the same factors
            self._updates[name] = self._update(module, name, factors, self._spec(name, module))
            specs[name] = _wide(specs[name])
            if factors.bias is not None:
                bias = names[biases[module]]
                self._bias_updates[bias] = (factors.bias, weight * config.scaling(module))
                specs[bias] = _wide(self._spec(bias, module))
        # A whole tensor counts by its difference to the base's; a new head, which has none, as it is.
        weighed = {name for name in self._whole if name in base.specs and name not in self._updates}
        self._weighed = weighed if weight != 1 else set()
        for name in (*self._parameters.specs, *self._weighed):
            specs[name] = _wide(specs[name])
        self._refuse_weight()
        self.specs: Mapping[str, TensorSpec] = MappingProxyType(specs)
        self.files: tuple[Path, ...] = tuple(dict.fromkeys((*base.files, *adapter.files, config.path)))
        self.shared: Mapping[str, str] = MappingProxyType({})
        self.notes: tuple[str, ...] = (
            *adapter.notes,
            f"{self._path}: {len(self._updates) + len(self._parameters.specs)} weights adapted, {len(self._whole)} "
            "stored whole",
        )

    def _refuse_weight(self) -> None:
        """Refuse a weight for what is no sum: DoRA's rescaled weights."""
        scaled = [name for name, update in self._updates.items() if update.magnitude is not None]
        if self._weight != 1 and scaled:
            raise GradfixError(
                f"{self._path}: rescales {listed(scaled, 2)} (DoRA), which can't be taken {self._weight:g} times: give "
                "it without a weight"
            )

    @property
    def parts(self) -> AdapterParts:
        """What the adapter changes, and whether all of it is low-rank or stored whole."""
        # peft saves an adapted embedding beside its factors, as it was.
        copied = {name for name in self._whole if name in self._updates and self._is_base(name)}
        whole = frozenset(self._whole.keys() - copied)
        return AdapterParts(
            self._updates,
            whole,
            self._obstacle(whole),
            self._adapter.specs[next(iter(self._updates.values())).up].dtype
            if self._updates
            else torch.float32,
            self._config.task_type,
            self._unplaced,
        )

    def _is_base(self, name: str) -> bool:
        """Whether a tensor that the adapter stores whole is the base's own."""
        spec = self._base.specs.get(name)
        return spec == self._adapter.specs[self._whole[name]] and all(
            torch.equal(self._adapter.read(self._whole[name], rows), self._base.read(name, rows))
            for rows in spec.row_blocks()
        )

    def _obstacle(self, whole: frozenset[str]) -> str | None:
        magnitudes = [name for name, update in self._updates.items() if update.magnitude is not None]
        modules = {name.rpartition(".")[0] for name in self._updates}
        biases = [*self._bias_updates, *(name for name in whole if name.rpartition(".")[0] in modules)]
        if self._parameters.specs:
            return f"it changes {listed(self._parameters.specs, 2)}, which are no layers' weights"
        if not self._updates:
            return "it has no low-rank factors"
        if magnitudes:
            return f"DoRA's magnitudes change {listed(magnitudes, 2)} beyond low rank"
        if biases:
            return f"it changes {listed(biases, 2)} beside the low-rank factors of the same layers"
        if self._config.tied:
            return "ensure_weight_tying trained tied layers as one"
        return None

    def fetch(self) -> None:
        """Bring here what is still on the Hub of the base; an adapter always is here."""
        self._base.fetch()

    def peek(self, name: str) -> bytes | None:
        """Give a few bytes of a tensor that is still on the Hub and not changed by the adapter.

        Args:
            name: A key of ``specs``.

        Returns:
            Bytes from its middle; None if it is here or changed.
        """
        changed = name in self._updates or name in self._whole or name in self._bias_updates
        changed |= name in self._parameters.specs
        return None if changed else self._base.peek(name)

    def read(self, name: str, rows: slice | None = None, *, out: Tensor | None = None) -> Tensor:
        """Compute a tensor, or a contiguous range of its rows.

        Args:
            name: A key of ``specs``.
            rows: Range of the first dimension; None for all of it.
            out: Memory to reuse for tensors that are not adapted, as in :meth:`SafetensorsFile.read`.

        Returns:
            The tensor in the dtype of its spec, the first dimension cut to ``rows``.
        """
        if (update := self._updates.get(name)) is not None:
            return update.apply(lambda part: self._stored(name, part), self._stored_spec(name), rows)
        stored = self._stored(name, rows, out=out)
        if name in self._weighed:
            wide = self._base.read(name, rows).to(self.specs[name].dtype)
            return wide.lerp(stored.to(wide.dtype), self._weight)
        if name in self._parameters.specs:
            wide = stored.to(self.specs[name].dtype)
            return wide.add_(self._parameters.read(name, rows), alpha=self._weight)
        if name in self._bias_updates:
            key, scaling = self._bias_updates[name]
            wide = stored.to(self.specs[name].dtype)
            return wide.add_(self._adapter.read(key, rows).float() * scaling)
        return stored

    def _stored(self, name: str, rows: slice | None, *, out: Tensor | None = None) -> Tensor:
        if name in self._whole:
            return self._adapter.read(self._whole[name], rows, out=out)
        return self._base.read(name, rows, out=out)

    def _stored_spec(self, name: str) -> TensorSpec:
        return self._adapter.specs[self._whole[name]] if name in self._whole else self._base.specs[name]

    def _without_place(self, keys: AdapterKeys, names: Mapping[str, str]) -> tuple[str, ...]:
        """The layers that the base doesn't have; refused where it has none at all."""
        known = {*self._base.specs, *self._base.ties, *self._whole}
        lost = tuple(module for module in keys.modules if names[f"{module}.weight"] not in known)
        if lost and len(lost) == len(keys.modules):
            raise GradfixError(
                f"{self._path}: none of its {len(lost)} layers is in the base {self._base.location}: {listed(lost, 3)} "
                f"against {listed(self._base.specs, 3)}: give the base it was trained on"
            )
        return lost

    def _spec(self, name: str, module: str) -> TensorSpec:
        if name not in self._whole and name not in self._base.specs:
            raise GradfixError(
                f"{self._path}: adapts {name!r} (module {module!r}), which the base {self._base.location} doesn't "
                "have: give the base it was trained on"
            )
        return self._stored_spec(name)

    def _names(self, ours: list[str]) -> dict[str, str]:
        """Each parameter name of the adapter as the base spells it, by way of saved names if need be."""
        theirs = [*self._base.specs, *self._base.ties]
        match = match_names(ours, theirs)
        if match.unmatched_source and (architecture := architecture_of(self._base.config)) is not None:
            saved = {name: architecture.stored.get(name, name) for name in ours}
            rematch = match_names(saved.values(), theirs)
            if len(rematch.names) > len(match.names):
                return {name: rematch.rename(saved[name]) for name in ours}
        return {name: match.rename(name) for name in ours}

    def _check_parted(self, keys_of: list[str]) -> None:
        """Refuse to give one tensor for two: adapting one side of a tied pair makes them differ."""
        if self._config.tied or not self._config.generates:
            return
        for name in keys_of:
            canonical = self._base.ties.get(name, name)
            tied = [alias for alias, source in self._base.ties.items() if source == canonical]
            if not tied:
                continue
            group = [canonical, *tied]
            copies = [self._whole[other] for other in group if other in self._whole]
            if len(copies) == len(group) and self._equal(copies):
                continue
            raise GradfixError(
                f"{self._path}: changes {name!r}, which the base {self._base.location} ties to "
                f"{next(other for other in group if other != name)!r}: expected both to stay one tensor: train with "
                "ensure_weight_tying, or leave the tied layers out"
            )

    def _equal(self, keys: list[str]) -> bool:
        first, *others = (self._adapter.read(key) for key in keys)
        return all(torch.equal(first, other) for other in others)

    def _update(self, module: str, name: str, factors: Factors, spec: TensorSpec) -> LowRankUpdate:
        down, up = self._adapter.specs[factors.down].shape, self._adapter.specs[factors.up].shape
        rank = self._config.rank_of(module)
        if down[:1] != (rank,) or up[1:2] != (rank,):
            raise GradfixError(
                f"{self._path}: module {module!r}: expected rank {rank} by {self._config.path.name}, found lora_A "
                f"{list(down)} and lora_B {list(up)}: config and weights are of different adapters, or the layer is "
                "a grouped convolution, which is not supported"
            )
        fits = {
            False: (up[0], *down[1:]) == spec.shape and set(up[2:]) <= {1},
            True: (*down[1:], up[0]) == spec.shape and len(up) == 2,
        }
        if not any(fits.values()):
            raise GradfixError(
                f"{self._path}: module {module!r}: expected factors of {name} {list(spec.shape)}, found lora_A "
                f"{list(down)} and lora_B {list(up)}: give the base it was trained on"
            )
        if self._config.dora and factors.magnitude is None:
            raise GradfixError(f"{self._path}: module {module!r}: use_dora is set, but it has no magnitudes")
        input_first = self._input_first(name) if all(fits.values()) else fits[True]
        return LowRankUpdate(
            adapter=self._adapter,
            down=factors.down,
            up=factors.up,
            scaling=self._weight * self._config.scaling(module),
            input_first=factors.embedding or input_first,
            magnitude=factors.magnitude,
        )

    def _input_first(self, name: str) -> bool:
        """How a square weight lies: the architecture knows; peft's flag is of the last layer it adapted."""
        architecture = architecture_of(self._base.config)
        if architecture is None:
            return self._config.transposed
        return match_names(self._base.specs, architecture.names).rename(name) in architecture.transposed


def _wide(spec: TensorSpec) -> TensorSpec:
    return TensorSpec(torch.promote_types(spec.dtype, torch.float32), spec.shape)
