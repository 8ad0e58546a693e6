"""The last layer fitted to the source's answers: held to what can be said of the fit exactly."""

from pathlib import Path

import pytest
import torch

from gradfix.alignment.answers import fit_answers
from gradfix.checkpoints import Checkpoint
from gradfix.checkpoints.expressions import Given
from gradfix.errors import AlignmentError
from gradfix.evaluation.binding import bind
from gradfix.evaluation.target_model import TargetModel
from gradfix.tasks import Classification, get_task
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
    still = fit_answers(model, rows, own)
    assert all(float(change.abs().max()) < 1e-3 for change in still.changes.values())
    # Another model of the same kind: its last layer turned a little.
    generator = torch.Generator().manual_seed(0)
    wanted = (own.log() + 0.3 * torch.randn(own.shape[1], generator=generator)).softmax(dim=1)
    found = fit_answers(model, rows, wanted)
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
    with pytest.raises(AlignmentError, match="no classes"):
        fit_answers(model, rows, torch.ones(len(rows), 2) / 2)
