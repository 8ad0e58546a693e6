"""Synthetic checkpoints of TinyLlama's shape: a base, a fine-tune of it, and another release of the base."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from gradfix.checkpoints import CheckpointWriter, TensorSpec

HIDDEN, INTERMEDIATE, HEADS, KV_HEADS, VOCABULARY = 2048, 5632, 32, 4, 32000
NAMES = ("base", "tuned", "target")
# A pool of normal numbers read at random places is as good as fresh ones here and many times faster.
_POOL = 1 << 25


def llama_specs(layers: int) -> dict[str, TensorSpec]:
    """Tensors of TinyLlama-1.1B, with more or fewer layers."""
    kv = HIDDEN // HEADS * KV_HEADS
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}
    for layer in range(layers):
        at = f"model.layers.{layer}."
        shapes[at + "self_attn.q_proj.weight"] = (HIDDEN, HIDDEN)
        shapes[at + "self_attn.k_proj.weight"] = (kv, HIDDEN)
        shapes[at + "self_attn.v_proj.weight"] = (kv, HIDDEN)
        shapes[at + "self_attn.o_proj.weight"] = (HIDDEN, HIDDEN)
        shapes[at + "mlp.gate_proj.weight"] = (INTERMEDIATE, HIDDEN)
        shapes[at + "mlp.up_proj.weight"] = (INTERMEDIATE, HIDDEN)
        shapes[at + "mlp.down_proj.weight"] = (HIDDEN, INTERMEDIATE)
        shapes[at + "input_layernorm.weight"] = (HIDDEN,)
        shapes[at + "post_attention_layernorm.weight"] = (HIDDEN,)
    shapes["model.norm.weight"] = (HIDDEN,)
    shapes["lm_head.weight"] = (VOCABULARY, HIDDEN)
    return {name: TensorSpec(torch.bfloat16, shape) for name, shape in shapes.items()}


def make_triple(directory: Path, layers: int, shard_size: int) -> dict[str, Path]:
    """Write the three checkpoints, or find them from an earlier run.

    Args:
        directory: Where they go.
        layers: 22 give TinyLlama's 1.1 billion parameters.
        shard_size: Bytes in one file.

    Returns:
        ``base``, ``tuned`` and ``target`` to their directories.
    """
    directory.mkdir(parents=True, exist_ok=True)
    paths = {name: directory / name for name in NAMES}
    specs = llama_specs(layers)
    pool = torch.randn(_POOL, generator=torch.Generator().manual_seed(0))
    for model, path in paths.items():
        if path.exists():
            continue
        identity: dict[str, Any] = {"model": model, "layers": layers}
        with CheckpointWriter(path, specs, identity=identity, shard_size=shard_size, restart=True) as writer:
            for number, (name, spec) in enumerate(specs.items()):
                writer.write(name, _values(model, number, spec, pool))
            writer.add_file("config.json", json.dumps(_config(layers), indent=2).encode())
            for file, content in _tokenizer().items():
                writer.add_file(file, content)
    return paths


def _values(model: str, number: int, spec: TensorSpec, pool: torch.Tensor) -> Iterator[torch.Tensor]:
    """Blocks of a tensor: weights of ±0.02, a fine-tune 2 % of that away, a release 5 % away.

    Seeded by model, tensor and block.
    """
    rows = max(1, (1 << 22) // max(1, spec.numel // spec.shape[0]))
    for begin in range(0, spec.shape[0], rows):
        shape = (min(rows, spec.shape[0] - begin), *spec.shape[1:])

        def noise(
            role: int, scale: float, block: int = begin, shape: tuple[int, ...] = shape
        ) -> torch.Tensor:
            length = torch.Size(shape).numel()
            seed = (number * 1009 + block) * 4 + role
            start = int(torch.randint(_POOL - length, (), generator=torch.Generator().manual_seed(seed)))
            return pool[start : start + length].reshape(shape) * scale

        if len(spec.shape) == 1:  # norms: the same in all three
            yield torch.ones(shape, dtype=spec.dtype)
            continue
        values = noise(0, 0.02)
        if model == "tuned":
            values = values.bfloat16() + noise(1, 0.0004)
        elif model == "target":
            values = values.bfloat16() + noise(2, 0.001)
        yield values.to(spec.dtype)


def _config(layers: int) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "initializer_range": 0.02,
        "intermediate_size": INTERMEDIATE,
        "max_position_embeddings": 2048,
        "num_attention_heads": HEADS,
        "num_hidden_layers": layers,
        "num_key_value_heads": KV_HEADS,
        "rms_norm_eps": 1e-05,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": VOCABULARY,
    }


def _tokenizer() -> dict[str, bytes]:
    """A word-level tokenizer with a token for each row, as both programs copy one."""
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"w{number}": number for number in range(3, VOCABULARY)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 2048, **special}
    return {
        "tokenizer.json": tokenizer.to_str().encode(),
        "tokenizer_config.json": json.dumps(config, indent=2).encode(),
        "special_tokens_map.json": json.dumps(special, indent=2).encode(),
    }
