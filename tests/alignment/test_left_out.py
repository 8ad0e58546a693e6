"""An alignment without the samples that judge it: the same as one that was never given them."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch

from gradfix.alignment import Aligned, align, run_source
from gradfix.checkpoints import Checkpoint
from gradfix.evaluation import calibration
from gradfix.evaluation.binding import bind
from gradfix.evaluation.target_model import TargetModel
from gradfix.tasks import Classification, get_task
from gradfix.vectors.placement import place
from gradfix.vectors.task_vector import TaskVector
from tests.builders import Job, job

LEFT_OUT = (0, 3, 4)


def aligned(work: Job, task: str, inputs: list[Any], stack: ExitStack) -> tuple[Aligned, TargetModel]:
    """Align a tiny model on inputs."""
    base, checkpoint = (Checkpoint.open(work.models[f"{role}_base"]) for role in ("source", "target"))
    tau = TaskVector.between(base, work.models["source_tuned"])
    bound = get_task(task)
    bind(bound, checkpoint, tau, work.rows)
    model = TargetModel.load(bound, checkpoint, place(tau, checkpoint))
    source = run_source(
        base, tau, bound, work.rows, stack,
        align="regression", alike=0.0, align_data=inputs, control_seed=None, loading={"batch_size": 4},
    )  # fmt: skip
    assert source is not None
    found = align(source, model, control_seed=None)
    assert found is not None
    return found, model


def close(one: TaskVector, two: TaskVector) -> bool:
    return one.specs.keys() == two.specs.keys() and all(
        torch.allclose(one.read(name), two.read(name), rtol=1e-3, atol=1e-5) for name in one.specs
    )


@pytest.mark.parametrize(
    "task", ["text-classification", "image-classification", "causal-lm", "text-to-text", "question-answering"]
)
def test_a_fit_without_samples_is_one_that_never_saw_them(task: str, tmp_path: Path) -> None:
    work = job(task, tmp_path)
    inputs = [*work.rows, *work.held_out]
    judging = [inputs[place] for place in LEFT_OUT]
    with ExitStack() as stack:
        found, model = aligned(work, task, inputs, stack)
        others = [row for place, row in enumerate(inputs) if place not in LEFT_OUT]
        plain, _ = aligned(work, task, others, stack)
        weights = {name: value.detach().clone() for name, value in model.model.named_parameters()}
        for one, twin in ((found, plain), (found.answers, plain.answers)):
            if one is None or twin is None:
                assert task not in ("text-classification", "image-classification")
                continue
            assert one.saw(judging)
            assert not one.saw([])
            assert one.vector.specs
            assert not close(one.vector, twin.vector)
            assert close(one.without(judging), twin.vector)
            assert close(one.without([]), one.vector)
        assert all(torch.equal(value, weights[name]) for name, value in model.model.named_parameters())


def test_samples_are_found_whatever_their_labels(tmp_path: Path) -> None:
    work = job("text-classification", tmp_path)
    with ExitStack() as stack:
        found, model = aligned(work, "text-classification", work.rows, stack)
        first, *_ = work.rows
        label = model.task.columns["label"]
        other = next(row[label] for row in work.rows if row[label] != first[label])
        assert found.places([{**first, label: other}, *work.held_out]) == {0}


@pytest.mark.parametrize("task", ["text-classification", "causal-lm"])
def test_one_input_alone_is_fitted_to_numbers_or_to_nothing(task: str, tmp_path: Path) -> None:
    work = job(task, tmp_path)
    with ExitStack() as stack:
        found, _ = aligned(work, task, work.rows[:2], stack)
        alone = found.without(work.rows[:1])
        assert all(bool(alone.read(name).isfinite().all()) for name in alone.specs)
        if found.answers is not None:  # a row a sample, and none is left to choose a ridge by
            assert not found.answers.without(work.rows[:1]).specs


def test_a_teacher_judges_by_cross_entropies_and_fits_by_inputs_that_they_never_saw(tmp_path: Path) -> None:
    task = "text-classification"
    work = job(task, tmp_path)
    inputs = [*work.rows, *work.held_out]
    with ExitStack() as stack:
        found, model = aligned(work, task, inputs, stack)
        teacher, answers = found.teacher, found.answers
        assert teacher is not None
        assert answers is not None
        assert answers.refit is not None
        assert isinstance(model.task, Classification)
        home = {name: value.detach().clone() for name, value in model.model.named_parameters()}

        def plain(vector: TaskVector, rows: list[int]) -> torch.Tensor:
            assert isinstance(model.task, Classification)
            model.move(vector, 1.0)
            with torch.no_grad():
                logits = model.task.logits(model.model, model.task.encode([inputs[row] for row in rows]))
            model.restore()
            # Of all temperatures the best one, of these rows: no other can do as well.
            right = teacher.answers[rows]
            return torch.stack(
                [-(right * (logits / t).log_softmax(1)).sum(1) for t in calibration.TEMPERATURES]
            )

        everything = list(range(len(inputs)))
        straight = torch.from_numpy(teacher.losses(model, model.vector, 1.0))
        table = plain(model.vector, everything).double()
        assert ((straight[None] - table).abs() < 1e-4).any(dim=0).all()
        assert straight.mean() >= table.mean(dim=1).min() - 1e-6
        fitted = torch.from_numpy(teacher.losses(model, answers.vector, 1.0, answers.refit))
        for first in range(teacher.parts):
            rows = everything[first :: teacher.parts]
            table = plain(answers.refit(frozenset(rows)), rows).double()
            assert ((fitted[rows][None] - table).abs() < 1e-3).any(dim=0).all()
        assert all(torch.equal(value, home[name]) for name, value in model.model.named_parameters())
