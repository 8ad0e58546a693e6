"""Tiny real models of the shapes people transport: seeded, in eval mode, under 100,000 parameters each."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

VOCABULARY = 96


def _seeded(build: Callable[[Any], nn.Module], config: Any, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(config).eval()


def _text_sizes() -> dict[str, Any]:
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 64,
    }


def tiny_bert(seed: int = 0, num_labels: int = 3, **settings: Any) -> nn.Module:
    """A BERT-shaped sequence classifier."""
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(**{**_text_sizes(), "num_labels": num_labels, **settings})
    return _seeded(BertForSequenceClassification, config, seed)


def tiny_bert_of(kind: str, seed: int = 0, **settings: Any) -> nn.Module:
    """A BERT with another head: ``BertModel``, ``BertForTokenClassification`` …"""
    import transformers

    return _seeded(
        getattr(transformers, kind), transformers.BertConfig(**{**_text_sizes(), **settings}), seed
    )


def tiny_bert_masked_lm(seed: int = 0, **settings: Any) -> nn.Module:
    """A BERT-shaped masked language model: its decoder is tied to the word embeddings."""
    from transformers import BertConfig, BertForMaskedLM

    return _seeded(BertForMaskedLM, BertConfig(**{**_text_sizes(), **settings}), seed)


def tiny_roberta(seed: int = 0, num_labels: int = 3, **settings: Any) -> nn.Module:
    """A RoBERTa-shaped sequence classifier."""
    from transformers import RobertaConfig, RobertaForSequenceClassification

    sizes = {**_text_sizes(), "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
    config = RobertaConfig(**{**sizes, "num_labels": num_labels, **settings})
    return _seeded(RobertaForSequenceClassification, config, seed)


def tiny_distilbert(seed: int = 0, num_labels: int = 3, **settings: Any) -> nn.Module:
    """A DistilBERT-shaped sequence classifier."""
    from transformers import DistilBertConfig, DistilBertForSequenceClassification

    sizes = {"vocab_size": VOCABULARY, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32}
    config = DistilBertConfig(
        **{**sizes, "max_position_embeddings": 64, "num_labels": num_labels, **settings}
    )
    return _seeded(DistilBertForSequenceClassification, config, seed)


def tiny_t5(seed: int = 0, **settings: Any) -> nn.Module:
    """A T5-shaped text-to-text model; tied unless ``tie_word_embeddings=False``."""
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = {"vocab_size": VOCABULARY, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
    config = T5Config(**{**sizes, "decoder_start_token_id": 0, **settings})
    return _seeded(T5ForConditionalGeneration, config, seed)


def tiny_gpt2(seed: int = 0, **settings: Any) -> nn.Module:
    """A GPT-2-shaped causal language model: Conv1D layers, tied output."""
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"vocab_size": VOCABULARY, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
    config = GPT2Config(**{**sizes, "bos_token_id": 1, "eos_token_id": 2, **settings})
    return _seeded(GPT2LMHeadModel, config, seed)


def _decoder_sizes() -> dict[str, Any]:
    return {**_text_sizes(), "num_key_value_heads": 1, "bos_token_id": 1, "eos_token_id": 2}


def tiny_llama(seed: int = 0, **settings: Any) -> nn.Module:
    """A Llama-shaped causal language model with grouped queries; untied unless asked."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return _seeded(LlamaForCausalLM, LlamaConfig(**{**_decoder_sizes(), **settings}), seed)


def tiny_gpt_neox(seed: int = 0, **settings: Any) -> nn.Module:
    """A GPT-NeoX-shaped causal language model: tables named embed_in and embed_out, not tied."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    special = {"bos_token_id": 1, "eos_token_id": 2}
    return _seeded(GPTNeoXForCausalLM, GPTNeoXConfig(**{**_text_sizes(), **special, **settings}), seed)


def tiny_qwen2(seed: int = 0, **settings: Any) -> nn.Module:
    """A Qwen2-shaped causal language model: biases in the attention, tied output."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(**{**_decoder_sizes(), "tie_word_embeddings": True, **settings})
    return _seeded(Qwen2ForCausalLM, config, seed)


def tiny_clip(seed: int = 0, **settings: Any) -> nn.Module:
    """A CLIP-shaped pair of towers, for images of 16 × 16."""
    from transformers import CLIPConfig, CLIPModel

    text = {**_text_sizes(), "bos_token_id": 1, "eos_token_id": 2}
    vision = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 4,
    }
    config = CLIPConfig(text_config=text, vision_config=vision, **{"projection_dim": 8, **settings})
    return _seeded(CLIPModel, config, seed)


def tiny_vit(seed: int = 0, num_labels: int = 3, **settings: Any) -> nn.Module:
    """A ViT-shaped image classifier, for images of 16 × 16."""
    from transformers import ViTConfig, ViTForImageClassification

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = ViTConfig(**{**sizes, "image_size": 16, "patch_size": 4, "num_labels": num_labels, **settings})
    return _seeded(ViTForImageClassification, config, seed)
