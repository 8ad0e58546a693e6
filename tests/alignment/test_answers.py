"""The last layer fitted to the source's answers: held to what can be said of the fit exactly."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from gradfix.alignment import align, run_source
from gradfix.alignment.answers import fit_answers, wanted_answers
from gradfix.checkpoints import Checkpoint
from gradfix.checkpoints.expressions import Given
from gradfix.errors import AlignmentError
from gradfix.evaluation.binding import bind
from gradfix.evaluation.target_model import TargetModel
from gradfix.recipes.settings import SETTINGS
from gradfix.tasks import Classification, CustomTask, get_task
from gradfix.vectors.placement import place
from gradfix.vectors.task_vector import TaskVector
from tests.builders import job


def target(task: str, root: Path) -> tuple[TargetModel, list[dict[str, object]]]:
    work = job(task, root)
    checkpoint = Checkpoint.open(work.models["target_base"])
    tau = TaskVector.between(work.models["source_base"], work.models["source_tuned"])
    bound = get_task(task)
    bind(bound, checkpoint, tau, work.rows)
    return TargetModel.load(bound, checkpoint, place(tau, checkpoint)), [*work.rows, *work.held_out]


def probabilities(model: TargetModel, rows: list[dict[str, object]]) -> torch.Tensor:
    assert isinstance(model.task, Classification)
    with torch.no_grad():
        return model.task.logits(model.model, model.task.encode(rows)).softmax(dim=1)


@pytest.mark.parametrize(
    "task", ["text-classification", "image-classification", "zero-shot-image-classification"]
)
def test_a_model_answers_more_as_it_is_asked_to_and_is_asked_nothing_by_itself(
    task: str, tmp_path: Path
) -> None:
    model, rows = target(task, tmp_path)
    own = probabilities(model, rows)
    still = fit_answers(model, wanted_answers(model, rows, own))
    assert all(float(change.abs().max()) < 1e-3 for change in still.changes.values())
    # Another model of the same kind: its last layer turned a little.
    generator = torch.Generator().manual_seed(0)
    wanted = (own.log() + 0.3 * torch.randn(own.shape[1], generator=generator)).softmax(dim=1)
    found = fit_answers(model, wanted_answers(model, rows, wanted))
    assert found.changes
    assert found.unexplained < 1
    changes = {model.names[name]: value for name, value in found.changes.items()}
    vector = model.vector.derive(Given(changes), operation="test")

    def apart(answers: torch.Tensor) -> float:
        return float((wanted * (wanted.log() - answers.log())).sum(dim=1).mean())

    before = apart(own)
    model.move(vector, 1.0)
    after = apart(probabilities(model, rows))
    model.restore()
    assert after < 0.5 * before
    assert torch.equal(probabilities(model, rows), own)


def test_a_task_without_classes_has_no_answers(tmp_path: Path) -> None:
    model, rows = target("causal-lm", tmp_path)
    with pytest.raises(AlignmentError, match="no classes, and no last affine map"):
        wanted_answers(model, rows, torch.ones(len(rows), 2) / 2)


def test_a_task_of_ones_own_is_answered_by_its_last_layer(tmp_path: Path) -> None:
    def build() -> torch.nn.Module:
        layers = torch.nn.Conv1d(2, 6, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(36, 3)
        return torch.nn.Sequential(*layers)

    def encode(rows: Sequence[Any]) -> dict[str, torch.Tensor]:
        return {key: torch.stack([torch.as_tensor(row[key]) for row in rows]) for key in ("sound", "label")}

    def loss(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(model(batch["sound"]), batch["label"], reduction="none")

    def predict(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        found = model(batch["sound"]).argmax(dim=1)
        return found, (found == batch["label"]).float()

    torch.manual_seed(0)
    rows = [{"sound": torch.randn(2, 8), "label": n % 3} for n in range(80)]
    locations = {}
    for name in ("base", "tuned", "target"):
        torch.manual_seed(len(name))
        locations[name] = tmp_path / f"{name}.safetensors"
        save_file(build().state_dict(), locations[name])
    task = CustomTask(
        encode, loss, predict, name="sounds", build=build, class_of=lambda row: int(row["label"])
    )
    base, checkpoint = Checkpoint.open(locations["base"]), Checkpoint.open(locations["target"])
    tau = TaskVector.between(base, locations["tuned"])
    bind(task, checkpoint, tau, rows)
    model = TargetModel.load(task, checkpoint, place(tau, checkpoint))
    tuned = build()
    tuned.load_state_dict(load_file(locations["tuned"]))
    wanted = tuned(encode(rows)["sound"]).detach()
    with ExitStack() as stack:
        source = run_source(base, tau, task, rows, stack, align="auto", alike=0.0, control_seed=0, loading={})
        assert source is not None
        found = align(source, model, control_seed=0)
    assert found is not None
    assert found.answers is not None
    assert {*found.answers.vector.specs} == {"3.weight", "3.bias"}

    def apart() -> float:
        return float((model.model(encode(rows)["sound"]).detach() - wanted).square().mean())

    before = apart()
    model.move(found.answers.vector, 1.0)
    after = apart()
    model.restore()
    assert after < 0.5 * before


def test_all_inputs_are_answered_though_activations_are_recorded_of_a_few(tmp_path: Path) -> None:
    work = job("text-classification", tmp_path)
    base, checkpoint = (Checkpoint.open(work.models[f"{role}_base"]) for role in ("source", "target"))
    tau = TaskVector.between(base, work.models["source_tuned"])
    task, ours = get_task("text-classification"), get_task("text-classification")
    bind(task, checkpoint, tau, work.rows)
    bind(ours, base, tau, work.rows)
    rows = [*work.rows, *work.held_out]
    few = replace(SETTINGS, align_inputs=9)
    with ExitStack() as stack:
        source = run_source(
            base, tau, task, work.rows, stack,
            align="regression", alike=0.0, unlabelled=rows, control_seed=0, settings=few, loading={"batch_size": 4},
        )  # fmt: skip
        assert source is not None
        found = align(source, TargetModel.load(task, checkpoint, place(tau, checkpoint)), control_seed=0)
    tuned = TargetModel.load(ours, base, place(tau, base))
    tuned.move(tuned.vector, 1.0)
    assert source.observed.answers is not None
    assert len(rows) > 9
    torch.testing.assert_close(source.observed.answers, probabilities(tuned, rows), atol=1e-5, rtol=1e-4)
    assert found is not None
    assert found.answers is not None
    assert (found.inputs, found.answers.inputs) == (9, len(rows))
