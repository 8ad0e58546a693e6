"""Stored and in-memory forms: what transformers' tables turn one into, they turn back, whole and by rows."""

from pathlib import Path

import pytest
import torch
from transformers import (
    Dinov2Config,
    Dinov2Model,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    ViTConfig,
    ViTModel,
)

from gradfix.checkpoints import Checkpoint, TensorSpec
from gradfix.checkpoints.expressions import Given
from gradfix.checkpoints.layouts import AsStored, InMemory, identity, layout_of

TEXT = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}
MODELS = {
    "experts": lambda: MixtralForCausalLM(MixtralConfig(**TEXT, num_local_experts=3, num_experts_per_tok=2)),
    "more than ten experts": lambda: Qwen3MoeForCausalLM(
        Qwen3MoeConfig(**TEXT, num_experts=12, num_experts_per_tok=2, moe_intermediate_size=8, head_dim=8)
    ),
    "one stored for two": lambda: Dinov2Model(Dinov2Config(**VISION, use_swiglu_ffn=True)),
    "renamed": lambda: ViTModel(ViTConfig(**VISION)),
}


@pytest.mark.parametrize("kind", MODELS)
def test_stored_tensors_become_those_of_the_module_and_come_back(kind: str, tmp_path: Path) -> None:
    model = MODELS[kind]()
    model.save_pretrained(tmp_path)
    stored = Checkpoint.open(tmp_path)
    layout = layout_of(model, stored.specs)
    memory = InMemory(stored, layout)
    assert layout.unknown == ()
    assert memory.specs.keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert torch.equal(memory.read(name), value)
        assert memory.specs[name].shape == tuple(value.shape)
        if value.ndim:
            rows = slice(1, value.shape[0])
            assert torch.equal(memory.read(name, rows), value[rows])
    back = AsStored(Given(dict(model.state_dict())), layout)
    assert back.specs.keys() == stored.specs.keys()
    for name in stored.specs:
        assert torch.equal(back.read(name), stored.read(name))
        assert torch.equal(back.read(name, slice(0, 1)), stored.read(name, slice(0, 1)))


@pytest.mark.parametrize("kind", MODELS)
def test_names_in_memory_are_a_spelling_of_their_own(kind: str) -> None:
    model = MODELS[kind]()
    specs = {name: TensorSpec(value.dtype, tuple(value.shape)) for name, value in model.state_dict().items()}
    assert layout_of(model, specs) == identity(specs)


def test_an_expert_is_converted_without_the_others(tmp_path: Path) -> None:
    model = MODELS["experts"]()
    model.save_pretrained(tmp_path)
    stored = Checkpoint.open(tmp_path)
    asked: list[str] = []

    class Recorded:
        specs = stored.specs

        def read(self, name: str, rows: slice | None = None) -> torch.Tensor:
            asked.append(name)
            return stored.read(name, rows)

    memory = InMemory(Recorded(), layout_of(model, stored.specs))
    memory.read("model.layers.1.mlp.experts.gate_up_proj", slice(2, 3))
    assert asked == [f"model.layers.1.block_sparse_moe.experts.2.{name}.weight" for name in ("w1", "w3")]


def test_a_missing_expert_is_no_smaller_model(tmp_path: Path) -> None:
    model = MODELS["experts"]()
    model.save_pretrained(tmp_path)
    specs = dict(Checkpoint.open(tmp_path).specs)
    del specs["model.layers.0.block_sparse_moe.experts.1.w2.weight"]
    layout = layout_of(model, specs)
    assert "model.layers.0.mlp.experts.down_proj" not in layout.parts_of_memory
    assert "model.layers.0.block_sparse_moe.experts.0.w2.weight" in layout.unknown
