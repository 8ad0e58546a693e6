"""Adapters of parameters that are no layer's weight, such as all experts in one (PEFT's target_parameters).

Legend: e experts, r rank, o outputs, i inputs. For a parameter of e experts, A is [r·e, i] and B [o, r·e]: A's rows are
counted by expert and rank, B's columns by rank and expert.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from gradfix.checkpoints.architecture import skeleton
from gradfix.checkpoints.expressions import Expression
from gradfix.checkpoints.layouts import AsStored, layout_of
from gradfix.checkpoints.lora.config import LoraConfig
from gradfix.checkpoints.lora.keys import Factors
from gradfix.checkpoints.reading.index import WeightFile
from gradfix.checkpoints.tensors import TensorSource, TensorSpec
from gradfix.checkpoints.ties import TiedModel
from gradfix.errors import GradfixError, listed

_WRAPPED = ".base_layer"


@dataclass(frozen=True)
class ParameterChange:
    """The change of one parameter.

    Attributes:
        down: Name of A.
        up: Name of B.
        scaling: What the product is multiplied with.
        shape: Of the parameter: [o, i], or for experts [e, o, i] or [e, i, o].
        input_first: Whether it is [e, i, o].
    """

    down: str
    up: str
    scaling: float
    shape: tuple[int, ...]
    input_first: bool


@dataclass(frozen=True)
class ParameterChanges(Expression):
    """The changes of parameters, by their names in the module, computed an expert at a time.

    Attributes:
        adapter: The file with the factors.
        changes: By name.
    """

    adapter: WeightFile
    changes: Mapping[str, ParameterChange]

    @property
    def specs(self) -> Mapping[str, TensorSpec]:
        """Float32, of the parameters' shapes."""
        return {name: TensorSpec(torch.float32, change.shape) for name, change in self.changes.items()}

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        """Multiply the factors.

        Args:
            name: A key of ``specs``.
            rows: Range of the first dimension; None for all of it.

        Returns:
            The change.
        """
        change = self.changes[name]
        part = rows or slice(None)
        down, up = self.adapter.read(change.down).float(), self.adapter.read(change.up).float()
        if len(change.shape) == 2:
            return up[part] @ down * change.scaling
        experts = change.shape[0]
        down = down.view(experts, -1, down.shape[1])[part]
        up = up.view(up.shape[0], -1, experts)[..., part]
        order = "ore,eri->eio" if change.input_first else "ore,eri->eoi"
        return torch.einsum(order, up, down) * change.scaling


def parameter_changes(
    path: Path, adapter: WeightFile, config: LoraConfig, modules: Mapping[str, Factors], base: TiedModel
) -> tuple[TensorSource, list[str]]:
    """Find which parameters the factors of an adapter with target_parameters change.

    Args:
        path: The adapter's file, for messages.
        adapter: Its tensors.
        config: Its settings.
        modules: Its factors by module.
        base: The base model.

    Returns:
        The changes as the base's files have them, and the keys of ``modules`` that they are made of.

    Raises:
        GradfixError: If a module or parameter isn't found in the base, or has another shape.
    """
    model = skeleton(base.config)
    if model is None:
        raise GradfixError(
            f"{path}: adapts parameters ({listed(config.parameters, 3)}), and the config.json of {base.location} names "
            "no class of transformers that tells whose they are: merge the adapter with peft and give the result"
        )
    groups: dict[str, list[str]] = {}
    for module in modules:
        groups.setdefault(module.replace(_WRAPPED, ""), []).append(module)
    changes: dict[str, ParameterChange] = {}
    used: list[str] = []
    for module, keys in groups.items():
        owner = _submodule(model, module)
        owned = [] if owner is None else _targets(owner, module, config.parameters)
        if not owned:
            continue
        # Each further parameter of a module is wrapped around those before it: the first lies innermost.
        keys = sorted(keys, key=lambda key: -key.count(_WRAPPED))
        if len(keys) != len(owned):
            raise GradfixError(
                f"{path}: module {module!r}: expected factors for {listed(owned)}, found {len(keys)}: save the adapter "
                "again"
            )
        for name, key in zip(owned, keys, strict=True):
            parameter = owner.get_parameter(name.rpartition(".")[2])  # type: ignore[union-attr]
            factors = modules[key]
            changes[name] = _change(path, adapter, config, name, factors, parameter, owner)
        used += keys
    found = AsStored(ParameterChanges(adapter, MappingProxyType(changes)), layout_of(model, base.specs))
    whole = [
        name
        for name in found.specs
        if name in base.specs and found.specs[name].shape == base.specs[name].shape
    ]
    if not changes or len(whole) != len(found.specs) or not whole:
        raise GradfixError(
            f"{path}: the base {base.location} has none of the parameters {listed(config.parameters, 3)}, or stores "
            "them in a form that isn't known: give the base it was trained on"
        )
    return found, used


def _submodule(model: nn.Module, name: str) -> nn.Module | None:
    try:
        return model.get_submodule(name)
    except AttributeError:
        return None


def _targets(module: nn.Module, path: str, targets: Iterable[str]) -> list[str]:
    """The parameters of a module that peft adapts, in its order."""
    names = [f"{path}.{name}" for name, _ in module.named_parameters(recurse=False)]
    return [
        name for name in names if any(name == target or name.endswith(f".{target}") for target in targets)
    ]


def _change(
    path: Path,
    adapter: WeightFile,
    config: LoraConfig,
    name: str,
    factors: Factors,
    parameter: Tensor,
    owner: Any,
) -> ParameterChange:
    shape = tuple(parameter.shape)
    down, up = adapter.specs[factors.down].shape, adapter.specs[factors.up].shape
    rank = config.rank_of(name) * (shape[0] if len(shape) == 3 else 1)
    fits = {
        False: len(shape) in (2, 3) and (up, down) == ((shape[-2], rank), (rank, shape[-1])),
        True: len(shape) == 3 and (up, down) == ((shape[-1], rank), (rank, shape[-2])),
    }
    if not any(fits.values()):
        raise GradfixError(
            f"{path}: {name}: expected factors of rank {config.rank_of(name)} for {list(shape)}, found lora_A "
            f"{list(down)} and lora_B {list(up)}: give the base it was trained on"
        )
    input_first = fits[True]
    if all(
        fits.values()
    ):  # a module says whether its experts are stored input first; old versions took all to be so
        input_first = bool(getattr(owner, "is_transposed", False))
        if not input_first and config.peft_version < (0, 21):
            raise GradfixError(
                f"{path}: {name}: is square, and versions of peft before 0.21 may have meant it either way: save the "
                "adapter again with a newer one"
            )
    return ParameterChange(factors.down, factors.up, config.scaling(name), shape, input_first)
