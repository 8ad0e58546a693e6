"""Tiny models of the families that people run, each with its processors and rows of its task."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from gradfix.checkpoints import Checkpoint
from gradfix.evaluation.binding import bind
from gradfix.evaluation.streaming.streamed_model import StreamedModel
from gradfix.evaluation.target_model import TargetModel
from gradfix.tasks import get_task
from gradfix.vectors.placement import own_weights, place
from tests import models, tiny

DECODER = {
    "vocab_size": models.VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "initializer_range": 0.4,
}
"""Large weights: at the usual size a tiny model's gradients are within rounding of zero."""

GEMMA: Mapping[str, Any] = {
    "head_dim": 8,
    "query_pre_attn_scalar": 8,
    "sliding_window": 4,
    "layer_types": None,
}
EXPERTS: Mapping[str, Any] = {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None}
QWEN_EXPERTS: Mapping[str, Any] = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 8,
    "head_dim": 8,
}

LANGUAGE: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama-tied": ("Llama", {"tie_word_embeddings": True}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {"head_dim": 8}),
    "mistral": ("Mistral", {"sliding_window": 4}),
    "phi3": ("Phi3", {}),
    "mixtral": ("Mixtral", EXPERTS),
    "qwen3-moe": ("Qwen3Moe", QWEN_EXPERTS),
}


def _language(kind: str, settings: Mapping[str, Any]) -> Callable[[Path], Path]:
    def save(directory: Path) -> Path:
        config = getattr(transformers, f"{kind}Config")(**{**DECODER, **settings})
        return _saved(getattr(transformers, f"{kind}ForCausalLM"), config, directory)

    return save


def _saved(kind: Any, config: Any, directory: Path) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        kind(config).eval().save_pretrained(directory)
    tiny.tokenizer(template="<s> $A </s>").save_pretrained(directory)
    return directory


def _gemma3(directory: Path) -> Path:
    config = transformers.Gemma3TextConfig(
        **{**DECODER, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 4}
    )
    return _saved(transformers.Gemma3ForCausalLM, config, directory)


def _modernbert(directory: Path) -> Path:
    settings = {**DECODER, "cls_token_id": 1, "sep_token_id": 2, "local_attention": 4, "num_labels": 3}
    del settings["num_key_value_heads"]
    config = transformers.ModernBertConfig(**settings)
    config.id2label = dict(enumerate(tiny.SENTIMENTS))
    config.label2id = {name: number for number, name in enumerate(tiny.SENTIMENTS)}
    return _saved(transformers.ModernBertForSequenceClassification, config, directory)


def _albert(directory: Path) -> Path:
    """One block that is run several times: a sample's gradient is the sum over its calls."""
    settings = {**DECODER, "embedding_size": 8, "num_hidden_groups": 1, "num_labels": 3}
    del settings["num_key_value_heads"]
    config = transformers.AlbertConfig(**settings)
    config.id2label = dict(enumerate(tiny.SENTIMENTS))
    config.label2id = {name: number for number, name in enumerate(tiny.SENTIMENTS)}
    return _saved(transformers.AlbertForSequenceClassification, config, directory)


def many_experts(directory: Path) -> Path:
    """More experts than a few tokens reach."""
    config = transformers.MixtralConfig(**{**DECODER, **EXPERTS, "num_local_experts": 32})
    return _saved(transformers.MixtralForCausalLM, config, directory)


def _deep_bert(directory: Path) -> Path:
    """24 blocks. With larger weights it is chaotic: a sample's gradients alone and in a batch then differ by more than
    the verification of the whole model allows, and in memory its queries and keys are counted one sample at a time;
    block by block the rules are right to rounding. Against votes in float64, 12 % of coordinates are turned either way.
    """
    return tiny.save_tiny_bert_classifier(directory, num_hidden_layers=24, initializer_range=0.05)


def capitals(count: int) -> list[dict[str, str]]:
    """Rows of input and target, of several lengths."""
    words = tiny.WORDS
    return [
        {"input": f"question {' '.join(words[i : i + 1 + i % 4])}", "target": f"answer {words[i]}"}
        for i in range(count)
    ]


def chats(count: int) -> list[dict[str, str]]:
    """Rows of prompt and completion, of several lengths."""
    return [{"prompt": row["input"], "completion": f" {row['target']} yes"} for row in capitals(count)]


def preferences(count: int) -> list[dict[str, str]]:
    """Rows of a prompt and two replies, of several lengths."""
    words = tiny.WORDS
    return [
        {
            "prompt": row["input"],
            "chosen": f"{words[i]} {words[i + 2]} yes",
            "rejected": " ".join(words[i + 1 : i + 3 + i % 3]),
        }
        for i, row in enumerate(capitals(count))
    ]


FAMILIES: Mapping[str, tuple[Callable[[Path], Path], str, Callable[[int], Sequence[Any]]]] = {
    **{name: (_language(*kind), "causal-lm", chats) for name, kind in LANGUAGE.items()},
    "gemma3": (_gemma3, "causal-lm", chats),
    "gpt2": (tiny.save_tiny_gpt2, "causal-lm", chats),
    "gpt2 on pairs": (tiny.save_tiny_gpt2, "preference-pairs", preferences),
    "bert": (tiny.save_tiny_bert_classifier, "text-classification", tiny.texts),
    "bert-24": (_deep_bert, "text-classification", tiny.texts),
    "albert": (_albert, "text-classification", tiny.texts),
    "modernbert": (_modernbert, "text-classification", tiny.texts),
    "t5": (tiny.save_tiny_t5, "text-to-text", capitals),
    "vit": (tiny.save_tiny_vit, "image-classification", tiny.images),
    "clip": (tiny.save_tiny_clip, "zero-shot-image-classification", tiny.images),
}
"""By family: saves a model, its task, and makes rows."""


def opened(
    kind: type[TargetModel], directory: Path, task_name: str, rows: Sequence[Any], **options: Any
) -> TargetModel:
    """Open a model, every parameter of which votes."""
    target = Checkpoint.open(directory)
    ranked = task_name == "text-to-text"
    task = get_task(
        task_name, **({"candidates": list(dict.fromkeys(row["target"] for row in rows))} if ranked else {})
    )
    bind(task, target, None, rows)
    model = kind.load(task, target, place(own_weights(target), target), **options)
    model.keep_reference(rows)
    return model


def both(
    family: str, root: Path, count: int, **options: Any
) -> tuple[TargetModel, StreamedModel, Sequence[Any]]:
    """Open one model both ways."""
    save, task, make = FAMILIES[family]
    rows = make(count)
    directory = save(root / family)
    resident = opened(TargetModel, directory, task, rows, **options)
    streamed = opened(StreamedModel, directory, task, rows, **options)
    assert isinstance(streamed, StreamedModel)
    return resident, streamed, rows
