"""Adapters are read as the dense weights that peft's own merge makes of them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from gradfix.checkpoints import Checkpoint
from gradfix.errors import GradfixError
from tests import models

# peft asks transformers for an attribute that 5.x deprecates, remarks on ties, and saves targeted embeddings
pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to:UserWarning"),
    pytest.mark.filterwarnings("ignore:Could not find a config file:UserWarning"),
    # a false alarm of peft: the biases of lora_B are vectors
    pytest.mark.filterwarnings("ignore:.*LoRA tensor.s. have invalid shape"),
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning"),
]


def _adapt(
    build: Callable[..., nn.Module], tmp_path: Path, dtype: torch.dtype = torch.float32, **settings: Any
) -> tuple[Path, Path, nn.Module]:
    """Save a base and a random adapter on it; return both and the merged model in float32."""
    base = build().to(dtype)
    base.save_pretrained(tmp_path / "base")
    adapted = peft.get_peft_model(base.float(), peft.LoraConfig(**{"r": 4, "lora_alpha": 6, **settings}))
    generator = torch.Generator().manual_seed(3)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data = parameter.data + 0.1 * noise
    adapted.save_pretrained(tmp_path / "adapter")
    return tmp_path / "base", tmp_path / "adapter", adapted.merge_and_unload()


def _check(base: Path, adapter: Path, merged: nn.Module) -> Checkpoint:
    checkpoint = Checkpoint.open(adapter, base=base)
    before = Checkpoint.open(base)
    expected = merged.state_dict()
    changed = 0
    for name in checkpoint:
        tensor = checkpoint[name]
        assert tensor.dtype == checkpoint.specs[name].dtype
        assert tuple(tensor.shape) == checkpoint.specs[name].shape
        torch.testing.assert_close(tensor.float(), expected[name], rtol=1e-5, atol=1e-6)
        if tensor.ndim and len(tensor) > 2:
            part = checkpoint.read(name, slice(1, len(tensor) - 1))
            torch.testing.assert_close(part, tensor[1:-1], rtol=1e-5, atol=1e-6)
        changed += name in before and not torch.equal(tensor, before[name])
    assert set(expected) <= {*checkpoint, *checkpoint.ties}
    assert changed
    return checkpoint


LINEAR = [
    pytest.param({}, id="plain"),
    pytest.param({"use_rslora": True}, id="rslora"),
    pytest.param(
        {
            "rank_pattern": {r"layer.0.attention.self.query": 2, "value": 3},
            "alpha_pattern": {r"1\.attention\.self\.query": 11, r"encoder\..*\.value": 5},
        },
        id="patterns",
    ),
    pytest.param(
        {"use_rslora": True, "rank_pattern": {"query": 2}, "alpha_pattern": {"query": 3}}, id="rs-patterns"
    ),
    pytest.param({"bias": "lora_only"}, id="bias-lora"),
    pytest.param({"bias": "all"}, id="bias-all"),
    pytest.param({"lora_bias": True}, id="lora-bias"),
    pytest.param({"use_dora": True}, id="dora"),
]


@pytest.mark.parametrize("settings", LINEAR)
def test_bert_with_a_head_equals_the_merge(tmp_path: Path, settings: dict[str, Any]) -> None:
    targets = ["query", "value", "intermediate.dense"]
    checkpoint = _check(
        *_adapt(
            models.tiny_bert, tmp_path, target_modules=targets, modules_to_save=["classifier"], **settings
        )
    )
    assert checkpoint.kind.startswith("LoRA adapter on ")
    assert any("6 weights adapted" in note for note in checkpoint.notes)


@pytest.mark.parametrize("dora", [False, True])
def test_embeddings_equal_the_merge(tmp_path: Path, dora: bool) -> None:
    targets = ["word_embeddings", "dense"]
    _check(*_adapt(models.tiny_bert, tmp_path, target_modules=targets, use_dora=dora))


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("fan_in_fan_out", [False, True])
def test_gpt2_with_square_conv1d_equals_the_merge(tmp_path: Path, dora: bool, fan_in_fan_out: bool) -> None:
    targets = ["c_attn", "c_proj"]
    base, adapter, merged = _adapt(
        models.tiny_gpt2, tmp_path, target_modules=targets, fan_in_fan_out=True, use_dora=dora
    )
    # peft saves the flag of the last layer it adapted, so it may say either of these square layers
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "fan_in_fan_out": fan_in_fan_out}))
    _check(base, adapter, merged)


def test_llama_in_bfloat16_is_given_in_float32(tmp_path: Path) -> None:
    base, adapter, merged = _adapt(
        models.tiny_llama, tmp_path, torch.bfloat16, target_modules="all-linear", use_rslora=True
    )
    checkpoint = _check(base, adapter, merged)
    assert checkpoint.specs["model.layers.0.self_attn.q_proj.weight"].dtype == torch.float32
    assert checkpoint.specs["model.norm.weight"].dtype == torch.bfloat16


def test_convolution_equals_the_merge(tmp_path: Path) -> None:
    _check(*_adapt(models.tiny_clip, tmp_path, target_modules=["patch_embedding", "q_proj"]))


def test_vit_is_matched_by_saved_names(tmp_path: Path) -> None:
    base, adapter, merged = _adapt(models.tiny_vit, tmp_path, target_modules=["q_proj"])
    merged.save_pretrained(tmp_path / "merged")
    expected, found = Checkpoint.open(tmp_path / "merged"), Checkpoint.open(adapter, base=base)
    assert set(found) == set(expected)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-6)


def test_base_without_prefix_and_new_head(tmp_path: Path) -> None:
    model = models.tiny_bert()
    _, adapter, merged = _adapt(
        models.tiny_bert, tmp_path, target_modules=["query"], modules_to_save=["classifier"]
    )
    model.bert.save_pretrained(tmp_path / "bare")
    checkpoint = Checkpoint.open(adapter, base=tmp_path / "bare")
    assert "encoder.layer.0.attention.self.query.weight" in checkpoint
    assert checkpoint.specs[
        "bert.classifier.weight" if "bert.classifier.weight" in checkpoint else "classifier.weight"
    ]
    expected = merged.state_dict()["bert.encoder.layer.0.attention.self.query.weight"]
    torch.testing.assert_close(checkpoint["encoder.layer.0.attention.self.query.weight"], expected)


def test_base_named_by_the_config(tmp_path: Path) -> None:
    base, adapter, merged = _adapt(models.tiny_bert, tmp_path, target_modules=["query"])
    config = json.loads((adapter / "adapter_config.json").read_text())
    with pytest.raises(GradfixError, match="names no base model: pass the base"):
        Checkpoint.open(adapter)
    config["base_model_name_or_path"] = str(base)
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    name = "bert.encoder.layer.0.attention.self.query.weight"
    torch.testing.assert_close(Checkpoint.open(adapter)[name], merged.state_dict()[name])
    config["base_model_name_or_path"] = str(adapter)
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(GradfixError, match="is itself an adapter"):
        Checkpoint.open(adapter)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_type": "IA3"}, r"peft_type: expected 'LORA', found 'IA3'"),
        ({"use_qalora": True}, r"use_qalora: True is not supported"),
        ({"layer_replication": [[0, 2]]}, r"layer_replication: .* is not supported"),
        ({"trainable_token_indices": [1]}, r"trainable_token_indices: \[1\] is not supported"),
        ({"some_setting_of_2030": 1}, r"some_setting_of_2030: 1 is not supported"),
        ({"init_lora_weights": "pissa"}, r"init_lora_weights: 'pissa' changes the base's own weights"),
        ({"r": 5}, r"expected rank 5 by adapter_config.json, found lora_A \[4, 16\]"),
        ({"r": 0}, r"r: expected an integer > 0, found 0"),
        ({"lora_alpha": "x"}, r"lora_alpha: expected a number, found 'x'"),
        ({"alpha_pattern": {"(": 1}}, r"no regular expression"),
        ({"use_dora": True}, r"use_dora is set, but it has no magnitudes"),
    ],
)
def test_unsupported_settings_are_refused_by_name(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    base, adapter, _ = _adapt(models.tiny_bert, tmp_path, target_modules=["query"])
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(GradfixError, match=message) as refusal:
        Checkpoint.open(adapter, base=base)
    assert "\n" not in str(refusal.value)


def test_tensors_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    base, adapter, _ = _adapt(models.tiny_bert, tmp_path, target_modules=["query"])
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    first = next(iter(tensors))
    save_file({**tensors, first.replace("lora_A", "lora_C"): torch.zeros(1)}, file)
    with pytest.raises(GradfixError, match=r"lora_C.* is of no kind that is supported"):
        Checkpoint.open(adapter, base=base)
    save_file({name: tensor for name, tensor in tensors.items() if name != first}, file)
    with pytest.raises(GradfixError, match="expected both lora_A and lora_B"):
        Checkpoint.open(adapter, base=base)
    save_file({name.replace("query", "quarry"): tensor for name, tensor in tensors.items()}, file)
    with pytest.raises(
        GradfixError, match=r"none of its 2 layers is in the base .*quarry.*give the base it was"
    ):
        Checkpoint.open(adapter, base=base)
    save_file({name.replace("layer.1.", "layer.9."): tensor for name, tensor in tensors.items()}, file)
    parts = Checkpoint.open(adapter, base=base).adapter
    assert parts is not None
    assert (len(parts.updates), len(parts.unplaced)) == (1, 1)
    assert "layer.9." in parts.unplaced[0]
    wider = {n: torch.zeros(t.shape[0], 24) if "lora_A" in n else t for n, t in tensors.items()}
    save_file(wider, file)
    with pytest.raises(GradfixError, match=r"expected factors of .* \[16, 16\], found lora_A \[4, 24\]"):
        Checkpoint.open(adapter, base=base)


def test_a_bias_that_the_base_does_not_have_is_refused(tmp_path: Path) -> None:
    base, adapter, _ = _adapt(models.tiny_llama, tmp_path, target_modules=["q_proj"])
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if "lora_B" in name)
    bias = torch.zeros(len(tensors[name]))
    save_file({**tensors, name.replace(".weight", ".bias"): bias}, file)
    with pytest.raises(GradfixError, match=r"adapts '.*q_proj.bias' .*which the base .* doesn't have"):
        Checkpoint.open(adapter, base=base)


def test_one_side_of_a_tied_pair_is_refused(tmp_path: Path) -> None:
    base, adapter, _ = _adapt(models.tiny_gpt2, tmp_path, target_modules=["wte"], task_type="CAUSAL_LM")
    with pytest.raises(
        GradfixError, match=r"changes 'transformer.wte.weight', which .* ties to 'lm_head.weight'"
    ):
        Checkpoint.open(adapter, base=base)


def test_whole_copies_of_both_sides_of_a_tied_pair_are_one_if_equal(tmp_path: Path) -> None:
    base, adapter, _ = _adapt(models.tiny_gpt2, tmp_path, target_modules=["c_attn"], fan_in_fan_out=True)
    file = adapter / "adapter_model.safetensors"
    embedding = torch.randn(96, 16)
    both = {
        "base_model.model.transformer.wte.weight": embedding,
        "base_model.model.lm_head.weight": embedding.clone(),
    }
    save_file({**load_file(file), **both}, file)
    assert torch.equal(Checkpoint.open(adapter, base=base)["lm_head.weight"], embedding)
    both["base_model.model.lm_head.weight"] += 1
    save_file({**load_file(file), **both}, file)
    with pytest.raises(GradfixError, match="expected both to stay one tensor"):
        Checkpoint.open(adapter, base=base)


def test_adapter_beside_a_whole_model_is_ambiguous(tmp_path: Path) -> None:
    base, adapter, _ = _adapt(models.tiny_bert, tmp_path, target_modules=["query"])
    (adapter / "model.safetensors").write_bytes((base / "model.safetensors").read_bytes())
    with pytest.raises(GradfixError, match=r"holds both a whole model .* and an adapter"):
        Checkpoint.open(adapter, base=base)
    file = Checkpoint.open(adapter / "adapter_model.safetensors", base=base)
    assert file.kind.startswith("LoRA")


def test_quantised_base_is_refused(tmp_path: Path) -> None:
    base, adapter, _ = _adapt(models.tiny_bert, tmp_path, target_modules=["query"])
    file = base / "model.safetensors"
    save_file({n: t.to(torch.int8) if "query" in n else t for n, t in load_file(file).items()}, file)
    with pytest.raises(GradfixError, match=f"{base}: is quantised .* holds int8 codes"):
        Checkpoint.open(adapter, base=base)


def test_digest_is_of_base_and_adapter(tmp_path: Path) -> None:
    base, adapter, _ = _adapt(models.tiny_bert, tmp_path, target_modules=["query"])
    before = Checkpoint.open(adapter, base=base).digest()
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": 7}))
    assert Checkpoint.open(adapter, base=base).digest() != before
    assert Checkpoint.open(base).digest() != before
