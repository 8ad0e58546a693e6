"""The output has every file of the target that is no weights; what the tuned model brings is carried over or named."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from gradfix.checkpoints import Checkpoint
from gradfix.errors import GradfixError
from gradfix.vectors.applied import Applied
from gradfix.vectors.apply import apply
from gradfix.vectors.task_vector import TaskVector
from tests import models, tiny

MODULES = [
    {"path": "", "type": "Transformer"},
    {"path": "1_Pooling", "type": "P"},
    {"path": "2_Dense", "type": "D"},
]


@pytest.fixture
def trio(tmp_path: Path) -> Path:
    """Base, tuned and target, each with a tokenizer, alike but for the tuned weights."""
    models.tiny_bert(num_labels=2).save_pretrained(tmp_path / "base")
    tiny.tokenizer().save_pretrained(tmp_path / "base")
    for name in ("tuned", "target"):
        shutil.copytree(tmp_path / "base", tmp_path / name)
    file = tmp_path / "tuned" / "model.safetensors"
    state = load_file(file)
    save_file({name: tensor + 0.5 for name, tensor in state.items()}, file)
    return tmp_path


def _apply(trio: Path, **options: Any) -> Applied:
    tau = TaskVector.between(trio / "base", trio / "tuned")
    return apply(tau, trio / "target", output=trio / "output", **options)


def _merge(path: Path, **settings: Any) -> None:
    there = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**there, **settings}))


def _files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_everything_of_the_target_but_weights_and_traces_of_training_is_carried_over(trio: Path) -> None:
    carried = (
        "LICENSE", "README.md", "modeling_own.py", "nested/deeper/vocab.spm", "1_Pooling/config.json",
        "2_Dense/model.safetensors", "merges.bpe", "preprocessor_config.json",
    )  # fmt: skip
    left = (
        "pytorch_model.bin", "tf_model.h5", "onnx/model.onnx", "optimizer.pt", "trainer_state.json", ".git/config",
        "checkpoint-5/config.json", "runs/events", "nested/other.safetensors", "gradfix-old.json",
    )  # fmt: skip
    for name in (*carried, *left):
        path = trio / "target" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{{}} # {name}" if not name.endswith(".json") else "{}")
    (trio / "target" / "modules.json").write_text(json.dumps(MODULES))
    before = _files(trio / "target")
    _apply(trio)
    output = _files(trio / "output")
    assert set(carried) <= output
    assert not output & set(left)
    assert before - set(left) <= output
    for name in carried:
        assert (trio / "output" / name).read_bytes() == (trio / "target" / name).read_bytes()


def test_the_dtype_is_said_under_every_key(trio: Path) -> None:
    config = trio / "target" / "config.json"
    _merge(config, torch_dtype="float32", text_config={"torch_dtype": "float16", "hidden_size": 16})
    _apply(trio, dtype="bfloat16")
    written = json.loads((trio / "output" / "config.json").read_text())
    assert (written["dtype"], written["torch_dtype"], written["text_config"]["torch_dtype"]) == (
        "bfloat16",
    ) * 3


@pytest.mark.parametrize("theirs", [None, "the target's"])
def test_the_chat_template_that_the_fine_tune_learnt_is_written(trio: Path, theirs: str | None) -> None:
    (trio / "tuned" / "chat_template.jinja").write_text("tuned")
    if theirs is not None:
        _merge(trio / "target" / "tokenizer_config.json", chat_template=theirs)
    remarks = " ".join(_apply(trio).notes())
    other = "has another one" if theirs else "has none"
    assert f"the chat template is the tuned model's: the new base {other}" in remarks
    assert AutoTokenizer.from_pretrained(trio / "output").chat_template == "tuned"


def test_a_chat_template_that_the_base_had_is_not_brought(trio: Path) -> None:
    for name in ("base", "tuned"):
        (trio / name / "chat_template.jinja").write_text("old")
    assert "chat template" not in " ".join(_apply(trio).notes())


def test_added_tokens_are_named_and_their_template_stays_away(trio: Path) -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|end|>"]})
    tokenizer.chat_template = "{{ x }}<|end|>"
    tokenizer.save_pretrained(trio / "tuned")
    remarks = " ".join(_apply(trio).notes())
    assert "1 added tokens that the new base lacks" in remarks
    assert "<|end|>" in remarks
    assert "chat template has tokens that the new base lacks" in remarks
    assert not (trio / "output" / "chat_template.jinja").exists()


def test_generation_settings_are_merged_three_ways(trio: Path) -> None:
    name = "generation_config.json"
    _merge(trio / "base" / name, temperature=1.0, top_k=5, max_new_tokens=8)
    _merge(trio / "tuned" / name, temperature=0.7, top_k=9, max_new_tokens=8, do_sample=True)
    _merge(trio / "target" / name, temperature=1.0, top_k=6, max_new_tokens=16)
    remarks = " ".join(_apply(trio).notes())
    merged = json.loads((trio / "output" / name).read_text())
    assert merged == {"temperature": 0.7, "top_k": 6, "max_new_tokens": 16, "do_sample": True}
    assert "not in the output: top_k" in remarks


def test_class_names_of_the_tuned_model_replace_numbers(trio: Path) -> None:
    names = {"id2label": {"0": "bad", "1": "good"}, "label2id": {"bad": 0, "good": 1}}
    _merge(trio / "tuned" / "config.json", **names)
    _apply(trio)
    assert json.loads((trio / "output" / "config.json").read_text())["id2label"] == names["id2label"]


def test_classes_in_another_order_are_refused_and_other_names_are_said(trio: Path) -> None:
    _merge(trio / "tuned" / "config.json", id2label={"0": "bad", "1": "good"})
    _merge(trio / "target" / "config.json", id2label={"0": "good", "1": "bad"})
    with pytest.raises(GradfixError, match="classes in another order"):
        _apply(trio)
    _merge(trio / "target" / "config.json", id2label={"0": "ham", "1": "spam"})
    assert any("classes are the new base's, ham, spam" in note for note in _apply(trio).notes())


def _with_modules(folder: Path, value: float) -> None:
    (folder / "modules.json").write_text(json.dumps(MODULES))
    for name in ("1_Pooling", "2_Dense"):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text("{}")
    save_file({"linear.weight": torch.full((2, 2), value)}, folder / "2_Dense" / "model.safetensors")


def test_a_tuned_module_is_named_and_the_targets_own_kept(trio: Path) -> None:
    for name, value in (("base", 0.0), ("tuned", 1.0), ("target", 2.0)):
        _with_modules(trio / name, value)
    assert any("2_Dense/model.safetensors: the tuned model's differ" in note for note in _apply(trio).notes())
    assert load_file(trio / "output" / "2_Dense" / "model.safetensors")["linear.weight"][0, 0] == 2


def test_modules_are_taken_from_the_tuned_model_where_the_target_has_none(trio: Path) -> None:
    _with_modules(trio / "tuned", 1.0)
    assert any("modules taken from the tuned model" in note for note in _apply(trio).notes())
    assert load_file(trio / "output" / "2_Dense" / "model.safetensors")["linear.weight"][0, 0] == 1
    assert json.loads((trio / "output" / "modules.json").read_text()) == MODULES


def test_a_module_outside_the_folder_is_refused(trio: Path) -> None:
    (trio / "target" / "modules.json").write_text(json.dumps([{"path": "../base"}]))
    with pytest.raises(GradfixError, match=r"'\.\./base' outside its folder"):
        _apply(trio)


@pytest.mark.parametrize("text", ["null", "{}", "[[]]", '[{"path": 3}]', "[" * 9_000, "[{}]"])
def test_a_list_of_modules_that_is_none_is_refused_by_name(trio: Path, text: str) -> None:
    (trio / "target" / "modules.json").write_text(text)
    with pytest.raises(GradfixError, match=r"modules\.json: "):
        _apply(trio)


def test_a_chat_template_in_another_encoding_is_refused_by_name(trio: Path) -> None:
    (trio / "tuned" / "chat_template.jinja").write_bytes(b"{{ 'caf\xe9' }}")
    with pytest.raises(GradfixError, match=r"chat_template\.jinja: is not UTF-8"):
        _apply(trio)


def test_nothing_is_said_where_nothing_is_brought(trio: Path) -> None:
    assert _apply(trio).remarks == []
    assert Checkpoint.open(trio / "output").config == Checkpoint.open(trio / "target").config
