"""How a method is chosen: who judges, what beats what, and that what was judged is what is made."""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gradfix.evaluation.target_model import TargetModel
from gradfix.transport import selection as methods
from gradfix.transport.folds import GRID, split_folds
from gradfix.transport.methods import (
    AddVector,
    FineTune,
    MaskVector,
    Method,
    Revote,
    SelectionContext,
    Setting,
    StartingPoint,
)
from gradfix.transport.selection import ALIGNED_GRID, Candidate, cross_validate, select
from tests import tiny
from tests.builders import SHIFT, Job, job, loaded

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Job:
    return job("text-classification", tmp_path_factory.mktemp("methods"))


@pytest.fixture(scope="module")
def model(work: Job) -> TargetModel:
    return loaded(work)


def ground_of(model: TargetModel, rows: Any, count: int = 3, **options: Any) -> SelectionContext:
    return SelectionContext(model, rows, split_folds(model.task.classes(rows), count, 0), **options)


def weights(model: TargetModel) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.model.named_parameters()}


def same(one: Mapping[str, Tensor], two: Mapping[str, Tensor]) -> bool:
    return all(torch.equal(one[name], two[name]) for name in one)


def trained(work: Job, root: Path, steps: int, *, ascend: bool) -> Job:
    """A job whose fine-tune started at θ_B itself, and went down or up the support set's loss."""
    place = work.models["target_base"]
    found = transformers.AutoModelForSequenceClassification.from_pretrained(place).eval()
    words = transformers.AutoTokenizer.from_pretrained(place)
    batch = words([row["text"] for row in work.rows], padding=True, return_tensors="pt")
    labels = torch.tensor([tiny.SENTIMENTS.index(row["label"]) for row in work.rows])
    optimizer = torch.optim.SGD(found.parameters(), lr=0.02, maximize=ascend)
    for _ in range(steps):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(found(**batch).logits, labels).backward()
        optimizer.step()
    found.save_pretrained(root / "tuned")
    models = {**work.models, "source_base": place, "source_tuned": root / "tuned"}
    return replace(work, models=models)


def test_nothing_wins_when_the_samples_contradict_the_task_vector(work: Job, tmp_path: Path) -> None:
    model = loaded(trained(work, tmp_path, 10, ascend=True))
    with ground_of(model, work.rows) as context:
        choice = select(context, steps=2)
    assert choice.candidate.name == "nothing"
    naive = next(one for one in choice.candidates if one.name == "naive")
    losses = [loss for _, loss, _ in naive.curve]
    assert losses == sorted(losses)
    assert losses[0] < losses[-1]
    assert naive.setting == {"alpha": 0.0}


def test_the_last_bits_of_a_loss_decide_nothing() -> None:
    losses = np.array([0.9, 1.3, 1.7])
    assert not methods._beats(losses, losses * (1 - 2e-7))
    assert methods._beats(losses, losses * (1 - 2e-3))


def test_a_task_vector_that_helps_is_taken(work: Job, tmp_path: Path) -> None:
    model = loaded(trained(work, tmp_path, 10, ascend=False))
    before = weights(model)
    with ground_of(model, work.rows) as context:
        choice = select(context, steps=2)
        assert same(weights(model), before)
    assert choice.candidate.name != "nothing"
    assert choice.candidate.loss < choice.candidates[0].loss
    found = [one.name for one in choice.candidates]
    assert found[:3] == ["nothing", "naive", "gradfix"]


@dataclass
class Told:
    """In place of measuring: the losses of each way, by name."""

    losses: Mapping[str, list[float]]
    asked: list[Method] = field(default_factory=list)

    def __call__(self, context: SelectionContext, way: Method, **_: Any) -> Candidate:
        self.asked.append(way)
        setting = {"alpha": 0.6} if not isinstance(way, Revote) else {"alpha": 0.2, "steps": 2.0}
        losses = np.array(self.losses[way.name])
        return Candidate(way.name, way.label, setting, losses, 0.5, ((setting, float(losses.mean()), 0.5),))


FLAT = [1.0, 1.0, 1.0, 1.0]
"""Losses of a way that changes nothing, where θ_B's are these."""

LUCKY = [0.0, 1.3, 1.2, 1.2]
"""Better on average by 0.075, with a standard error of 0.31."""

SURE = [0.9, 0.92, 0.91, 0.95]


