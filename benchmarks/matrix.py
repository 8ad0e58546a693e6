"""Families of models × ways of saving the fine-tune × commands: is what comes out what independent arithmetic says?

Tiny models from configurations alone. For each, θ_A, a fine-tune and θ_B are written to disk, the fine-tune in several
ways; what a command writes is loaded by ``from_pretrained`` and compared, parameter by parameter, with
θ_B + (θ_A^ft − θ_A) of state dicts that ``from_pretrained`` gave. A cell is "right", "refused" with one line, or a
fault.

    python benchmarks/matrix.py                    # prints the table
    python benchmarks/matrix.py --write docs/compatibility.md
"""

import argparse
import contextlib
import io
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from typer.testing import CliRunner

from gradfix.cli.command import app

TEXT = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 48,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
DECODER = {**TEXT, "num_key_value_heads": 2}
PAIR = {
    "vocab_size": 64,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 48,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 8,
}
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}


@dataclass(frozen=True)
class Family:
    """A model class with the configuration of a tiny one.

    Attributes:
        kind: The class, of transformers.
        config: Its configuration class.
        settings: Of the configuration.
        targets: Modules that a LoRA adapts.
    """

    kind: str
    config: str
    settings: dict[str, Any] = field(default_factory=dict)
    targets: tuple[str, ...] = ()

    def build(self, seed: int) -> Any:
        """Make a model."""
        torch.manual_seed(seed)
        config = getattr(transformers, self.config)(**self.settings)
        return getattr(transformers, self.kind)(config).eval()

    def load(self, folder: Path | str) -> Any:
        """Load one, and refuse one of which a weight was not in the files."""
        model, report = getattr(transformers, self.kind).from_pretrained(
            folder, output_loading_info=True, dtype=torch.float32
        )
        strange = {
            key: sorted(report[key])
            for key in ("missing_keys", "unexpected_keys", "mismatched_keys")
            if report[key]
        }
        if strange:
            raise AssertionError(f"{folder}: from_pretrained reports {strange}")
        return model


