"""Tiny models with LoRA adapters on them, as peft saves them."""

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from torch import nn

from tests import models as shapes
from tests import tiny
from tests.builders import Job, Rows, job

QUIET = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to:UserWarning"),
    pytest.mark.filterwarnings("ignore:Could not find a config file:UserWarning"),
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning"),
    pytest.mark.filterwarnings("ignore:Input and output embeddings are no longer tied:UserWarning"),
]
"""peft asks transformers for an attribute that 5.x deprecates, and remarks on what it changes by itself."""


def save_adapter(directory: Path, base: Path, auto_class: str, scale: float = 0.05, **settings: Any) -> Path:
    """Save a random adapter on a saved model."""
    model = getattr(transformers, auto_class).from_pretrained(base)
    adapted = peft.get_peft_model(model, peft.LoraConfig(**{"r": 4, "lora_alpha": 8, **settings}))
    generator = torch.Generator().manual_seed(3)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data + scale * torch.randn(parameter.shape, generator=generator)
    adapted.save_pretrained(directory)
    return directory


def adapter_job(family: str, root: Path, **settings: Any) -> Job:
    """A job whose source is an adapter, of one family of models."""
    task, targets, kind = FAMILIES[family]
    work = _causal(family, root) if family in ("llama", "qwen2") else job(task, root)
    options = {"target_modules": targets, "task_type": kind, **settings}
    work.models["source_tuned"] = save_adapter(
        root / "adapter", work.models["source_base"], work.auto_class, **options
    )
    return work


FAMILIES: dict[str, tuple[str, Any, str | None]] = {
    "bert": ("text-classification", ["query", "value", "intermediate.dense"], "SEQ_CLS"),
    "t5": ("text-to-text", ["q", "v", "wo"], "SEQ_2_SEQ_LM"),
    "gpt2": ("causal-lm", ["c_attn", "c_proj"], "CAUSAL_LM"),
    "llama": ("causal-lm", "all-linear", "CAUSAL_LM"),
    "qwen2": ("causal-lm", ["q_proj", "v_proj", "down_proj"], "CAUSAL_LM"),
    "clip": (
        "zero-shot-image-classification",
        ["q_proj", "fc1", "patch_embedding", "visual_projection"],
        None,
    ),
    "vit": ("image-classification", ["q_proj", "v_proj"], None),
}


def _causal(family: str, root: Path) -> Job:
    build = {"llama": shapes.tiny_llama, "qwen2": shapes.tiny_qwen2}[family]
    rows: Rows = [{"prompt": f"user {word}", "completion": f"{word} yes"} for word in tiny.WORDS[:24]]
    places = {}
    for name, seed in (("old", 0), ("new", 2)):
        model: Any = build(seed, initializer_range=0.4)
        model.save_pretrained(root / name)
        _words(family).save_pretrained(root / name)
        places[name] = root / name
    models = {"source_base": places["old"], "target_base": places["new"]}
    return Job("causal-lm", models, rows[:8], rows[8:], "AutoModelForCausalLM")


def _words(family: str) -> Any:
    """A tokenizer of the class that the family is always loaded with: Qwen2's is one by bytes."""
    if family != "qwen2":
        return tiny.tokenizer()
    letters = {letter: number for number, letter in enumerate("Ġabcdefghijklmnopqrstuvwxyz.,?")}
    special = dict.fromkeys(("unk_token", "eos_token", "pad_token"), "<|endoftext|>")
    return transformers.Qwen2Tokenizer(vocab={**letters, "<|endoftext|>": len(letters)}, merges=[], **special)


def loaded_adapter(output: Path, base: Path, auto_class: str) -> nn.Module:
    """Load an adapter as its user does."""
    model = getattr(transformers, auto_class).from_pretrained(base).eval()
    return peft.PeftModel.from_pretrained(model, output).eval()
