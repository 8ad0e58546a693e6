"""A target of another width, depth, kind or tokenizer: the whole command, and what it says."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import gradfix as gf
from gradfix.errors import ArchitectureError
from tests import tiny
from tests.builders import gradfix, job


def save(directory: Path, config: Any, auto_class: str, like: Path) -> Path:
    """Save a model of a configuration, with the tokenizer or processor of another directory."""
    torch.manual_seed(5)
    model = getattr(transformers, auto_class).from_config(config)
    model.save_pretrained(directory)
    for file in like.iterdir():
        if not (directory / file.name).exists() and not file.name.endswith((".safetensors", "config.json")):
            (directory / file.name).write_bytes(file.read_bytes())
    for name in ("tokenizer_config.json", "preprocessor_config.json", "processor_config.json"):
        if (like / name).exists():
            (directory / name).write_bytes((like / name).read_bytes())
    return directory


def modernbert(root: Path, like: Path) -> Path:
    words = transformers.AutoConfig.from_pretrained(like)
    config = transformers.ModernBertConfig(
        vocab_size=words.vocab_size, hidden_size=48, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2, max_position_embeddings=64,
    )  # fmt: skip
    directory = save(root / "modernbert", config, "AutoModelForMaskedLM", like)
    tiny.tokenizer(template="<s> <s> $A </s>").save_pretrained(directory)  # it cuts texts otherwise, too
    return directory


def deeper_clip(root: Path, like: Path) -> Path:
    config = transformers.AutoConfig.from_pretrained(like)
    config.vision_config.num_hidden_layers += 1
    config.vision_config.hidden_size *= 2
    return save(root / "clip", config, "AutoModelForZeroShotImageClassification", like)


def larger_vit(root: Path, like: Path) -> Path:
    config = transformers.AutoConfig.from_pretrained(like)
    config.hidden_size, config.num_hidden_layers = 48, 3
    config.patch_size //= 2
    return save(root / "vit", config, "AutoModel", like)


def larger_t5(root: Path, like: Path) -> Path:
    config = transformers.AutoConfig.from_pretrained(like)
    config.d_model, config.num_layers, config.num_decoder_layers = 48, 3, 3
    return save(root / "t5", config, "AutoModelForSeq2SeqLM", like)


def qwen3(root: Path, like: Path) -> Path:
    words = transformers.AutoConfig.from_pretrained(like)
    config = transformers.Qwen3Config(
        vocab_size=words.vocab_size, hidden_size=48, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=64, tie_word_embeddings=True,
    )  # fmt: skip
    return save(root / "qwen3", config, "AutoModelForCausalLM", like)


TARGETS: dict[str, Callable[[Path, Path], Path]] = {
    "text-classification": modernbert,
    "zero-shot-image-classification": deeper_clip,
    "image-classification": larger_vit,
    "text-to-text": larger_t5,
    "causal-lm": qwen3,
}


@pytest.mark.slow
@pytest.mark.parametrize("task", TARGETS)
def test_a_fine_tune_moves_to_another_architecture_and_the_output_loads(task: str, tmp_path: Path) -> None:
    work = job(task, tmp_path)
    work.models["target_base"] = TARGETS[task](tmp_path, work.models["target_base"])
    output = tmp_path / "out"
    inputs = tiny.texts(60, seed=3) if task == "text-classification" else None
    done = work.run(output, method="auto", test=work.held_out, training=False, steps=1, align_data=inputs)
    assert done.record.alignment is not None
    assert done.record.alignment.inputs == len(inputs or work.rows)
    assert any("no coordinate of the task vector" in finding.text for finding in done.compatibility.findings)
    before = transformers.AutoConfig.from_pretrained(work.models["target_base"])
    after = transformers.AutoConfig.from_pretrained(output)
    assert (after.model_type, after.num_hidden_layers if hasattr(after, "num_hidden_layers") else None) == (
        before.model_type,
        before.num_hidden_layers if hasattr(before, "num_hidden_layers") else None,
    )
    model, info = getattr(transformers, work.auto_class).from_pretrained(output, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert done.judgement is not None
    assert all(bool(torch.isfinite(value).all()) for value in model.state_dict().values())


@pytest.mark.slow
def test_what_needs_equal_shapes_refuses_and_says_what_does_not(tmp_path: Path) -> None:
    work = job("zero-shot-image-classification", tmp_path)
    other = deeper_clip(tmp_path, work.models["target_base"])
    work.models["target_base"] = other
    with pytest.raises(ArchitectureError, match=r"--align procrustes can't help there"):
        work.run(tmp_path / "out", align="procrustes")
    checked = gradfix("check", *[f"--{kind.replace('_', '-')}={path}" for kind, path in work.models.items()])
    assert checked.exit_code == 1, checked.output
    assert "give --task" in checked.output
    options = [f"--{kind.replace('_', '-')}={path}" for kind, path in work.models.items()]
    applied = gradfix("apply", *options, "--output", tmp_path / "applied")
    assert applied.exit_code == 1
    assert "only transport can carry a fine-tune over" in applied.output
    assert not (tmp_path / "applied").exists()


@pytest.mark.slow
def test_a_comparison_has_the_rows_that_need_no_coordinates(tmp_path: Path) -> None:
    work = job("zero-shot-image-classification", tmp_path)
    work.models["target_base"] = deeper_clip(tmp_path, work.models["target_base"])
    given = {
        **work.models, "task": work.task, "data": work.rows, "test": work.held_out,
        "samples_per_class": (2,), "seeds": 1, "finetune_steps": 2,
    }  # fmt: skip
    with pytest.raises(ArchitectureError, match="methods naive needs them equal: leave it out"):
        gf.compare(**given, methods=("naive", "auto"))
    table = gf.compare(**given)
    assert [line.method for line in table.lines] == ["zero-shot", "auto", "auto-control", "few-shot"]
    tried = next(line for line in table.lines if line.method == "auto").outcomes
    assert all(outcome.way for outcome in tried)
