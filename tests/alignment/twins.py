"""A model and its twin: the same function in other coordinates, along maps that are known."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MPNetConfig,
    MPNetForSequenceClassification,
    SiglipConfig,
    SiglipModel,
)

from gradfix.alignment.activations import Activations
from gradfix.alignment.rotation.families import spaces_of
from gradfix.alignment.rotation.maps import HeadMap, Map, Permutation, Rotation
from gradfix.alignment.rotation.rotate import Rotated, rotation_points
from gradfix.alignment.rotation.spaces import HEADS, Spaces
from gradfix.checkpoints.expressions import Given
from gradfix.vectors.task_vector import TaskVector
from tests import models as shapes
from tests.triples import FAMILIES, perturbed

SIZES = {"vocab_size": 96, "hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 32}


def _grouped(kind: Any, config: Any) -> Callable[..., nn.Module]:
    settings = {**SIZES, "num_attention_heads": 4, "num_key_value_heads": 2}
    return lambda seed=0: shapes._seeded(kind, config(**settings, bos_token_id=1, eos_token_id=2), seed)


def tiny_mpnet(seed: int = 0) -> nn.Module:
    return shapes._seeded(MPNetForSequenceClassification, MPNetConfig(**SIZES, num_attention_heads=2), seed)


def tiny_siglip(seed: int = 0) -> nn.Module:
    text = {**SIZES, "num_attention_heads": 2, "projection_size": 16, "max_position_embeddings": 12}
    text |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    vision = {**SIZES, "num_attention_heads": 2, "image_size": 16, "patch_size": 4}
    del vision["vocab_size"]
    return shapes._seeded(SiglipModel, SiglipConfig(text_config=text, vision_config=vision), seed)


def tiny_gated_t5(seed: int = 0) -> nn.Module:
    return FAMILIES["t5"](seed, feed_forward_proj="gated-gelu", tie_word_embeddings=False)


MODELS: dict[str, Callable[..., nn.Module]] = {
    **{name: FAMILIES[name] for name in FAMILIES if name not in {"llama"}},
    "bert-mlm": shapes.tiny_bert_masked_lm,
    "mpnet": tiny_mpnet,
    "gated t5": tiny_gated_t5,
    "llama": _grouped(LlamaForCausalLM, LlamaConfig),
    "mistral": _grouped(MistralForCausalLM, MistralConfig),
    "siglip": tiny_siglip,
}
UNIT_GAIN = ("llama", "mistral", "qwen2", "t5", "gated t5")
"""Families of RMSNorm without bias: with gains of 1, any rotation of the stream keeps the function."""


def model_of(family: str, seed: int = 0) -> nn.Module:
    """Random weights, large enough that outputs differ; RMSNorms keep their gains of 1."""
    model = MODELS[family](seed=seed)
    gains = {
        name: value.detach().clone()
        for name, value in model.named_parameters()
        if family in UNIT_GAIN and "norm" in name
    }
    perturbed(model, 0.3, seed=seed + 10)
    with torch.no_grad():
        for name, value in gains.items():
            model.get_parameter(name).copy_(value)
    return model


def inputs_of(model: nn.Module, samples: int = 12, seed: int = 3) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    family = model.config.model_type
    images = torch.randn(samples, 3, 16, 16, generator=generator)
    words = torch.randint(5, 96, (samples, 10), generator=generator)
    if family == "vit":
        batch = {"pixel_values": images}
    elif family in {"clip", "siglip"}:
        words[:, -1] = 2
        batch = {"pixel_values": images, "input_ids": words}
    elif family == "t5":
        batch = {"input_ids": words, "decoder_input_ids": words.flip(1)}
    else:
        batch = {"input_ids": words}
    half = samples // 2
    return [{name: value[part] for name, value in batch.items()} for part in (slice(half), slice(half, None))]


def outputs_of(model: nn.Module) -> Tensor:
    def first(output: Any) -> Tensor:
        return output.logits_per_image if hasattr(output, "logits_per_image") else output[0]

    with torch.no_grad():
        batches = inputs_of(model)
        if model.config.model_type in {"clip", "siglip"}:
            return first(model(**{name: torch.cat([b[name] for b in batches]) for name in batches[0]}))
        return torch.cat([first(model(**batch)) for batch in batches])


def orthogonal(width: int, generator: torch.Generator) -> Tensor:
    return torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64))[0].float()


def random_maps(
    model: nn.Module, *, rotate_streams: bool, rotate_heads: bool, seed: int = 5
) -> dict[str, Map]:
    """Draw a map for every space that can be seen, such that the function stays the same."""
    spaces = spaces_of(model)
    generator = torch.Generator().manual_seed(seed)
    widths = widths_of(model, spaces)

    def shuffle(count: int) -> Tensor:
        return torch.randperm(count, generator=generator)

    maps: dict[str, Map] = {}
    for name in spaces.streams:
        width = widths[name]
        maps[name] = Rotation(orthogonal(width, generator)) if rotate_streams else Permutation(shuffle(width))
    for name in spaces.units:
        maps[name] = Permutation(shuffle(widths[name]))
    for order in sorted({attention.order for attention in spaces.attentions.values()}):
        members = {path: each for path, each in spaces.attentions.items() if each.order == order}
        some = next(iter(members.values()))
        if not some.readings["merged"]:
            continue
        each = some.heads // some.groups
        groups = shuffle(some.groups)
        heads = torch.cat([group * each + shuffle(each) for group in groups])
        maps[HEADS + order] = Permutation(heads)
        for path, attention in members.items():
            keys = _within(some.groups, widths[f"{path}.key"], generator, rotate=rotate_heads)
            if attention.rotary:
                keys = torch.eye(keys.shape[-1]).expand_as(keys)
            values = _within(some.groups, widths[f"{path}.value"], generator, rotate=rotate_heads)
            maps[f"{path}.query"] = HeadMap(heads, keys.repeat_interleave(each, 0))
            maps[f"{path}.key"] = HeadMap(groups, keys)
            maps[f"{path}.value"] = HeadMap(groups, values)
            maps[f"{path}.merged"] = HeadMap(heads, values.repeat_interleave(each, 0))
    return maps


def _within(groups: int, width: int, generator: torch.Generator, *, rotate: bool) -> Tensor:
    each = width // groups
    drawn = [
        orthogonal(each, generator)
        if rotate
        else torch.eye(each)[:, torch.randperm(each, generator=generator)]
        for _ in range(groups)
    ]
    return torch.stack(drawn)


def widths_of(model: nn.Module, spaces: Spaces) -> dict[str, int]:
    found: dict[str, int] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        for size, axis in zip(parameter.shape, spaces.places[name].axes, strict=True):
            for space in axis:
                assert size % len(axis) == 0
                assert found.setdefault(space, size // len(axis)) == size // len(axis), (name, space)
    return found


def vector_of(tensors: Mapping[str, Tensor]) -> TaskVector:
    return TaskVector(Given(dict(tensors)))


def moved(tensors: Mapping[str, Tensor], model: nn.Module, maps: Mapping[str, Map]) -> dict[str, Tensor]:
    """Tensors of a model's parameters in other coordinates."""
    turned = Rotated(vector_of(tensors), spaces_of(model).places, maps)
    return {name: turned.read(name) for name in tensors}


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters(remove_duplicate=False)}


def twin_of(model: nn.Module, maps: Mapping[str, Map]) -> nn.Module:
    twin = copy.deepcopy(model)
    weights = moved(weights_of(model), model, maps)
    with torch.no_grad():
        for name, parameter in twin.named_parameters(remove_duplicate=False):
            parameter.copy_(weights[name])
    return twin


def recorded(activations: Activations, **models: nn.Module) -> None:
    """Record every model, under its keyword, at the points that rotations need."""
    for key, model in models.items():
        batches = inputs_of(model)
        if model.config.model_type in {"clip", "siglip"}:
            batches = [{name: torch.cat([b[name] for b in batches]) for name in batches[0]}]
        run = lambda batch, model=model: model(**batch)  # noqa: E731
        activations.record(key, model, run, batches, rotation_points(model))
