"""What callers and files may do wrong with task vectors: refused before anything is written."""

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from gradfix.checkpoints import Checkpoint
from gradfix.errors import AlignmentError, GradfixError
from gradfix.tasks import get_task
from gradfix.vectors import apart, apply, placement, task_vector, truncation, verification
from gradfix.vectors.adapter_output import AdapterOutput, write_adapter
from gradfix.vectors.apply import CheckpointWriter
from gradfix.vectors.mask_strategies import significant_votes
from gradfix.vectors.masks import mask
from gradfix.vectors.placement import place
from gradfix.vectors.task_vector import TaskVector, combine, moments
from tests import tiny
from tests.models import tiny_llama
from tests.triples import Triple, save_triple


@pytest.fixture(scope="module")
def triple(tmp_path_factory: pytest.TempPathFactory) -> Triple:
    return save_triple("bert", tmp_path_factory.mktemp("triple"))


@pytest.fixture
def tau(triple: Triple) -> TaskVector:
    return TaskVector.between(triple.base, triple.tuned)


def test_an_output_inside_the_target_is_refused(triple: Triple, tau: TaskVector) -> None:
    for output in (triple.target, triple.target / "out"):
        with pytest.raises(GradfixError, match="nothing is written over what is read"):
            apply.apply(tau, triple.target, output=output, overwrite=True)


