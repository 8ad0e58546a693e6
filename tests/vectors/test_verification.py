"""What is written is opened as its user will open it, and gets its name only if it loads whole."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from gradfix.checkpoints import Checkpoint, TensorSpec
from gradfix.checkpoints.loading import LoadingFaults, loading_faults
from gradfix.errors import GradfixError
from gradfix.transport.checks import Findings, open_models
from gradfix.vectors import verification
from gradfix.vectors.apply import apply
from gradfix.vectors.task_vector import TaskVector
from tests import models

FAMILIES: list[Any] = [
    models.tiny_bert, models.tiny_bert_masked_lm, models.tiny_roberta, models.tiny_t5, models.tiny_gpt2,
    models.tiny_llama, models.tiny_qwen2, models.tiny_clip, models.tiny_vit, models.tiny_gpt_neox,
]  # fmt: skip


def _save(model: nn.Module, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)
def test_what_save_pretrained_writes_has_no_fault(family: Any, tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(_save(family(), tmp_path / "model"))
    assert loading_faults(checkpoint.config, checkpoint.specs) == LoadingFaults()


def test_every_kind_of_fault_is_named(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(_save(models.tiny_bert(), tmp_path / "model"))
    specs = dict(checkpoint.specs)
    del specs["bert.encoder.layer.0.attention.self.query.weight"]
    specs["bert.encoder.layer.9.bias"] = TensorSpec(torch.float32, (4,))
    specs["classifier.weight"] = TensorSpec(torch.float32, (7, 16))
    faults = loading_faults(checkpoint.config, specs)
    assert faults == LoadingFaults(
        missing=("bert.encoder.layer.0.attention.self.query.weight",),
        unexpected=("bert.encoder.layer.9.bias",),
        mismatched=("classifier.weight",),
    )
    assert "newly initialised: bert.encoder.layer.0" in str(faults)


def test_a_class_of_the_models_own_code_is_not_judged(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(_save(models.tiny_bert(), tmp_path / "model"))
    assert loading_faults({**checkpoint.config, "architectures": ["Own"]}, checkpoint.specs) is None


def test_faults_that_were_there_before_are_none_of_the_output() -> None:
    before = LoadingFaults(missing=("pooler.weight",), unexpected=("cls.seq_relationship.weight",))
    after = LoadingFaults(missing=("bert.pooler.weight", "classifier.weight"), unexpected=before.unexpected)
    assert after.beyond(before) == LoadingFaults(missing=("classifier.weight",))


@pytest.fixture
def pair(tmp_path: Path) -> Path:
    """A base and its fine-tune, and a target whose config fits; the tests make its output unloadable."""
    for name, step in (("base", 0.0), ("tuned", 1.0), ("target", 0.0)):
        folder = _save(models.tiny_bert(), tmp_path / name)
        state = load_file(folder / "model.safetensors")
        save_file({key: tensor + step for key, tensor in state.items()}, folder / "model.safetensors")
    return tmp_path


def _three_classes_in_words_only(pair: Path) -> None:
    """A fine-tune whose head the config of the output would not describe: it is copied with another architecture."""
    state = load_file(pair / "tuned" / "model.safetensors")
    config = json.loads((pair / "tuned" / "config.json").read_text())
    for name in ("base", "target"):
        backbone = {key: tensor for key, tensor in state.items() if not key.startswith("classifier")}
        save_file(backbone, pair / name / "model.safetensors")
    labels = {"id2label": {str(i): f"c{i}" for i in range(5)}, "label2id": {f"c{i}": i for i in range(5)}}
    (pair / "tuned" / "config.json").write_text(json.dumps({**config, **labels}))


def test_an_output_that_would_not_load_is_refused_before_it_is_written(pair: Path) -> None:
    _three_classes_in_words_only(pair)
    tau = TaskVector.between(pair / "base", pair / "tuned")
    with pytest.raises(
        GradfixError, match=r"would not load as BertForSequenceClassification: .*classifier\.weight"
    ):
        apply(tau, pair / "target", output=pair / "output")
    found = Findings()
    with pytest.raises(GradfixError, match="would not load as"):
        open_models(str(pair / "base"), str(pair / "tuned"), str(pair / "target"), found)
    assert sorted(path.name for path in pair.iterdir()) == ["base", "target", "tuned"]


def test_the_written_files_are_opened_before_they_get_their_name(
    pair: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tau = TaskVector.between(pair / "base", pair / "tuned")
    config = json.loads((pair / "target" / "config.json").read_text())
    lost = {"config.json": json.dumps({**config, "num_hidden_layers": 3}).encode()}
    with pytest.raises(GradfixError, match=r"newly initialised: bert\.encoder\.layer\.2"):
        apply(tau, pair / "target", output=pair / "output", companions=lambda applied: lost)
    assert sorted(path.name for path in pair.iterdir()) == ["base", "target", "tuned"]


def test_a_fault_of_the_target_itself_stops_nothing(pair: Path) -> None:
    for name in ("base", "tuned", "target"):
        file = pair / name / "model.safetensors"
        save_file({**load_file(file), "cls.seq_relationship.weight": torch.ones(2, 16)}, file)
    apply(TaskVector.between(pair / "base", pair / "tuned"), pair / "target", output=pair / "output")
    assert "cls.seq_relationship.weight" in Checkpoint.open(pair / "output")


def test_what_loads_as_the_target_does_is_not_built_to_see_so(
    pair: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names, shapes and settings decide what is missing; the number format doesn't, and a single shape does."""

    def asked(*_: object) -> LoadingFaults:
        raise AssertionError("the class was imported")

    tau = TaskVector.between(pair / "base", pair / "tuned")
    monkeypatch.setattr(verification, "loading_faults", asked)
    apply(tau, pair / "target", output=pair / "output", dtype="bfloat16")
    assert Checkpoint.open(pair / "output").config["dtype"] == "bfloat16"
    target = Checkpoint.open(pair / "target")
    name, spec = next(iter(target.specs.items()))
    others = (
        (target.config, {**target.specs, name: TensorSpec(spec.dtype, (*spec.shape, 1))}),
        (target.config, {key: each for key, each in target.specs.items() if key != name}),
        ({**target.config, "num_hidden_layers": 3}, target.specs),
    )
    for config, specs in others:
        with pytest.raises(AssertionError, match="imported"):
            verification.refuse_unloadable(config, specs, target, "out")
