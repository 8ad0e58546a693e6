"""Tied weights are one tensor, under the name that the architecture declares."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from gradfix.checkpoints import Checkpoint
from gradfix.checkpoints.architecture import may_tie
from tests import models

T5_ALIASES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")
BUILDERS = [
    models.tiny_bert,
    models.tiny_bert_masked_lm,
    models.tiny_t5,
    models.tiny_gpt2,
    models.tiny_llama,
    models.tiny_qwen2,
    models.tiny_clip,
    models.tiny_roberta,
    models.tiny_distilbert,
]


@pytest.mark.parametrize("build", BUILDERS, ids=lambda build: build.__name__)
def test_canonical_names_are_those_of_named_parameters(tmp_path: Path, build: type[nn.Module]) -> None:
    model = build()
    model.save_pretrained(tmp_path / "safetensors", max_shard_size="12KB")
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    parameters = {name for name, _ in model.named_parameters()}
    for location in (tmp_path / "safetensors", tmp_path / "weights.pt"):
        checkpoint = Checkpoint.open(location)
        assert parameters <= set(checkpoint)
        assert not set(checkpoint) & set(checkpoint.ties)
        for name, tensor in model.state_dict().items():
            if name in checkpoint or name in checkpoint.ties:
                assert torch.equal(checkpoint[name], tensor)
        assert parameters <= set(checkpoint) <= set(model.state_dict())


def test_t5_is_tied_although_its_config_says_false(tmp_path: Path) -> None:
    model = models.tiny_t5()
    model.save_pretrained(tmp_path)
    config = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(
        config.replace('"tie_word_embeddings": true', '"tie_word_embeddings": false')
    )
    checkpoint = Checkpoint.open(tmp_path)
    assert checkpoint.ties == dict.fromkeys(T5_ALIASES, "shared.weight")


def test_stored_copies_count_once_if_equal_and_apart_if_not(tmp_path: Path) -> None:
    models.tiny_t5().save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    copies = {name: tensors["shared.weight"].clone() for name in T5_ALIASES}
    save_file({**tensors, **copies}, tmp_path / "model.safetensors")
    checkpoint = Checkpoint.open(tmp_path)
    assert set(checkpoint) == set(tensors)
    assert torch.equal(checkpoint["lm_head.weight"], tensors["shared.weight"])
    # T5 v1.1: its output was trained apart, which transformers sees by the values too
    copies["lm_head.weight"][50, 3] += 1
    save_file({**tensors, **copies}, tmp_path / "model.safetensors")
    checkpoint = Checkpoint.open(tmp_path)
    assert set(checkpoint) == {*tensors, "lm_head.weight"}
    assert "lm_head.weight" not in checkpoint.ties
    assert torch.equal(checkpoint["lm_head.weight"], copies["lm_head.weight"])
    assert any(
        "lm_head.weight is stored with other values than shared.weight" in note for note in checkpoint.notes
    )


def test_a_file_with_only_the_alias_is_read_under_the_canonical_name(tmp_path: Path) -> None:
    models.tiny_gpt2().save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    expected = tensors.pop("transformer.wte.weight")
    save_file({**tensors, "lm_head.weight": expected}, tmp_path / "model.safetensors")
    checkpoint = Checkpoint.open(tmp_path)
    assert "lm_head.weight" not in checkpoint
    assert checkpoint.specs["transformer.wte.weight"].shape == (96, 16)
    assert torch.equal(checkpoint["transformer.wte.weight"], expected)
    assert torch.equal(checkpoint["lm_head.weight"], expected)


def test_ties_are_spelled_as_the_file_spells_them(tmp_path: Path) -> None:
    models.tiny_bert_masked_lm().save_pretrained(tmp_path)
    tensors = {
        f"wrapped.{name}": tensor for name, tensor in load_file(tmp_path / "model.safetensors").items()
    }
    save_file(tensors, tmp_path / "model.safetensors")
    source = "wrapped.bert.embeddings.word_embeddings.weight"
    assert Checkpoint.open(tmp_path).ties["wrapped.cls.predictions.decoder.weight"] == source


def test_transformers_is_asked_only_when_a_config_may_tie() -> None:
    assert not may_tie({})
    assert not may_tie({"architectures": ["ViTModel"], "hidden_size": 8})
    assert not may_tie({"architectures": ["LlamaForCausalLM"], "vocab_size": 9, "tie_word_embeddings": False})
    assert may_tie({"architectures": ["GPT2LMHeadModel"], "vocab_size": 9})
    assert may_tie({"architectures": ["X"], "tie_word_embeddings": False, "text_config": {"vocab_size": 9}})
    assert may_tie({"architectures": ["T5Model"], "tie_word_embeddings": False, "is_encoder_decoder": True})


@pytest.mark.parametrize(
    "config",
    [
        '{"architectures": ["NoSuchModel"], "vocab_size": 3}',
        '{"architectures": ["BertForMaskedLM"], "hidden_size": "x"}',
    ],
)
def test_an_unknown_architecture_ties_nothing(tmp_path: Path, config: str) -> None:
    save_file({"x": torch.zeros(2)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(config)
    checkpoint = Checkpoint.open(tmp_path)
    assert checkpoint.ties == {}
    assert list(checkpoint) == ["x"]


@pytest.mark.slow
def test_an_untied_model_is_opened_without_importing_transformers(tmp_path: Path) -> None:
    models.tiny_llama().save_pretrained(tmp_path)
    script = (
        "import sys; from gradfix.checkpoints import Checkpoint; c = Checkpoint.open(sys.argv[1]); "
        "assert len(c.specs) == 21 and not c.ties; print('transformers' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"