@pytest.mark.parametrize(
    ("losses", "strangers", "start", "chosen"),
    [
        ({"gradfix": LUCKY}, False, "nothing", "nothing"),
        ({"gradfix": SURE}, False, "nothing", "gradfix"),
        ({"naive": LUCKY}, False, "naive", "naive"),  # one number was chosen: no luck to speak of
        ({"naive": LUCKY}, True, "nothing", "nothing"),  # in coordinates that mean nothing there
        ({"naive": SURE}, True, "naive", "naive"),
        ({"aligned": LUCKY}, True, "aligned", "aligned"),
        ({"naive": LUCKY, "aligned": SURE}, True, "aligned", "aligned"),
        ({"naive": SURE, "confident": [0.8, 0.82, 0.81, 0.85]}, False, "naive", "confident"),
        ({"gradfix": SURE, "re-voted": [0.5, 1.3, 0.9, 0.9]}, False, "nothing", "gradfix"),
        ({"gradfix": SURE, "re-voted": [0.5, 0.51, 0.52, 0.53]}, False, "nothing", "re-voted"),
        ({"re-voted": SURE, "fine-tuned": [0.5, 0.51, 0.52, 0.53]}, True, "nothing", "fine-tuned"),
        ({"fine-tuned": LUCKY}, False, "nothing", "nothing"),
    ],
)
def test_what_labels_shaped_must_gain_more_than_luck(
    losses: dict[str, list[float]],
    strangers: bool,
    start: str,
    chosen: str,
    model: TargetModel,
    work: Job,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = ("nothing", "naive", "aligned", "gradfix", "confident", "re-voted", "fine-tuned")
    told = Told({**dict.fromkeys(names, FLAT), **losses})
    monkeypatch.setattr(methods, "cross_validate", told)
    aligned = model.vector * 0.5 if strangers else None
    choice = select(ground_of(model, work.rows), aligned, finetune=True)
    assert ("aligned" in {one.name for one in choice.candidates}) == strangers
    assert choice.candidate.name == chosen
    assert choice.way.name == chosen
    assert [way.name for way in choice.ways] == [one.name for one in choice.candidates]

    # The reason names what was chosen, and what everything else was worth.
    assert choice.why.startswith(f"{choice.candidate.label} was chosen")
    assert "4 held-out support samples" in choice.why
    for one in choice.candidates:
        if one.name != chosen:
            assert f"{one.label} {one.loss:.3f}" in choice.why
    assert f"is {choice.candidate.loss:.3f}" in choice.why
    luck = any(one.loss < choice.candidate.loss for one in choice.candidates)
    assert ("a difference that can be luck" in choice.why) == luck
    assert choice.candidate.name == chosen

    # Votes are counted, and training starts, where the best way before arrives.
    ways = {way.name: way for way in told.asked}
    revoted = ways["re-voted"]
    assert isinstance(revoted, Revote)
    assert revoted.start.way is (None if start == "nothing" else ways[start])
    assert ("confident" in ways) == (start == "naive")
    trained = ways["fine-tuned"]
    assert isinstance(trained, FineTune)
    if chosen != "fine-tuned":
        assert trained.start.way is (None if chosen == "nothing" else choice.way)


def test_a_single_sample_is_never_more_than_luck(
    model: TargetModel, work: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("nothing", "naive", "gradfix", "confident", "re-voted")
    told = Told({name: [0.1 if name == "gradfix" else 1.0] for name in names})
    monkeypatch.setattr(methods, "cross_validate", told)
    assert select(ground_of(model, work.rows)).candidate.name == "nothing"


@pytest.mark.parametrize("sure", [True, False])
def test_alpha_stays_1_unless_another_is_better_beyond_luck(
    sure: bool, model: TargetModel, work: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate = TargetModel.evaluate
    gains = (
        [0.5] * 9 if sure else [3.0, *[-0.3] * 8]
    )  # all of them, or one much and the others less than nothing
    standing: list[float] = []
    move = TargetModel.move

    def moving(self: TargetModel, delta: Any, alpha: float) -> None:
        standing.append(alpha)
        move(self, delta, alpha)

    def evaluating(self: TargetModel, rows: Any, **options: Any) -> Any:
        found = evaluate(self, rows, **options)
        losses = [2.0 - gain * (standing[-1] != 1.0) for gain in gains]
        return replace(found, losses=losses, loss=sum(losses) / 9)

    monkeypatch.setattr(TargetModel, "move", moving)
    monkeypatch.setattr(TargetModel, "evaluate", evaluating)
    with ground_of(model, work.rows) as context:
        found = cross_validate(context, AddVector("naive", "naive", vector=model.vector, grid=(0.5, 1.0)))
    losses = {setting["alpha"]: loss for setting, loss, _ in found.curve}
    assert losses[0.5] < losses[1.0]
    assert found.setting == {"alpha": 0.5 if sure else 1.0}


def ways_of(model: TargetModel) -> list[Method]:
    tau = model.vector
    naive = AddVector("naive", "naive", vector=tau, grid=(0.0, 0.5, 1.0))
    start = StartingPoint(naive, {"alpha": 0.5})
    masked = MaskVector("gradfix", "GradFix", vector=tau, grid=(0.3, 1.0))
    return [
        naive,
        AddVector("random", "random", vector=tau, grid=(0.5, 1.0), strategy="random"),
        masked,
        MaskVector(
            "there", "there", vector=tau, grid=(0.5,), at=start, strategy="confident", levels=(0.02, 0.5)
        ),
        Revote("re-voted", "re-voted", vector=tau, step=0.25, count=2),
        Revote("further", "further", vector=tau, step=0.1, count=2, start=start),
        FineTune("tuned", "tuned", start=StartingPoint(), rates=(1e-3,), stops=(1, 3)),
        FineTune(
            "after", "after", start=StartingPoint(masked, {"alpha": 1.0}), rates=(1e-4, 1e-3), stops=(2,)
        ),
    ]


# The fourth way counts votes, and a mean vote is one ballot.
@pytest.mark.parametrize(
    ("vote", "number"),
    [(vote, number) for vote in ("majority", "mean") for number in range(8) if (vote, number) != ("mean", 3)],
)
def test_what_was_judged_on_the_way_is_what_is_made(
    number: int, vote: str, model: TargetModel, work: Job
) -> None:
    way = ways_of(model)[number]
    home = weights(model)
    seen: list[tuple[Setting, dict[str, Tensor]]] = []
    with ground_of(model, work.rows, vote=vote) as context:
        fold = 1 if way.labelled else None
        try:
            for setting in way.candidates(context, fold):
                seen.append((dict(setting), weights(model)))
        finally:
            model.restore()
        assert len(seen) >= 2
        assert len({tuple(setting.items()) for setting, _ in seen}) == len(seen)
        for setting, there in seen:
            delta, alpha = way.build(context, setting, fold)
            assert same(weights(model), home)
            model.move(delta, alpha)
            arrived = weights(model)
            model.restore()
            for name, value in arrived.items():
                # τ does not carry training's last bit.
                assert torch.allclose(value, there[name], rtol=0, atol=1e-6), (setting, name)
        made = {tuple(setting.items()): there for setting, there in seen}
        for one, other in itertools.combinations(made, 2):
            assert not same(made[one], made[other])


def test_one_step_from_the_base_is_the_plain_method(model: TargetModel, work: Job) -> None:
    plain = MaskVector("plain", "plain", vector=model.vector, grid=(0.5,))
    single = Revote("single", "single", vector=model.vector, step=0.5, count=1)
    with ground_of(model, work.rows) as context:
        model.move(*plain.build(context, {"alpha": 0.5}))
        one = weights(model)
        model.move(*single.build(context, {"alpha": 0.5, "steps": 1.0}))
        two = weights(model)
        model.restore()
    # Votes are counted fold by fold here and all together there: gradients that are rounding alone may differ.
    assert all(torch.equal(two[name], one[name]) for name in one if not name.endswith(SHIFT))


def test_the_control_walks_like_the_transport_with_other_vectors(model: TargetModel, work: Job) -> None:
    tau, other = model.vector, model.vector * -1.0
    with ground_of(model, work.rows) as context:
        for way in ways_of(model):
            if isinstance(way, FineTune) and way.start.way is None:
                continue  # what starts at θ_B and trains has no task vector in it
            setting = next(iter(way.candidates(context, None)))
            if setting == {"alpha": 0.0}:
                setting = {"alpha": 0.5}
            control = way.control(lambda vector: other if vector is tau else vector)
            model.move(*way.build(context, setting))
            one = weights(model)
            model.move(*control.build(context, setting))
            assert not same(weights(model), one), way.name
            model.restore()


class Failing(AddVector):
    """Breaks once it has moved."""

    def candidates(self, context: SelectionContext, fold: int | None) -> Iterator[Setting]:
        for setting in super().candidates(context, fold):
            yield setting
            raise RuntimeError("on the way")


@pytest.mark.parametrize("where", ["walk", "evaluation", "nowhere"])
def test_measuring_ends_where_it_began_also_after_an_error(
    where: str, model: TargetModel, work: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = weights(model)
    kind = Failing if where == "walk" else AddVector
    way = kind("naive", "naive", vector=model.vector, grid=(0.5, 1.0))
    if where == "evaluation":

        def broken(*_: Any, **__: Any) -> Any:
            raise RuntimeError("in the evaluation")

        monkeypatch.setattr(TargetModel, "evaluate", broken)
    with ground_of(model, work.rows) as context:
        if where == "nowhere":
            cross_validate(context, way)
            for other in ways_of(model):
                cross_validate(context, other)
                assert same(weights(model), home), other.name
        else:
            with pytest.raises(RuntimeError, match="in the evaluation" if where == "evaluation" else "way"):
                cross_validate(context, way)
    assert same(weights(model), home)


def test_losses_are_each_samples_own_whatever_fold_judged_it(model: TargetModel, work: Job) -> None:
    way = MaskVector("gradfix", "GradFix", vector=model.vector, grid=(0.0, 0.5))
    with ground_of(model, work.rows) as context:
        found = cross_validate(context, way)
        expected = np.empty((2, len(work.rows)))
        for number, fold in enumerate(context.folds):
            for index, alpha in enumerate((0.0, 0.5)):
                model.move(*way.build(context, {"alpha": alpha}, number))
                expected[index, fold] = model.evaluate([work.rows[place] for place in fold]).losses
        model.restore()
    curve = {setting["alpha"]: loss for setting, loss, _ in found.curve}
    assert curve == pytest.approx({0.0: expected[0].mean(), 0.5: expected[1].mean()}, abs=1e-6)
    best = int(expected.mean(axis=1).argmin())
    assert way.usual is None or way.usual["alpha"] not in curve
    assert found.setting == {"alpha": (0.0, 0.5)[best]}
    assert np.allclose(found.losses, expected[best], atol=1e-6)


def test_validation_rows_judge_what_all_samples_shaped(model: TargetModel, work: Job) -> None:
    way = MaskVector("gradfix", "GradFix", vector=model.vector, grid=(0.5,))
    with ground_of(model, work.rows) as context:
        found = cross_validate(context, way, validation=model.encode(work.held_out[:8]))
        model.move(*way.build(context, {"alpha": 0.5}))
        expected = model.evaluate(work.held_out[:8])
        model.restore()
    assert found.losses.tolist() == pytest.approx(expected.losses, abs=1e-6)
    assert found.measured[0.5].predictions == expected.predictions


def test_trying_stops_where_the_loss_has_risen_twice(work: Job, tmp_path: Path) -> None:
    model = loaded(trained(work, tmp_path, 10, ascend=True))
    with ground_of(model, work.rows) as context:
        found = cross_validate(context, AddVector("naive", "naive", vector=model.vector, grid=GRID))
    assert [setting["alpha"] for setting, _, _ in found.curve] == list(GRID[:3])


@given(
    classes=st.lists(st.integers(0, 3), min_size=2, max_size=30),
    count=st.integers(2, 6),
    more=st.integers(0, 3),
    seed=st.integers(0, 5),
)
def test_folds_never_overlap_and_leave_nobody_out(
    classes: list[int], count: int, more: int, seed: int
) -> None:
    folds = split_folds(classes, count, seed)
    rows = [{"row": number} for number in range(len(classes))]
    others = [{"more": number} for number in range(more)]
    context = SelectionContext(None, rows, folds, more=others)  # type: ignore[arg-type]
    assert sorted(index for fold in folds for index in fold) == list(range(len(classes)))
    assert max(map(len, folds)) - min(map(len, folds)) <= 1
    for number, fold in enumerate(folds):
        left = context.without(number)
        assert all(rows[index] not in left for index in fold)
        assert len(left) == len(rows) - len(fold) + more
        assert left[len(left) - more :] == others
    assert context.without(None) == [*rows, *others]


def test_ballots_of_a_fold_are_of_all_others_and_of_what_judges_nothing(
    model: TargetModel, work: Job
) -> None:
    more = [{"text": "red green", "label": "neutral"}, {"text": "who where what", "label": "positive"}]
    with ground_of(model, work.rows, more=more) as context:
        start = StartingPoint()
        for fold in (None, *range(len(context.folds))):
            counted, plain = context.votes_without(start, fold), model.votes(context.without(fold))
            assert sorted(counted.sample_ids) == sorted(plain.sample_ids)
            assert counted.keys() == plain.keys()
            for name in plain:
                assert name.endswith(SHIFT) or torch.equal(counted[name], plain[name]), name


def test_the_curve_of_a_choice_has_the_best_point_of_each_alpha(model: TargetModel, work: Job) -> None:
    curve = (
        ({"alpha": 0.5, "level": 0.1}, 1.0, 0.2),
        ({"alpha": 0.5, "level": 0.3}, 0.8, 0.4),
        ({"alpha": 0.2, "level": 0.1}, 0.9, 0.3),
    )
    way = AddVector("naive", "naive", vector=model.vector, grid=ALIGNED_GRID)
    candidate = Candidate("naive", "naive", curve[1][0], np.array([0.8]), 0.4, curve)
    choice = methods.Choice(way, candidate, (candidate,), (way,), "so", "cross-fit")
    found = choice.alpha(0.5)
    assert [(point.alpha, point.loss) for point in found.curve] == [(0.2, 0.9), (0.5, 0.8)]
    assert choice.steps() is None