def test_what_would_not_load_is_told_before_it_is_written(
    triple: Triple, tau: TaskVector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def begun(*_: object, **__: object) -> None:
        raise AssertionError("it began to write")

    monkeypatch.setattr(apply, "refuse_unloadable", lambda *_: (_ for _ in ()).throw(GradfixError("told")))
    monkeypatch.setattr(CheckpointWriter, "__enter__", begun)
    with pytest.raises(GradfixError, match="told"):
        apply.apply(tau, triple.target, output=tmp_path / "out")


@pytest.mark.parametrize(("part", "owner"), [("own", "target.safetensors"), ("new", "the tuned model")])
def test_what_is_copied_is_finite(part: str, owner: str, tmp_path: Path) -> None:
    bad, good = torch.tensor([math.nan, 1.0]), torch.ones(2)
    tensors = {
        "base": {"shared": good},
        "tuned": {"shared": good * 2, "new": bad if part == "new" else good},
        "target": {"shared": good, "own": bad if part == "own" else good},
    }
    files = {name: tmp_path / f"{name}.safetensors" for name in tensors}
    for name, content in tensors.items():
        save_file({key: value.clone() for key, value in content.items()}, files[name])
    with pytest.raises(GradfixError, match=f"{owner}: {part}: expected finite numbers"):
        apply.apply(
            TaskVector.between(files["base"], files["tuned"]), files["target"], output=tmp_path / "out"
        )


class TestAdapter:
    @pytest.mark.parametrize(
        ("alpha", "value", "message"),
        [(math.inf, 1.0, "alpha: expected a finite number"), (1.0, math.inf, "leaves the range of")],
    )
    def test_its_numbers_are_finite(
        self, alpha: float, value: float, message: str, triple: Triple, tau: TaskVector, tmp_path: Path
    ) -> None:
        written = self._write(tau, triple, tmp_path / "out", alpha, value)
        with pytest.raises(GradfixError, match=message):
            written()
        assert not (tmp_path / "out").exists()

    def test_it_is_not_written_into_the_target(self, triple: Triple, tau: TaskVector) -> None:
        with pytest.raises(GradfixError, match="nothing is written over what is read"):
            self._write(tau, triple, triple.target / "out", 1.0, 1.0)()

    @staticmethod
    def _write(
        tau: TaskVector, triple: Triple, output: Path, alpha: float, value: float
    ) -> Callable[[], Any]:
        adapter = AdapterOutput(
            layers={},
            whole={"classifier": {"classifier.weight": torch.full((2, 2), value)}},
            biases={},
            dtype=torch.float32,
            modules=["bert.encoder.layer.0.attention.self.query"],
        )
        target = Checkpoint.open(triple.target)
        return lambda: write_adapter(tau, target, adapter, alpha=alpha, output=output)


def test_masks_know_their_options(tau: TaskVector) -> None:
    with pytest.raises(GradfixError, match="mask 'none': has no option 'level'; it has none"):
        mask(tau, strategy="none", level=0.1)
    with pytest.raises(GradfixError, match="voters: expected at least 0, found -1"):
        significant_votes(-1, 0.1)


class TestApart:
    """A head for a target without one."""

    @pytest.fixture
    def case(self, tmp_path: Path) -> tuple[TaskVector, Checkpoint, Any]:
        tuned = tiny.save_tiny_bert_classifier(tmp_path / "tuned", 0)
        target = tiny.save_tiny_bert_base(tmp_path / "target", 1)
        task = get_task("text-classification")
        task.bind(tuned)
        return TaskVector.between(target, target), Checkpoint.open(target), task

    def test_a_class_that_cannot_be_built(
        self, case: tuple[TaskVector, Checkpoint, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(apart, "skeleton", lambda _: None)
        with pytest.raises(AlignmentError, match="can't build BertForSequenceClassification"):
            apart._with_head(*case)

    def test_a_configuration_that_no_class_is_for(self, case: tuple[TaskVector, Checkpoint, Any]) -> None:
        _, _, task = case
        task.config = object()
        with pytest.raises(AlignmentError, match="transformers has no SequenceClassification for object"):
            apart._class_name(task)


def test_a_head_that_cannot_pass_on_is_named() -> None:
    model = torch.nn.Module()
    model.add_module("head", torch.nn.Linear(3, 4))
    model.add_module("classifier", torch.nn.Linear(4, 2))
    missing = {name: name for name, _ in model.named_parameters()}
    task: Any = SimpleNamespace(last_layer=lambda _: ("classifier", model.classifier))
    with pytest.raises(AlignmentError, match=r"head.weight \[4, 3\] of its head is in no checkpoint"):
        apart._passing_on(model, missing, task)


def test_vectors_of_other_tensors_have_no_angle(tau: TaskVector, tmp_path: Path) -> None:
    save_file({"w": torch.ones(2)}, tmp_path / "a.safetensors")
    save_file({"w": torch.zeros(2)}, tmp_path / "b.safetensors")
    other = TaskVector.between(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    with pytest.raises(GradfixError, match="different models can't be combined"):
        moments(other, tau)


def test_a_file_of_whole_numbers_is_no_task_vector(
    tau: TaskVector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "tau.safetensors"
    tau.save(path)
    monkeypatch.setattr(task_vector, "check_content", lambda *_: None)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    save_file({"w": torch.ones(2, dtype=torch.int8)}, path, metadata)
    with pytest.raises(GradfixError, match="w: expected floating-point numbers"):
        TaskVector.load(path)


def test_a_head_whose_name_the_target_has_is_refused(tmp_path: Path) -> None:
    one = torch.ones(2)
    tensors = {
        "base": {"shared": one},
        "tuned": {"shared": one * 2, "new": one},
        "target": {"shared": one, "new": one},
    }
    for name, content in tensors.items():
        save_file({key: value.clone() for key, value in content.items()}, tmp_path / f"{name}.safetensors")
    tau = TaskVector.between(tmp_path / "base.safetensors", tmp_path / "tuned.safetensors")
    with pytest.raises(
        GradfixError, match="has tensors of its own under the names of the tuned model's head"
    ):
        place(tau, Checkpoint.open(tmp_path / "target.safetensors"))


def test_a_tie_that_no_configuration_undoes_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed, (name, tied) in enumerate((("base", False), ("tuned", False), ("target", True))):
        tiny_llama(seed, tie_word_embeddings=tied).save_pretrained(tmp_path / name)
    tau = TaskVector.between(tmp_path / "base", tmp_path / "tuned")
    assert place(tau, Checkpoint.open(tmp_path / "target"))
    monkeypatch.setattr(placement, "architecture_of", lambda _: None)
    with pytest.raises(GradfixError, match=r"ties lm_head.weight, which the tuned model changes apart"):
        place(tau, Checkpoint.open(tmp_path / "target"))


def test_a_target_of_no_class_gets_no_adapter(
    triple: Triple, tau: TaskVector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(truncation, "skeleton", lambda _: None)
    with pytest.raises(GradfixError, match="names no class of transformers, so its layers are not known"):
        truncation.Extraction(tau, Checkpoint.open(triple.target), rank=2)


def test_heads_of_one_name_are_not_added(tmp_path: Path) -> None:
    one = torch.ones(2)
    save_file({"shared": one}, tmp_path / "base.safetensors")
    save_file({"shared": one * 2, "new": one}, tmp_path / "tuned.safetensors")
    tau = TaskVector.between(tmp_path / "base.safetensors", tmp_path / "tuned.safetensors")
    with pytest.raises(GradfixError, match="two tuned models bring a parameter of the same name: new"):
        combine([(1.0, tau), (1.0, tau)])


def test_a_folder_that_a_modules_list_names_is_written(
    triple: Triple, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verification, "module_folders", lambda _: ["1_Pooling"])
    monkeypatch.setattr(verification, "module_paths", lambda _: ["1_Pooling"])
    with pytest.raises(GradfixError, match="names 1_Pooling, which could not be carried over"):
        verification.verify_written(triple.target, Checkpoint.open(triple.target), "the output")