FAMILIES: dict[str, Family] = {
    "BERT": Family("BertForMaskedLM", "BertConfig", TEXT, ("query", "value")),
    "RoBERTa": Family(
        "RobertaForMaskedLM", "RobertaConfig", {**TEXT, "pad_token_id": 1, "bos_token_id": 0}, ("query",)
    ),
    "DeBERTa": Family(
        "DebertaV2ForMaskedLM",
        "DebertaV2Config",
        {**TEXT, "relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_buckets": 8},
        ("query_proj",),
    ),
    "ELECTRA": Family("ElectraForMaskedLM", "ElectraConfig", {**TEXT, "embedding_size": 16}, ("query",)),
    "ModernBERT": Family(
        "ModernBertForMaskedLM",
        "ModernBertConfig",
        {**TEXT, "cls_token_id": 1, "sep_token_id": 2},
        ("Wqkv",),
    ),
    "T5": Family(
        "T5ForConditionalGeneration",
        "T5Config",
        {
            "vocab_size": 64,
            "d_model": 32,
            "d_kv": 8,
            "d_ff": 48,
            "num_layers": 2,
            "num_heads": 4,
            "pad_token_id": 0,
        },
        ("q", "v"),
    ),
    "BART": Family("BartForConditionalGeneration", "BartConfig", PAIR, ("q_proj",)),
    "Marian": Family("MarianMTModel", "MarianConfig", PAIR, ("q_proj",)),
    "GPT-2": Family(
        "GPT2LMHeadModel",
        "GPT2Config",
        {
            "vocab_size": 64,
            "n_embd": 32,
            "n_layer": 2,
            "n_head": 4,
            "n_positions": 48,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
        ("c_attn",),
    ),
    "GPT-NeoX": Family("GPTNeoXForCausalLM", "GPTNeoXConfig", TEXT, ("query_key_value",)),
    "Llama": Family("LlamaForCausalLM", "LlamaConfig", DECODER, ("q_proj", "down_proj")),
    "Qwen2": Family("Qwen2ForCausalLM", "Qwen2Config", {**DECODER, "tie_word_embeddings": True}, ("q_proj",)),
    "Qwen3": Family("Qwen3ForCausalLM", "Qwen3Config", {**DECODER, "head_dim": 8}, ("q_proj",)),
    "Qwen3-MoE": Family(
        "Qwen3MoeForCausalLM", "Qwen3MoeConfig", {**DECODER, **MOE, "head_dim": 8}, ("q_proj",)
    ),
    "Mixtral": Family(
        "MixtralForCausalLM",
        "MixtralConfig",
        {**DECODER, "num_local_experts": 4, "num_experts_per_tok": 2},
        ("q_proj",),
    ),
    "OLMoE": Family(
        "OlmoeForCausalLM", "OlmoeConfig", {**TEXT, "num_experts": 4, "num_experts_per_tok": 2}, ("q_proj",)
    ),
    "DeepSeek-V3": Family(
        "DeepseekV3ForCausalLM",
        "DeepseekV3Config",
        {
            **TEXT,
            "num_key_value_heads": 4,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_group": 2,
            "topk_group": 1,
            "first_k_dense_replace": 1,
            "moe_intermediate_size": 16,
            "q_lora_rank": 16,
            "kv_lora_rank": 16,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 8,
            "v_head_dim": 8,
        },
        ("o_proj",),
    ),
    "Gemma 3": Family(
        "Gemma3ForConditionalGeneration",
        "Gemma3Config",
        {"text_config": {**DECODER, "head_dim": 8}, "vision_config": VISION, "mm_tokens_per_image": 4},
        ("q_proj",),
    ),
    "Phi-3": Family("Phi3ForCausalLM", "Phi3Config", DECODER, ("qkv_proj",)),
    "Mamba": Family(
        "MambaForCausalLM",
        "MambaConfig",
        {"vocab_size": 64, "hidden_size": 32, "state_size": 4, "num_hidden_layers": 2, "time_step_rank": 4},
        ("x_proj",),
    ),
    "Whisper": Family(
        "WhisperForConditionalGeneration",
        "WhisperConfig",
        {**PAIR, "num_mel_bins": 8, "max_source_positions": 16, "max_target_positions": 16},
        ("q_proj",),
    ),
    "wav2vec2": Family(
        "Wav2Vec2ForCTC",
        "Wav2Vec2Config",
        {
            "vocab_size": 32,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 48,
            "conv_dim": (16, 16),
            "conv_stride": (2, 2),
            "conv_kernel": (3, 3),
            "num_feat_extract_layers": 2,
            "num_conv_pos_embeddings": 16,
            "num_conv_pos_embedding_groups": 4,
        },
        ("q_proj",),
    ),
    "ViT": Family("ViTForImageClassification", "ViTConfig", {**VISION, "num_labels": 3}, ("q_proj",)),
    "CLIP": Family(
        "CLIPModel",
        "CLIPConfig",
        {"text_config": TEXT, "vision_config": VISION, "projection_dim": 16},
        ("q_proj",),
    ),
    "SigLIP": Family(
        "SiglipModel",
        "SiglipConfig",
        {"text_config": {**TEXT, "projection_size": 32}, "vision_config": VISION},
        ("q_proj",),
    ),
    "ConvNeXt": Family(
        "ConvNextForImageClassification",
        "ConvNextConfig",
        {"hidden_sizes": [16, 32], "depths": [1, 2], "num_stages": 2, "image_size": 32, "num_labels": 3},
        ("pwconv1",),
    ),
}


def trained(model: nn.Module, size: float, seed: int) -> nn.Module:
    """Add seeded noise to every weight, in place."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))
    return model


def _beside(folder: Path, model: Any, state: dict[str, Tensor], name: str) -> None:
    """Write given tensors in place of a model's own weights."""
    model.save_pretrained(folder)
    for file in [*folder.glob("*.safetensors"), *folder.glob("*.index.json")]:
        file.unlink()
    state = {key: value.clone() for key, value in state.items()}
    if name.endswith(".bin"):
        torch.save(state, folder / name)
    else:
        save_file(state, folder / name, metadata={"format": "pt"})


def _stored(model: Any) -> dict[str, Tensor]:
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return {
            key: value
            for file in Path(folder).glob("*.safetensors")
            for key, value in load_file(file).items()
        }


def _wrapped(name: str) -> str:
    """A name as DDP, torch.compile and activation checkpointing leave it together."""
    parts = name.split(".")
    middle = max(1, len(parts) // 2)
    return ".".join(["module", "_orig_mod", *parts[:middle], "_checkpoint_wrapped_module", *parts[middle:]])


WAYS: dict[str, Callable[[Any, Path], None]] = {
    "save_pretrained": lambda model, folder: model.save_pretrained(folder),
    "shards": lambda model, folder: model.save_pretrained(folder, max_shard_size="20KB"),
    ".bin": lambda model, folder: _beside(folder, model, _stored(model), "pytorch_model.bin"),
    "in-memory names": lambda model, folder: model.save_pretrained(folder, save_original_format=False),
    "raw state dict": lambda model, folder: _beside(folder, model, model.state_dict(), "pytorch_model.bin"),
    "wrapped names": lambda model, folder: _beside(
        folder, model, {_wrapped(key): value for key, value in _stored(model).items()}, "model.safetensors"
    ),
}
"""How a whole fine-tune is saved; a LoRA is trained apart."""

COMMANDS = ("check", "apply", "diff + apply", "merge")


@dataclass
class Cell:
    """One entry of the table."""

    verdict: str
    why: str = ""


class Bench:
    """Three models of one family on disk."""

    def __init__(self, family: Family, root: Path) -> None:
        self.family, self.root = family, root
        model = family.build(0)
        model.save_pretrained(root / "A")
        trained(family.load(root / "A"), 0.01, 5).save_pretrained(root / "B")
        trained(family.load(root / "A"), 0.01, 9).save_pretrained(root / "tuned")
        self.tuned = family.load(root / "tuned")  # sinusoidal positions are not saved, so not changed

    def save(self, way: str) -> Path:
        """Save the fine-tune in one way."""
        folder = self.root / f"T-{way}"
        if folder.exists():
            return folder
        if way != "LoRA":
            WAYS[way](self.tuned, folder)
            return folder
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(1)
        adapted = get_peft_model(
            self.family.load(self.root / "A"), LoraConfig(r=2, target_modules=list(self.family.targets))
        )
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.data = 0.1 * torch.randn_like(parameter)
        adapted.save_pretrained(folder)
        self.merged = adapted.merge_and_unload()
        return folder

    def expected(self, way: str) -> dict[str, Tensor]:
        """θ_B + (θ_A^ft − θ_A), of state dicts."""
        base, target = (self.family.load(self.root / name).state_dict() for name in "AB")
        tuned = (self.merged if way == "LoRA" else self.tuned).state_dict()
        return {
            name: value + (tuned[name] - base[name]) if value.is_floating_point() else value
            for name, value in target.items()
        }

    def run(self, way: str, command: str) -> Cell:
        """Fill one cell."""
        tuned, out = self.save(way), self.root / "O"
        shutil.rmtree(out, ignore_errors=True)
        pair = ["--source-base", self.root / "A", "--source-tuned", tuned]
        target = ["--target-base", self.root / "B"]
        vector = self.root / f"{way}.safetensors"
        diff = [] if vector.exists() else [["diff", *pair, "--output", vector]]
        steps = {
            "check": [["check", *pair, *target]],
            "apply": [["apply", *pair, *target, "--output", out]],
            "diff + apply": [
                *diff,
                ["apply", "--task-vector", vector, *target, "--output", out],
            ],
            "merge": [
                *diff,
                ["merge", "--task-vector", vector, "--task-vector", vector, *target, "--output", out],
            ],
        }
        for step in steps[command]:
            code, said = gradfix(*step)
            if code == 1 and "Traceback" not in said:
                return Cell("refused", said.strip().splitlines()[-1])
            if code:
                return Cell("TRACEBACK", said[-500:])
        if command == "check":
            return Cell("right")
        try:
            found = self.family.load(out).state_dict()
        except (AssertionError, OSError, ValueError, RuntimeError) as error:
            return Cell("WRONG", str(error)[:500])
        differing = [
            name
            for name, value in self.expected(way).items()
            if not torch.allclose(found[name].double(), value.double(), atol=1e-5)
        ]
        return (
            Cell("WRONG", f"{len(differing)} tensors differ, such as {differing[0]}")
            if differing
            else Cell("right")
        )


def gradfix(*arguments: Any) -> tuple[int, str]:
    """Run a command in this process; what it raises is a fault."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    said = result.stderr if result.stderr_bytes else result.output
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        return 3, f"Traceback: {type(result.exception).__name__}: {result.exception}"
    return result.exit_code, said


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the bars of transformers off the table."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with contextlib.redirect_stderr(io.StringIO()):
        yield


def matrix(
    families: list[str], ways: list[str], commands: list[str], tell: Callable[[str, str, str, Cell], None]
) -> dict[tuple[str, str, str], Cell]:
    """Fill the table, a family at a time."""
    cells = {}
    for name in families:
        with tempfile.TemporaryDirectory(prefix="gradfix-matrix-") as folder:
            with quiet():
                bench = Bench(FAMILIES[name], Path(folder))
            for way in ways:
                for command in commands:
                    with quiet():
                        cell = bench.run(way, command)
                    cells[name, way, command] = cell
                    tell(name, way, command, cell)
    return cells


def table(cells: dict[tuple[str, str, str], Cell]) -> str:
    """Lay cells out as Markdown: a row a family, a column a way of saving."""
    families = list(dict.fromkeys(key[0] for key in cells))
    ways = list(dict.fromkeys(key[1] for key in cells))
    lines = ["| family | " + " | ".join(ways) + " |", "|---" * (len(ways) + 1) + "|"]
    notes: list[str] = []
    for family in families:
        row = [family]
        for way in ways:
            entries = {key[2]: cell for key, cell in cells.items() if key[:2] == (family, way)}
            verdicts = {cell.verdict for cell in entries.values()}
            text = (
                verdicts.pop()
                if len(verdicts) == 1
                else ", ".join(f"{c}: {e.verdict}" for c, e in entries.items())
            )
            why = next((cell.why for cell in entries.values() if cell.why), "")
            if why:
                notes.append(why)
                text += f" [{len(notes)}]"
            row.append(text)
        lines.append("| " + " | ".join(row) + " |")
    return (
        "\n".join([*lines, "", *(f"[{number}] {why}  " for number, why in enumerate(notes, 1))]).rstrip()
        + "\n"
    )


PAGE = """# What was tried

`make matrix` makes this page: tiny models of each family, the fine-tune saved in each way, and each of the commands
{commands}. "right" means that what was written, loaded by `from_pretrained`, equals
θ_B + (θ_A^ft − θ_A) of state dicts that `from_pretrained` gave, in every parameter, and that it reported no missing,
unexpected or mismatched weight; "refused" means one line and nothing written.

transformers {transformers}, torch {torch}.

"""


def main() -> None:
    """Print the table, or write it into the documentation."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--family", action="append", choices=list(FAMILIES))
    parser.add_argument("--way", action="append", choices=[*WAYS, "LoRA"])
    parser.add_argument("--command", action="append", choices=COMMANDS)
    parser.add_argument("--write", type=Path, help="a Markdown file")
    options = parser.parse_args()
    commands = options.command or list(COMMANDS)
    cells = matrix(
        options.family or list(FAMILIES),
        options.way or [*WAYS, "LoRA"],
        commands,
        lambda *cell: print(*cell[:3], cell[3].verdict, cell[3].why[:200], flush=True),
    )
    page = PAGE.format(
        commands=", ".join(f"`{command}`" for command in commands),
        transformers=transformers.__version__,
        torch=torch.__version__.split("+")[0],
    ) + table(cells)
    print(page)
    if options.write is not None:
        options.write.write_text(page)
    bad = [key for key, cell in cells.items() if cell.verdict not in ("right", "refused")]
    sys.exit(f"{len(bad)} faults: {json.dumps(bad[:20])}" if bad else 0)


if __name__ == "__main__":
    main()
