"""Which tensors have a row a token is asked of the architecture, and rows go by the token's text."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers import models as token_models

from gradfix.checkpoints import Checkpoint
from gradfix.checkpoints.architecture import vocabulary_tensors
from gradfix.checkpoints.vocabulary import same_tokenizer
from gradfix.errors import GradfixError
from gradfix.vectors.placement import place
from gradfix.vectors.task_vector import TaskVector
from tests import models

TOKENS = models.VOCABULARY
SIZES: dict[str, Any] = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "max_position_embeddings": TOKENS, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1,
    "sep_token_id": 2, "vocab_size": TOKENS, "type_vocab_size": TOKENS,
}  # fmt: skip


def _config(architecture: str, config: transformers.PretrainedConfig) -> dict[str, Any]:
    return {**json.loads(config.to_json_string()), "architectures": [architecture]}


def _save_tokenizer(folder: Path, words: list[str]) -> None:
    ids = {word: index for index, word in enumerate(words)}
    Tokenizer(token_models.WordLevel(ids, unk_token="w0")).save(str(folder / "tokenizer.json"))


WORDS = [f"w{i}" for i in range(TOKENS)]
REVERSED = WORDS[:1] + WORDS[:0:-1]


@pytest.mark.parametrize(
    ("architecture", "config", "tables"),
    [
        ("GPTNeoXForCausalLM", transformers.GPTNeoXConfig(**SIZES), {"gpt_neox.embed_in.weight", "embed_out.weight"}),
        (
            "BertForMaskedLM",  # token types and positions are as many as tokens here, and are none
            transformers.BertConfig(**SIZES),
            {"bert.embeddings.word_embeddings.weight", "cls.predictions.bias", "cls.predictions.decoder.weight",
             "cls.predictions.decoder.bias"},
        ),
        (
            "MambaForCausalLM",
            transformers.MambaConfig(vocab_size=TOKENS, hidden_size=16, state_size=4, num_hidden_layers=1,
                                     pad_token_id=0, bos_token_id=1, eos_token_id=2),
            {"backbone.embeddings.weight", "lm_head.weight"},
        ),
        (
            "CLIPModel",
            transformers.CLIPConfig(text_config=SIZES, vision_config={**SIZES, "image_size": 8, "patch_size": 4}),
            {"text_model.embeddings.token_embedding.weight"},
        ),
        ("XLMWithLMHeadModel", transformers.XLMConfig(vocab_size=TOKENS, emb_dim=16, n_layers=1, n_heads=2),
         {"transformer.embeddings.weight", "pred_layer.proj.weight", "pred_layer.proj.bias"}),
    ],
)  # fmt: skip
def test_the_architecture_knows_its_tables_of_tokens(
    architecture: str, config: transformers.PretrainedConfig, tables: set[str]
) -> None:
    found = vocabulary_tensors(_config(architecture, config))
    assert found is not None
    assert found.keys() == tables
    assert set(found.values()) == {0}


def test_a_bias_may_count_tokens_in_another_dimension() -> None:
    sizes = {
        "encoder_layers": 1,
        "decoder_layers": 1,
        "d_model": 16,
        "encoder_ffn_dim": 16,
        "decoder_ffn_dim": 16,
    }
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    found = vocabulary_tensors(
        _config("BartForConditionalGeneration", transformers.BartConfig(vocab_size=TOKENS, **sizes, **heads))
    )
    assert found is not None
    assert found["final_logits_bias"] == 1


def _three(tmp_path: Path, rename: Mapping[str, str] = {}, **changed: Any) -> tuple[TaskVector, Path]:
    """A base, its fine-tune (every weight + its row's number) and a target whose tokenizer is in another order."""
    models.tiny_gpt_neox().save_pretrained(tmp_path / "base")
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    (tmp_path / "base" / "config.json").write_text(json.dumps({**config, **changed}))
    state = load_file(tmp_path / "base" / "model.safetensors")
    state = {rename.get(name, name): tensor for name, tensor in state.items()}
    for name, words, step in (("base", WORDS, 0.0), ("tuned", WORDS, 1.0), ("target", REVERSED, 0.0)):
        if name != "base":
            shutil.copytree(tmp_path / "base", tmp_path / name)
        _save_tokenizer(tmp_path / name, words)
        moved = {}
        for key, tensor in state.items():
            rows = torch.arange(tensor.shape[0]).reshape(-1, *[1] * (tensor.ndim - 1))
            moved[key] = tensor + step * rows
        save_file(moved, tmp_path / name / "model.safetensors")
    return TaskVector.between(tmp_path / "base", tmp_path / "tuned"), tmp_path / "target"


def test_rows_of_every_table_go_by_token_and_those_of_layers_by_number(tmp_path: Path) -> None:
    tau, target = _three(tmp_path)
    placed = place(tau, Checkpoint.open(target))
    rows = torch.tensor([WORDS.index(word) for word in REVERSED]).float()
    for name in ("gpt_neox.embed_in.weight", "embed_out.weight"):
        torch.testing.assert_close(placed.vector[name][:, 0], rows, atol=1e-4, rtol=0)
    dense = placed.vector["gpt_neox.layers.0.mlp.dense_4h_to_h.weight"][:, 0]
    torch.testing.assert_close(dense, torch.arange(len(dense)).float(), atol=1e-4, rtol=0)


def test_a_saved_vector_goes_by_token_while_its_model_is_there(tmp_path: Path) -> None:
    tau, target = _three(tmp_path)
    tau.save(tmp_path / "saved.safetensors")
    name = "gpt_neox.embed_in.weight"
    placed = place(TaskVector.load(tmp_path / "saved.safetensors"), Checkpoint.open(target)).vector
    torch.testing.assert_close(placed[name], place(tau, Checkpoint.open(target)).vector[name])
    assert not torch.equal(placed[name], tau[name])


def test_a_table_that_no_architecture_knows_is_not_added_by_position(tmp_path: Path) -> None:
    tau, target = _three(
        tmp_path, architectures=["NobodysModel"], rename={"embed_out.weight": "readout.weight"}
    )
    with pytest.raises(GradfixError, match=r"readout.weight \[96, 16\]: the vocabularies .* differ"):
        place(tau, Checkpoint.open(target))
    shutil.copy(tmp_path / "base" / "tokenizer.json", target)
    assert len(place(tau, Checkpoint.open(target)).vector) == len(tau)


@pytest.mark.parametrize("file", ["tokenizer.model", "spiece.model", "vocab.txt"])
def test_tokenizers_of_the_same_bytes_are_not_parsed(tmp_path: Path, file: str) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_bytes(b"\x00 no program can read this")
    assert same_tokenizer(tmp_path / "a", tmp_path / "b")
    (tmp_path / "b" / "tokenizer_config.json").write_text(
        '{"added_tokens_decoder": {"9": {"content": "<x>"}}}'
    )
    assert not same_tokenizer(tmp_path / "a", tmp_path / "b")
    (tmp_path / "b" / "tokenizer_config.json").unlink()
    (tmp_path / "b" / file).write_bytes(b"another")
    assert not same_tokenizer(tmp_path / "a", tmp_path / "b")


def test_folders_without_a_tokenizer_are_not_said_to_have_the_same(tmp_path: Path) -> None:
    assert not same_tokenizer(tmp_path, tmp_path)
    assert not same_tokenizer(None, tmp_path)


@pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing`:FutureWarning", "ignore:Setting `save_embed:UserWarning"
)
def test_an_adapter_on_a_resized_vocabulary_brings_its_own_tokenizer(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    models.tiny_gpt_neox().save_pretrained(tmp_path / "base")
    _save_tokenizer(tmp_path / "base", WORDS)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    model.resize_token_embeddings(TOKENS + 2, mean_resizing=False)
    settings = peft.LoraConfig(r=2, target_modules=["query_key_value"], modules_to_save=["embed_in"])
    adapted = peft.get_peft_model(model, settings)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "modules_to_save" in name:
                parameter += 1
    adapted.save_pretrained(tmp_path / "adapter")
    _save_tokenizer(tmp_path / "adapter", ["<a>", *WORDS, "<b>"])  # not even in the old order
    tuned = Checkpoint.open(tmp_path / "adapter", base=tmp_path / "base")
    assert (tuned.directory, tuned.model_directory) == (tmp_path / "adapter", tmp_path / "base")
    tau = TaskVector.between(Checkpoint.open(tmp_path / "base"), tuned)
    stored, base = (
        tuned["gpt_neox.embed_in.weight"],
        Checkpoint.open(tmp_path / "base")["gpt_neox.embed_in.weight"],
    )
    expected = torch.zeros(TOKENS + 2, 16)
    expected[1:-1] = stored[1:-1] - base
    torch.testing.assert_close(tau["gpt_neox.embed_in.weight"], expected)
