"""An adapter before it is written: its configuration and its tensors, as peft and vLLM read them.

Names are those of peft's own files: ``base_model.model.``, the layer's name in the module, and the factor.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from gradfix.checkpoints.tensors import TensorSpec

ADAPTER_FILE = "adapter_model.safetensors"
PREFIX = "base_model.model."

LayerKind = Literal["linear", "transposed", "embedding", "convolution"]
"""How a layer stores its weight: [o, i]; [i, o]; [tokens, o]; [o, i, kernel …]."""


@dataclass(frozen=True)
class LayerShape:
    """One adapted layer.

    Attributes:
        kind: How the layer stores its weight.
        weight: Shape of the weight.
        rank: r.
    """

    kind: LayerKind
    weight: tuple[int, ...]
    rank: int

    @property
    def down(self) -> tuple[int, ...]:
        """Shape of A in the file."""
        inputs = self.weight[:1] if self.kind in ("transposed", "embedding") else self.weight[1:]
        return (self.rank, *inputs)

    @property
    def up(self) -> tuple[int, ...]:
        """Shape of B in the file."""
        outputs = self.weight[1] if self.kind in ("transposed", "embedding") else self.weight[0]
        return (outputs, self.rank, *(1 for _ in self.weight[2:]))


def kind_of(module: nn.Module) -> LayerKind | None:
    """Tell how a layer stores its weight.

    Args:
        module: Any module.

    Returns:
        The kind; None for a module that peft adapts in no way, or that computes otherwise than its class.
    """
    from transformers.pytorch_utils import Conv1D

    computes = type(module).forward
    if computes is nn.Linear.forward:
        return "linear"
    if computes is Conv1D.forward:
        return "transposed"
    if computes is nn.Embedding.forward:
        return "embedding"
    for kind in (nn.Conv1d, nn.Conv2d, nn.Conv3d):
        if computes is kind.forward and isinstance(module, kind) and module.groups == 1:
            return "convolution"
    return None


def adaptable(model: nn.Module) -> list[str]:
    """List the layers of a model that peft could adapt.

    Args:
        model: With memory or without.

    Returns:
        Names of modules.
    """
    from transformers.pytorch_utils import Conv1D

    kinds = (nn.Linear, Conv1D, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    return [path for path, module in model.named_modules() if isinstance(module, kinds)]


def factor_keys(layer: str, kind: LayerKind) -> tuple[str, str]:
    """Name the factors of a layer.

    Args:
        layer: Its name in the module.
        kind: Of the layer.

    Returns:
        The keys of A and B in an adapter's file.
    """
    if kind == "embedding":
        return f"{PREFIX}{layer}.lora_embedding_A", f"{PREFIX}{layer}.lora_embedding_B"
    return f"{PREFIX}{layer}.lora_A.weight", f"{PREFIX}{layer}.lora_B.weight"


def adapter_specs(
    layers: Mapping[str, LayerShape], whole: Mapping[str, TensorSpec], dtype: torch.dtype
) -> dict[str, TensorSpec]:
    """List the tensors of an adapter's file.

    Args:
        layers: The adapted layers by name in the module.
        whole: Tensors saved whole, by name in the module.
        dtype: Of the factors.

    Returns:
        Specs by key, in the order they are written.
    """
    specs = {}
    for name, layer in layers.items():
        down, up = factor_keys(name, layer.kind)
        specs[down], specs[up] = TensorSpec(dtype, layer.down), TensorSpec(dtype, layer.up)
    return {**specs, **{PREFIX + name: spec for name, spec in whole.items()}}


def adapter_config(
    layers: Mapping[str, LayerShape],
    whole: Sequence[str],
    *,
    modules: Iterable[str],
    base: str,
    task_type: str | None,
    biases: bool = False,
) -> dict[str, Any]:
    """Describe an adapter for peft. The scaling is in B, so alpha is the rank everywhere.

    Args:
        layers: The adapted layers by name in the module.
        whole: Modules saved whole.
        modules: All layers of the model that could be adapted.
        base: Location of the model that the adapter stands on, ``org/name@revision`` for one revision of the Hub.
        task_type: What peft calls the task; None to leave that open.
        biases: Whether biases of adapted layers are among the tensors.

    Returns:
        The content of ``adapter_config.json``.
    """
    ranks = [layer.rank for layer in layers.values()]
    rank = max(set(ranks), key=lambda one: (ranks.count(one), one), default=8)
    others = {name: layer.rank for name, layer in layers.items() if layer.rank != rank}
    # The first pattern that matches the end of a name counts, so longer names come first.
    patterns = {re.escape(name): others[name] for name in sorted(others, key=lambda name: (-len(name), name))}
    location, _, revision = base.partition("@")
    return {
        "peft_type": "LORA",
        "task_type": task_type,
        "base_model_name_or_path": location,
        "revision": revision or None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": patterns,
        "alpha_pattern": dict(patterns),
        "target_modules": targets(layers, modules),
        "modules_to_save": list(whole) or None,
        "fan_in_fan_out": any(layer.kind == "transposed" for layer in layers.values()),
        "bias": "lora_only" if biases else "none",
        "lora_dropout": 0.0,
        "use_rslora": False,
        "use_dora": False,
        "init_lora_weights": True,
    }


def targets(layers: Iterable[str], modules: Iterable[str]) -> list[str]:
    """Name layers as briefly as peft reads them: by the end of their names where that means no other layer.

    Args:
        layers: The adapted ones.
        modules: All that could be adapted.

    Returns:
        Last parts of names such as ``q_proj``, or whole names.
    """
    wanted = set(layers)
    last = {name.rpartition(".")[2] for name in wanted}
    meant = {name for name in modules if name.rpartition(".")[2] in last}
    return sorted(last if meant == wanted else wanted)
