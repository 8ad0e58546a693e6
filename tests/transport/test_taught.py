"""The tuned source's answers as a judge: of every input by what had no part of it, whatever labels shaped."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gradfix.alignment import Aligned, align, run_source
from gradfix.alignment.teacher import Teacher
from gradfix.checkpoints import Checkpoint
from gradfix.errors import GradfixError
from gradfix.evaluation.binding import bind
from gradfix.evaluation.target_model import TargetModel
from gradfix.recipes.settings import SETTINGS
from gradfix.tasks import get_task
from gradfix.transport.context import SelectionContext, StartingPoint
from gradfix.transport.cross_validation import cross_validate
from gradfix.transport.folds import split_folds
from gradfix.transport.methods import AddVector, FineTune, MaskVector, Method, Revote
from gradfix.vectors.placement import place
from gradfix.vectors.task_vector import TaskVector
from tests.builders import Job, job, tuned_from


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Job:
    return job("text-classification", tmp_path_factory.mktemp("taught"))


@pytest.fixture(scope="module")
def pair(work: Job) -> Iterator[tuple[Aligned, Teacher | None, TargetModel]]:
    """A tiny model, and what alignment made of τ by inputs of which the labelled samples are the last."""
    base, checkpoint = (Checkpoint.open(work.models[f"{role}_base"]) for role in ("source", "target"))
    tau = TaskVector.between(base, work.models["source_tuned"])
    task = get_task("text-classification")
    bind(task, checkpoint, tau, work.rows)
    with ExitStack() as stack:
        model = TargetModel.load(task, checkpoint, place(tau, checkpoint))
        source = run_source(
            base, tau, task, work.rows, stack,
            align="regression", alike=0.0, align_data=[*work.held_out, *work.rows], control_seed=None,
            loading={"batch_size": 4},
        )  # fmt: skip
        assert source is not None
        found = align(source, model, control_seed=None)
        assert found is not None
        yield found, source.teacher(task), model


def context_of(pair: tuple[Aligned, Teacher, TargetModel], rows: Any, **options: Any) -> SelectionContext:
    aligned, teacher, model = pair
    folds = split_folds(model.task.classes(rows), 3, 0)
    return SelectionContext(model, rows, folds, aligned=aligned, teacher=teacher, **options)


def believe(monkeypatch: pytest.MonkeyPatch, wrong: float = 0.01) -> None:
    monkeypatch.setattr(Teacher, "believed", lambda self, samples: (self, wrong))


def ways(aligned: Aligned) -> list[Method]:
    assert aligned.answers is not None
    fit = AddVector("answers", "a fit", vector=aligned.answers.vector, grid=(1.0,))
    start = StartingPoint(fit, {"alpha": 1.0})
    return [
        fit,
        MaskVector("gradfix", "GradFix", vector=aligned.vector, grid=(0.5,)),
        Revote("re-voted", "re-voting", vector=aligned.vector, step=0.2, count=1, start=start),
        FineTune("fine-tuned", "training", start=start, rates=(1e-3,), stops=(2,)),
        FineTune("few-shot", "training", start=StartingPoint(), rates=(1e-3,), stops=(2,)),
    ]


def test_every_input_is_judged_by_what_had_no_part_of_it(
    pair: tuple[Aligned, Teacher, TargetModel], work: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    aligned, _, model = pair
    for way in ways(aligned):
        with context_of(pair, work.rows) as context:
            believe(monkeypatch)
            candidate = cross_validate(context, way)
            teacher = context.believed
            assert teacher is not None
            assert candidate.taught is not None
            assert len(candidate.taught.losses) == len(work.held_out) + len(work.rows)
            for held in context.halves:
                asked = list(context.asked(held))
                model.move(*way.build(context, candidate.setting, held))
                logits = model.evaluate(context.encoded_inputs(held), logits=True).logits
                model.restore()
                assert logits is not None
                wanted = -(teacher.answers[asked] * logits.log_softmax(dim=1)).sum(dim=1)
                np.testing.assert_allclose(candidate.taught.losses[asked], wanted, rtol=2e-3, atol=2e-3)


def test_fits_that_judge_leave_out_what_they_are_judged_by(
    pair: tuple[Aligned, Teacher, TargetModel], work: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    aligned, _, model = pair
    fits: dict[frozenset[int], TaskVector] = {}
    fitted = replace(aligned, refit=lambda places: fits.setdefault(places, aligned.vector * 1.0))
    with context_of((fitted, pair[1], model), work.rows) as context:
        believe(monkeypatch)
        teacher = context.believed
        assert teacher is not None
        judged: list[int] = []
        for held in context.halves:
            places = {teacher.places[number] for number in context.asked(held)}
            # A labelled sample's input judges where the sample does.
            own = aligned.places([work.rows[place] for place in context.places(held)])
            assert own <= places
            assert context.outside(aligned.vector, held) is fits[frozenset(places)]
            judged += places
        assert sorted(judged) == sorted(teacher.places) == list(range(len(work.held_out) + len(work.rows)))


@pytest.mark.parametrize("wrong", [0.01, 0.4, 0.5, 3.0])
def test_a_teacher_that_is_often_wrong_is_asked_little(
    wrong: float, pair: tuple[Aligned, Teacher, TargetModel], work: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    with context_of(pair, work.rows[:2]) as context:
        believe(monkeypatch, wrong)
        numbers = [number for held in context.halves for number in context.asked(held)]
        wanted = (0.5 / (SETTINGS.shared * wrong)) ** 2
        if wanted < 0.5:
            assert context.believed is None
            assert cross_validate(context, ways(pair[0])[0]).taught is None
            return
        assert context.believed is not None
        assert numbers == list(range(len(context.believed.inputs)))
        everything = len(work.held_out) + len(work.rows)
        assert len(numbers) == pytest.approx(min(wanted, everything), abs=len(context.halves) / 2)


def test_many_samples_are_judged_by_halves_and_fits_keep_most_inputs(
    pair: tuple[Aligned, Teacher, TargetModel], work: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = work.rows
    with context_of(pair, rows, settings=SETTINGS.__class__(few=1)) as context:
        believe(monkeypatch)
        teacher = context.believed
        assert teacher is not None
        assert context.halves == ((0, 2), (1,))
        for held in context.halves:
            places = {teacher.places[number] for number in context.asked(held)}
            of_first = context.aligned and context.aligned.places(
                [rows[one] for one in context.folds[held[0]]]
            )
            assert of_first is not None
            assert of_first <= places
        assert len(teacher.inputs) < len(work.held_out) + len(rows)
        assert not torch.equal(teacher.answers, pair[1].answers[: len(teacher.inputs)])


def test_validation_data_judges_alone(pair: tuple[Aligned, Teacher, TargetModel], work: Job) -> None:
    aligned, _, model = pair
    with context_of(pair, work.rows) as context:
        for way in ways(aligned)[:2]:
            assert cross_validate(context, way, validation=model.encode(work.held_out)).taught is None


def close_release(work: Job, root: Path) -> Job:
    """A job whose new base is the old one, hardly changed: nothing has to be aligned."""
    old = work.models["source_base"]
    new = tuned_from(root / "release", old, work.auto_class, scale=1e-4)
    return replace(work, models={**work.models, "target_base": new})


@pytest.mark.parametrize(
    ("given", "asked"),
    [
        ({"data": True, "samples_per_class": 2}, True),
        ({"align_data": True}, True),
        ({}, False),  # of the labelled samples alone the labels say more
        ({"align_data": True, "method": "gradfix", "align": "auto"}, False),
        ({"align_data": True, "validation": True}, False),
    ],
)
def test_further_inputs_judge_close_releases(
    given: dict[str, Any], asked: bool, work: Job, tmp_path: Path
) -> None:
    close = close_release(work, tmp_path)
    rows = {name: work.held_out for name in ("align_data", "validation") if given.get(name)}
    options = {"method": "auto", "training": False, "steps": 1, **given, **rows}
    if options.pop("data", None):
        options |= {"support": None, "data": work.rows}
    if options["method"] == "gradfix":
        options = {name: value for name, value in options.items() if name not in ("training", "steps")}
    found = close.run(tmp_path / "out", **options)
    assert found.record.alignment is None
    assert (found.record.observation is not None) == asked
    assert (
        "of the tuned model's answers" in (found.record.method.why if found.record.method else "")
    ) == asked


@pytest.mark.parametrize("trouble", ["loading", "streams", "running", "alone"])
def test_a_tuned_model_that_cannot_be_asked_leaves_the_judgement_to_labels(
    trouble: str, work: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gradfix.alignment import source

    place_of = work.models["source_base"]
    base = Checkpoint.open(place_of)
    if trouble == "alone":
        (tmp_path / "bare.safetensors").write_bytes((place_of / "model.safetensors").read_bytes())
        base = Checkpoint.open(tmp_path / "bare.safetensors")
    tau = TaskVector.between(Checkpoint.open(place_of), work.models["source_tuned"])
    task = get_task("text-classification")
    bind(task, Checkpoint.open(place_of), tau, work.rows)

    def fail(*_: Any, **__: Any) -> Any:
        raise GradfixError("no room")

    if trouble == "loading":
        monkeypatch.setattr(source, "load_target", fail)
    elif trouble == "streams":
        monkeypatch.setattr(TargetModel, "streams", True)
    elif trouble == "running":
        monkeypatch.setattr(source, "observe", fail)
    said: list[str] = []
    with ExitStack() as stack:
        options: dict[str, Any] = {"alike": 0.99, "loading": {}, "remark": said.append}
        assert run_source(base, tau, task, work.rows, stack, align="auto", judging=True, **options) is None
        assert len(said) == 1
        assert "labelled samples judge alone" in said[0]
        if trouble in ("loading", "running"):  # what was asked for by name is not left out in silence
            with pytest.raises(GradfixError, match="no room"):
                run_source(base, tau, task, work.rows, stack, align="regression", judging=True, **options)
