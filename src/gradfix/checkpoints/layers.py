"""Where in a network a parameter sits, told by its name alone: tower, depth and kind of layer."""

import re
from typing import NamedTuple

QUERY = "query"
KEY = "key"
VALUE = "value"
FUSED = "query/key/value"
ATTENTION_OUTPUT = "attention output"
MLP_IN = "MLP in"
MLP_OUT = "MLP out"
NORM = "norm"
EMBEDDING = "embedding"
HEAD = "head"
OTHER = "other"

KINDS = (QUERY, KEY, VALUE, FUSED, ATTENTION_OUTPUT, MLP_IN, MLP_OUT, NORM, EMBEDDING, HEAD, OTHER)
"""Every kind, in the order in which data flow through a block."""


class Layer(NamedTuple):
    """The place of a parameter in its network.

    Attributes:
        tower: ``"text"``, ``"vision"``, ``"encoder"`` or ``"decoder"`` where a network has several; else ``""``.
        depth: Number of its block, from 0; None outside the blocks (embeddings, the last norm, heads).
        kind: One of ``KINDS``; a name that no known family uses is ``"other"``.
    """

    tower: str
    depth: int | None
    kind: str


# The first container of blocks counts: T5 numbers the sublayers inside a block, too (block.3.layer.0).
_BLOCK = re.compile(
    r"(?:^|\.)(?:layers?|blocks?|h|resblocks|albert_layers|decoder_layers)\.(\d+)(?:\.|$)", re.IGNORECASE
)
# BERT's only tower is called encoder.layer, ViT's too: in those the word names no tower of several.
_SEVERAL = re.compile(r"^(?:(?:model|transformer)\.)?(encoder|decoder)\.(?!layer\.)")
_IMAGES = ("vision", "visual", "image")
_TEXTS = ("text", "language")

_NORM = re.compile(r"norm|^ln(_\w+)?$|^bn\d*$")
_KIND_OF_LEAF = {
    leaf: kind
    for kind, leaves in {
        QUERY: "q query q_proj q_lin query_proj q_attn wq pos_q_proj",
        KEY: "k key k_proj k_lin key_proj wk pos_proj pos_key_proj",
        VALUE: "v value v_proj v_lin value_proj wv",
        FUSED: "c_attn qkv qkv_proj query_key_value wqkv",
        MLP_IN: "fc1 c_fc wi wi_0 wi_1 gate_proj up_proj gate_up_proj lin1 linear1 dense_h_to_4h w1 w3 fc_in ffn",
        MLP_OUT: "fc2 wo down_proj lin2 linear2 dense_4h_to_h w2 fc_out ffn_output",
    }.items()
    for leaf in leaves.split()
}
_OUT_OF_ATTENTION = frozenset(
    ["o", "o_proj", "out_proj", "out_lin", "c_proj", "dense", "proj", "wo", "output", "linear_out"]
)
_TABLES = frozenset(
    ["wte", "wpe", "shared", "cls_token", "mask_token", "distillation_token", "register_tokens", "conv1"]
)
_HEADS = re.compile(
    r"^(?:lm_head|classifier|classification_head|pre_classifier|score|pooler|cls|head|qa_outputs|embed_out"
    r"|vocab_\w+|logits_proj|visual_projection|text_projection|out_proj|proj)$"
)
_PARAMETERS = frozenset(["weight", "bias", "gamma", "beta"])


def layer_of(name: str) -> Layer:
    """Tell where a parameter sits in its network.

    Covers the names that BERT, RoBERTa, DistilBERT, MPNet, DeBERTa, ALBERT, T5, BART, OPT, GPT-2, GPT-NeoX, Bloom,
    Llama, Mistral, Qwen, Phi, ViT, DINOv2, CLIP and SigLIP have in ``transformers``, and those of open_clip and
    ``torch.nn.TransformerEncoderLayer``.

    Args:
        name: The parameter's name, as a state dict has it.

    Returns:
        Its tower, depth and kind.
    """
    block = _BLOCK.search(name)
    # A number of 4,000 digits is no depth, and int() would refuse it.
    depth = int(block[1]) if block is not None and len(block[1]) < 6 else None
    return Layer(_tower(name), depth, _kind(name, inside=depth is not None))


def _tower(name: str) -> str:
    for part in name.split("."):
        if part.startswith(_IMAGES):
            return "vision"
        if part.startswith(_TEXTS):
            return "text"
    several = _SEVERAL.match(name)
    return several[1] if several is not None else ""


def _kind(name: str, *, inside: bool) -> str:
    parts = [part for part in name.lower().split(".") if part not in _PARAMETERS]
    if not parts:
        return OTHER
    leaf = parts[-1].removesuffix("_weight").removesuffix("_bias")
    parents = parts[:-1]
    attention = any("attn" in part or "attention" in part for part in parents)
    if _NORM.search(leaf):
        return NORM
    # A head may have attention and norms of its own (SigLIP's); its projections keep their kind.
    if leaf == "in_proj" and (attention or parts[-1] != leaf):
        return FUSED
    if attention and leaf in _OUT_OF_ATTENTION:
        return ATTENTION_OUTPUT
    if leaf in _KIND_OF_LEAF:
        return _KIND_OF_LEAF[leaf]
    if inside and leaf == "dense" and parents:
        return {"intermediate": MLP_IN, "output": MLP_OUT}.get(parents[-1], OTHER)
    if inside and leaf == "c_proj":
        return MLP_OUT
    if not inside and any(map(_HEADS.match, parts)):
        return HEAD
    if "embed" in name.lower() or leaf in _TABLES or leaf == "relative_attention":
        return EMBEDDING
    return OTHER
