"""Layers that a regression fits: outputs that arrive scaled or through a norm, convolutions, models without blocks."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    ConvNextConfig,
    ConvNextForImageClassification,
    Dinov2Config,
    Dinov2ForImageClassification,
    Gemma2Config,
    Gemma2ForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    ResNetConfig,
    ResNetForImageClassification,
)

from gradfix.alignment import regression
from gradfix.alignment.activations import Activations, Point
from gradfix.alignment.affine import input_rows, output_of, stored
from gradfix.alignment.blocks import Writer, find_writers
from gradfix.alignment.regression import SOURCE, TARGET, TUNED, fit_blocks
from gradfix.alignment.rows import each_token
from tests.triples import perturbed

SAMPLES = 48
TEXT = {"vocab_size": 96, "hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 24, "head_dim": 8,
        "num_attention_heads": 2, "num_key_value_heads": 1, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
        "max_position_embeddings": 32}  # fmt: skip


class Voice(nn.Module):
    """Convolutions before an LSTM, and class scores."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(3, 8, 3, padding=1)
        self.second = nn.Conv1d(8, 6, 3, stride=2, dilation=2)
        self.memory = nn.LSTM(6, 8, batch_first=True)
        self.head = nn.Linear(8, 4)

    def forward(self, pixel_values: Tensor) -> tuple[Tensor]:
        hidden = self.second(self.first(pixel_values.flatten(2)[:, :, :24]).relu()).relu()
        return (self.head(self.memory(hidden.transpose(1, 2))[0].mean(dim=1)),)


def dinov2() -> nn.Module:
    return Dinov2ForImageClassification(
        Dinov2Config(
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            mlp_ratio=2,
            image_size=16,
            patch_size=4,
        )
    )


def convnext() -> nn.Module:
    return ConvNextForImageClassification(
        ConvNextConfig(hidden_sizes=[8, 8, 12, 12], depths=[1, 1, 1, 1], patch_size=2, image_size=16)
    )


def resnet() -> nn.Module:
    return ResNetForImageClassification(
        ResNetConfig(embedding_size=6, hidden_sizes=[6, 8], depths=[1, 1], layer_type="basic")
    )


MODELS: Mapping[str, Callable[[], nn.Module]] = {
    "dinov2": dinov2,
    "convnext": convnext,
    "resnet": resnet,
    "voice": Voice,
    "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(**TEXT)),
    "olmo2": lambda: Olmo2ForCausalLM(Olmo2Config(**{k: v for k, v in TEXT.items() if k != "head_dim"})),
}
EXACT = ("dinov2", "convnext", "resnet", "voice")
"""Models in which a change of a writer's output arrives in proportion."""


def model_of(family: str) -> nn.Module:
    torch.manual_seed(0)
    model = MODELS[family]().eval()
    perturbed(model, 0.2, seed=1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 2)
    return model


def batch_of(family: str) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    if family in ("gemma2", "olmo2"):
        return {"input_ids": torch.randint(3, 96, (SAMPLES, 10), generator=generator)}
    return {"pixel_values": torch.randn(SAMPLES, 3, 16, 16, generator=generator)}


def outputs(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(**batch)[0]
    return found


def writers_of(model: nn.Module, batch: dict[str, Tensor]) -> list[Writer]:
    return find_writers(
        model, lambda one: model(**one), batch, {name for name, _ in model.named_parameters()}
    )


@pytest.mark.parametrize("family", MODELS)
def test_what_a_fine_tune_wrote_is_fitted_wherever_it_arrives(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(regression, "RIDGES", (1e-9,))
    source, batch = model_of(family), batch_of(family)
    target, tuned = copy.deepcopy(source), copy.deepcopy(source)
    writers = writers_of(source, batch)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for one in writers:
            weight = tuned.get_parameter(one.weight)
            weight.add_(torch.randn(weight.shape, generator=generator), alpha=0.1 * float(weight.std()))
    streams = [one.stream for one in writers]
    with Activations(each_token(SAMPLES)) as activations:
        for key, model in ((SOURCE, source), (TUNED, tuned), (TARGET, target)):
            activations.record(key, model, lambda one, model=model: model(**one), [batch], streams)
        found = fit_blocks(target, lambda one: target(**one), batch, writers, activations)
        moved = copy.deepcopy(target)
        with torch.no_grad():
            for name, change in found.changes.items():
                assert change.shape == moved.get_parameter(name).shape
                moved.get_parameter(name).add_(change)
    assert found.changes.keys() >= {one.weight for one in writers}
    before, wanted = outputs(source, batch), outputs(tuned, batch)
    left = float((outputs(moved, batch) - wanted).norm() / (wanted - before).norm())
    assert left < (0.02 if family in EXACT else 0.3)


def test_where_writers_arrive() -> None:
    found = {family: writers_of(model_of(family), batch_of(family)) for family in MODELS}
    assert [one.gain is not None for one in found["dinov2"]] == [True, True]  # LayerScale
    assert [one.stream for one in found["convnext"]] == [
        Point(f"convnext.encoder.stages.{n}", "out") for n in range(4)
    ]
    assert [one.norm for one in found["gemma2"]] == [
        f"model.layers.{n}.post_feedforward_layernorm" for n in (0, 1)
    ]
    assert [one.stream for one in found["olmo2"]] == [Point(f"model.layers.{n}", "out") for n in (0, 1)]
    assert [one.module for one in found["voice"]] == ["first", "second", "head"]
    assert all(one.stream == Point(one.module, "out") for one in found["resnet"])
    assert len(found["resnet"]) > 4


@pytest.mark.parametrize(
    "module",
    [
        nn.Conv2d(3, 4, 3, padding=1),
        nn.Conv2d(3, 4, (3, 2), stride=(2, 1), dilation=(1, 2), padding="valid"),
        nn.Conv2d(3, 4, 3, padding="same", padding_mode="reflect"),
        nn.Conv1d(3, 4, 5, stride=3),
        nn.Conv3d(3, 4, 2),
        nn.Linear(3, 4),
    ],
)
def test_a_convolution_is_a_matrix_over_patches(module: Any) -> None:
    axes = 2 if isinstance(module, nn.Linear) else module.weight.dim() - 2
    shape = (2, 7, 3) if isinstance(module, nn.Linear) else (2, 3, *([7] * axes))
    inputs = torch.randn(shape)
    take = lambda values: values.flatten(0, 1)  # noqa: E731
    rows = input_rows(module, inputs, take)
    weight = torch.randn(4, rows.shape[1])
    made = output_of(module, inputs, weight, None)
    tokens = made if isinstance(module, nn.Linear) else made.flatten(2).transpose(1, 2)
    assert torch.allclose(take(tokens), rows @ weight.T, atol=1e-5)
    with torch.no_grad():
        module.weight.copy_(stored(module, weight))
        module.bias.zero_()
    assert torch.allclose(module(inputs), made, atol=1e-5)
