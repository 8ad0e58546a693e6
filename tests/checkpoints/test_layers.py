"""Names of parameters, as the libraries give them, to places in a network."""

from collections.abc import Callable

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from gradfix.checkpoints.layers import KINDS, Layer, layer_of

SMALL = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 16, "num_hidden_layers": 3}
TOWER = {**SMALL, "image_size": 8, "patch_size": 4}
FAMILIES: dict[str, Callable[[], torch.nn.Module]] = {
    "bert": lambda: transformers.BertForSequenceClassification(transformers.BertConfig(**SMALL)),
    "roberta": lambda: transformers.RobertaForSequenceClassification(transformers.RobertaConfig(**SMALL)),
    "distilbert": lambda: transformers.DistilBertModel(
        transformers.DistilBertConfig(dim=8, n_heads=2, hidden_dim=16, n_layers=3)
    ),
    "mpnet": lambda: transformers.MPNetModel(transformers.MPNetConfig(**SMALL)),
    "deberta": lambda: transformers.DebertaModel(transformers.DebertaConfig(**SMALL)),
    "deberta-v2": lambda: transformers.DebertaV2Model(transformers.DebertaV2Config(**SMALL)),
    "t5": lambda: transformers.T5ForConditionalGeneration(
        transformers.T5Config(d_model=8, num_heads=2, d_ff=16, num_layers=3, d_kv=4)
    ),
    "t5-gated": lambda: transformers.T5ForConditionalGeneration(
        transformers.T5Config(
            d_model=8, num_heads=2, d_ff=16, num_layers=3, d_kv=4, feed_forward_proj="gated-gelu"
        )
    ),
    "bart": lambda: transformers.BartModel(
        transformers.BartConfig(
            d_model=8,
            encoder_layers=3,
            decoder_layers=3,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=16,
            decoder_ffn_dim=16,
        )
    ),
    "gpt2": lambda: transformers.GPT2LMHeadModel(transformers.GPT2Config(n_embd=8, n_head=2, n_layer=3)),
    "gpt-neox": lambda: transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**SMALL)),
    "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL)),
    "mistral": lambda: transformers.MistralModel(transformers.MistralConfig(**SMALL, num_key_value_heads=2)),
    "qwen2": lambda: transformers.Qwen2Model(transformers.Qwen2Config(**SMALL, num_key_value_heads=2)),
    "qwen3": lambda: transformers.Qwen3Model(transformers.Qwen3Config(**SMALL, num_key_value_heads=2)),
    "opt": lambda: transformers.OPTModel(
        transformers.OPTConfig(
            hidden_size=8, num_attention_heads=2, ffn_dim=16, num_hidden_layers=3, word_embed_proj_dim=8
        )
    ),
    "vit": lambda: transformers.ViTForImageClassification(transformers.ViTConfig(**TOWER)),
    "clip": lambda: transformers.CLIPModel(
        transformers.CLIPConfig(text_config={**SMALL, "projection_dim": 8}, vision_config=TOWER)
    ),
    "siglip": lambda: transformers.SiglipModel(
        transformers.SiglipConfig(text_config=SMALL, vision_config=TOWER)
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_weight_of_a_block_has_a_kind_and_a_depth(family: str) -> None:
    with torch.device("meta"):
        names = [name for name, _ in FAMILIES[family]().named_parameters()]
    places = {name: layer_of(name) for name in names}
    assert {place.depth for place in places.values()} - {None} == {0, 1, 2}
    assert [name for name, place in places.items() if place.depth is not None and place.kind == "other"] == []
    # Each block of a tower has the same kinds but for the relative positions that T5 keeps in the first.
    blocks: dict[tuple[str, int], set[str]] = {}
    for place in places.values():
        if place.depth is not None:
            blocks.setdefault((place.tower, place.depth), set()).add(place.kind)
    for (tower, _), kinds in blocks.items():
        assert kinds - {"embedding"} == blocks[tower, 1] - {"embedding"}
        assert kinds >= {"attention output", "MLP in", "MLP out", "norm"}
        assert {"query", "key", "value"} <= kinds or "query/key/value" in kinds
    assert "embedding" in {place.kind for place in places.values() if place.depth is None}


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("bert.encoder.layer.7.attention.output.dense.weight", Layer("", 7, "attention output")),
        ("bert.encoder.layer.7.output.dense.weight", Layer("", 7, "MLP out")),
        ("bert.encoder.layer.7.output.LayerNorm.bias", Layer("", 7, "norm")),
        ("bert.embeddings.LayerNorm.weight", Layer("", None, "norm")),
        ("bert.pooler.dense.weight", Layer("", None, "head")),
        (
            "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
            Layer("encoder", 0, "embedding"),
        ),
        ("decoder.block.11.layer.1.EncDecAttention.o.weight", Layer("decoder", 11, "attention output")),
        ("decoder.block.11.layer.2.DenseReluDense.wo.weight", Layer("decoder", 11, "MLP out")),
        ("shared.weight", Layer("", None, "embedding")),
        ("transformer.h.3.attn.c_attn.bias", Layer("", 3, "query/key/value")),
        ("transformer.h.3.attn.c_proj.weight", Layer("", 3, "attention output")),
        ("transformer.h.3.mlp.c_proj.weight", Layer("", 3, "MLP out")),
        ("gpt_neox.layers.3.attention.dense.weight", Layer("", 3, "attention output")),
        ("gpt_neox.layers.3.mlp.dense_h_to_4h.weight", Layer("", 3, "MLP in")),
        ("embed_out.weight", Layer("", None, "head")),
        ("model.layers.31.self_attn.q_norm.weight", Layer("", 31, "norm")),
        ("model.language_model.layers.2.mlp.experts.5.down_proj.weight", Layer("text", 2, "MLP out")),
        ("vision_model.encoder.layers.4.self_attn.q_proj.weight", Layer("vision", 4, "query")),
        ("text_model.encoder.layers.4.mlp.fc1.weight", Layer("text", 4, "MLP in")),
        ("visual_projection.weight", Layer("vision", None, "head")),
        ("visual.transformer.resblocks.4.attn.in_proj_weight", Layer("vision", 4, "query/key/value")),
        ("logit_scale", Layer("", None, "other")),
        ("classifier.out_proj.weight", Layer("", None, "head")),
        ("backbone.layers.0.mixer.in_proj.weight", Layer("", 0, "other")),
        ("roberta.encoder.layer.3.attention.self.query.bias", Layer("", 3, "query")),
    ],
)
def test_a_name_that_could_be_taken_for_another(name: str, place: Layer) -> None:
    assert layer_of(name) == place


@given(
    st.text(max_size=40)
    | st.from_regex(r"(layer|h|block)\.[0-9]{1,9}\.(attention|mlp)?\.\w{0,6}", fullmatch=True)
)
def test_any_name_gets_a_place(name: str) -> None:
    place = layer_of(name)
    assert place.kind in KINDS
    assert place.depth is None or place.depth >= 0
