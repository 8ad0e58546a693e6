"""An alignment without the samples that judge it: the same as one that was never given them."""

from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from gradfix.alignment import Aligned, align, run_source
from gradfix.alignment.teacher import Teacher
from gradfix.checkpoints import Checkpoint
from gradfix.evaluation.binding import bind
from gradfix.evaluation.target_model import TargetModel
from gradfix.tasks import get_task
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


ROWS = 12


def teacher(right: float, sure: float, classes: int = 3) -> Teacher:
    """One that names the right class of a share of labelled rows, and is as sure of all."""
    rows = np.arange(ROWS)
    labels = rows % classes
    named = np.where(rows < right * ROWS, labels, (labels + 1) % classes)
    logits = sure * torch.nn.functional.one_hot(torch.from_numpy(named), classes).float()
    losses = -logits.log_softmax(dim=1)[rows, labels]
    measured = SimpleNamespace(logits=logits, losses=losses.tolist(), scores=(named == labels).tolist())
    return Teacher(
        list(rows),
        logits.softmax(dim=1),
        range(ROWS),
        measured=measured,
        find=lambda samples: frozenset(samples),
    )  # type: ignore[arg-type]


def test_a_teacher_is_believed_as_far_as_it_is_right() -> None:
    everything = range(ROWS)
    for right in (1.0, 0.75, 0.5, 0.25):
        plain = teacher(right, 8.0)
        found, wrong = plain.believed(everything)
        expected = 1 - float(plain.answers.max(dim=1).values.mean())
        assert wrong == pytest.approx(((1 - right) * ROWS + 4 * expected) / (ROWS + 4))
        # As sure as it is right, and of the same class as ever.
        assert found.answers.max(dim=1).values.mean() == pytest.approx(max(right, 1 / 3), abs=0.15)
        assert torch.equal(found.answers.argmax(dim=1), plain.answers.argmax(dim=1))
    unknown, wrong = teacher(0.5, 8.0).believed([])
    assert wrong == pytest.approx(1 - float(unknown.answers.max(dim=1).values.mean()))
    assert torch.equal(unknown.answers, teacher(0.5, 8.0).answers)
    timid, _ = teacher(1.0, 0.5).believed(everything)  # few samples make nobody surer than it is
    assert torch.allclose(timid.answers, teacher(1.0, 0.5).answers)


def test_a_teacher_judges_by_cross_entropies_of_its_answers() -> None:
    asked = [7, 2, 5]
    said = teacher(0.75, 2.0)
    logits = torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = said.judge(logits.numpy(), asked, ())
    answers = said.answers[asked].double()
    np.testing.assert_allclose(found.losses, -(answers * logits.log_softmax(dim=1)).sum(dim=1))
    assert found.scores.tolist() == [
        answer[one] for answer, one in zip(answers, logits.argmax(1), strict=True)
    ]
    assert said.of(asked).inputs == asked
    assert torch.equal(said.of(asked).answers, said.answers[asked])
