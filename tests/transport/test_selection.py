"""How a method is chosen: who judges, what beats what, and that what was judged is what is made."""

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gradfix.alignment import Aligned
from gradfix.checkpoints.expressions import Selection
from gradfix.evaluation.target_model import TargetModel
from gradfix.progress import silent
from gradfix.recipes.settings import SETTINGS, SelectionSettings
from gradfix.tasks import get_task
from gradfix.transport import candidates
from gradfix.transport import selection as methods
from gradfix.transport.candidates import Candidate, Choice, Seen
from gradfix.transport.context import Held, SelectionContext, Setting, StartingPoint
from gradfix.transport.cross_validation import _Part, _Table, _walk_parts, cross_validate
from gradfix.transport.folds import split_folds
from gradfix.transport.methods import AddVector, FineTune, MaskVector, Method, Revote
from gradfix.transport.selection import select
from gradfix.vectors.task_vector import TaskVector
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


def test_both_checkpoints_are_subtracted_once_however_many_masks_and_alphas_are_tried(
    work: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = loaded(work)
    source, read = model.vector.source, Counter[str]()

    class Counting(Selection):
        def read(self, name: str, rows: slice | None = None) -> Tensor:
            read[name] += rows is None or not rows.start
            return super().read(name, rows)

    monkeypatch.setattr(model.vector, "source", Counting(source, {name: name for name in source.specs}))
    with ground_of(model, work.rows) as context:
        naive = AddVector("naive", "naive", vector=model.vector, grid=(0.5, 1.0))
        at = StartingPoint(naive, {"alpha": 1.0})
        ways = [
            naive,
            MaskVector("gradfix", "gradfix", vector=model.vector, grid=(0.5, 1.0)),
            Revote("re-voted", "re-voted", vector=model.vector, step=0.1, count=2, start=at),
        ]
        for way in ways:
            cross_validate(context, way)
    assert set(read.values()) == {1}


def test_nothing_wins_when_the_samples_contradict_the_task_vector(work: Job, tmp_path: Path) -> None:
    model = loaded(trained(work, tmp_path, 10, ascend=True))
    with ground_of(model, work.rows) as context:
        choice = select(context, steps=2, training=False)  # which may lead anywhere from anywhere
    assert choice.candidate.name == "nothing"
    naive = next(one for one in choice.candidates if one.name == "naive")
    losses = [loss for _, loss, _ in naive.curve]
    assert losses == sorted(losses)
    assert losses[0] < losses[-1]
    assert naive.setting == {"alpha": 0.0}


def test_the_last_bits_of_a_loss_decide_nothing() -> None:
    losses = np.array([0.9, 1.3, 1.7])
    scores = np.ones(3)
    for share, beats in ((2e-7, False), (2e-3, True)):
        less = losses * (1 - share)
        assert candidates.beats(Seen(losses, losses, scores), Seen(less, less, scores), SETTINGS) == beats


@given(
    old=st.lists(st.sampled_from([0.0, 1.0]), min_size=12, max_size=12),
    new=st.lists(st.sampled_from([0.0, 1.0]), min_size=12, max_size=12),
)
def test_a_score_that_differs_beyond_luck_overrules_the_loss(old: list[float], new: list[float]) -> None:
    before, after = np.array(old), np.array(new)
    won, lost = int((after > before).sum()), int((after < before).sum())
    sure = abs(won - lost) / max(1.0, (won + lost) ** 0.5)
    for gain in (0.5, -0.5):  # a loss that says the one or the other, beyond any doubt
        ours, theirs = np.ones(12), np.ones(12) - gain
        found = candidates.beats(Seen(ours, ours, before), Seen(theirs, theirs, after), SETTINGS)
        assert found == (won > lost if sure > candidates.OVERRULES else gain > 0)


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
    score: float = 0.9
    classes: int | None = None
    taught: Mapping[str, float] = field(default_factory=dict)

    def __call__(self, context: SelectionContext, way: Method, **_: Any) -> Candidate:
        self.asked.append(way)
        setting = {"alpha": 0.6} if not isinstance(way, Revote) else {"alpha": 0.2, "steps": 2.0}
        losses = np.array(self.losses[way.name])
        curve = ((setting, float(losses.mean()), 0.5),)
        scores = np.full(len(losses), self.score)
        seen = Seen(losses, losses, scores)
        taught = None
        if self.taught:
            told = np.full(40, self.taught[way.name])
            taught = Seen(told, told, np.full(40, 0.5))
        return Candidate(
            way.name, way.label, setting, losses, scores, seen, curve, self.classes, taught=taught
        )


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
        ({"naive": SURE, "fine-tuned": [0.5, 0.51, 0.52, 0.53]}, True, "naive", "fine-tuned"),
        # What is behind before training can be ahead after it.
        ({"aligned": SURE, "naive-fine-tuned": [0.5, 0.51, 0.52, 0.53]}, True, "aligned", "naive-fine-tuned"),
        ({"naive-fine-tuned": [0.5, 0.51, 0.52, 0.53]}, False, "nothing", "naive-fine-tuned"),
        ({"few-shot": [0.5, 0.51, 0.52, 0.53]}, False, "nothing", "few-shot"),
        ({"few-shot": LUCKY}, False, "nothing", "nothing"),
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
    names = (
        "nothing", "naive", "aligned", "gradfix", "confident", "re-voted", "fine-tuned", "naive-fine-tuned",
        "aligned-fine-tuned", "few-shot",
    )  # fmt: skip
    told = Told({**dict.fromkeys(names, FLAT), **losses})
    monkeypatch.setattr(methods, "cross_validate", told)
    aligned = Aligned(model.vector * 0.5, None, "regression", {}, 0) if strangers else None
    alike = 0.1 if strangers else None
    without = select(ground_of(model, work.rows, aligned=aligned), alike=alike, training=False)
    assert not {"few-shot", "fine-tuned"} & {one.name for one in without.candidates}
    told.asked.clear()
    choice = select(ground_of(model, work.rows, aligned=aligned), alike=alike)
    assert ("aligned" in {one.name for one in choice.candidates}) == strangers
    assert choice.candidate.name == chosen
    assert choice.way.name == chosen
    assert [way.name for way in choice.ways] == [one.name for one in choice.candidates]

    second, over = choice.runner_up, choice.over_runner_up
    others = [one for one in choice.candidates if one is not choice.candidate]
    assert second is not None
    assert over is not None
    assert second.loss == min(one.loss for one in others)
    assert over.value == choice.candidate.score - second.score

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
    assert ("few-shot" in ways) == (start == "nothing" or strangers)
    assert strangers or ("naive-fine-tuned" in ways) == (start == "nothing")
    trained = ways["few-shot" if start == "nothing" else "fine-tuned"]
    assert isinstance(trained, FineTune)
    assert trained.start.way is (None if start == "nothing" else ways[start])


BEHIND = [1.6, 0.9, 1.3, 1.0]
"""Worse on average by 0.2, with a standard error of 0.16."""


@pytest.mark.parametrize(
    ("losses", "alike", "chosen"),
    [
        ({"naive": BEHIND}, 1.0, "naive"),
        ({"naive": BEHIND}, None, "nothing"),
        ({"naive": BEHIND}, 0.8, "nothing"),
        ({"naive": [1.2, 1.2, 1.21, 1.2]}, 1.0, "nothing"),
        # What those samples prefer to the fine-tune must be better beyond the same doubt.
        ({"naive": BEHIND, "gradfix": FLAT}, 1.0, "naive"),
        ({"naive": BEHIND, "gradfix": [0.6, 0.5, 0.6, 0.5]}, 1.0, "gradfix"),
    ],
)
def test_between_close_releases_a_few_samples_must_be_sure_to_leave_the_fine_tune_out(
    losses: dict[str, list[float]],
    alike: float | None,
    chosen: str,
    model: TargetModel,
    work: Job,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = ("nothing", "naive", "gradfix", "confident", "few-shot", "fine-tuned", "naive-fine-tuned")
    told = Told({**dict.fromkeys(names, FLAT), "confident": BEHIND, "fine-tuned": BEHIND, **losses})
    monkeypatch.setattr(methods, "cross_validate", told)
    choice = select(ground_of(model, work.rows), alike=alike, steps=0)
    assert choice.candidate.name == chosen
    if alike != 0.8:  # from the new base, too: the samples prefer it
        assert "few-shot" in {one.name for one in choice.candidates}


@pytest.mark.parametrize(
    ("losses", "start"),
    [
        ({"aligned": [0.5, 1.0, 1.0, 0.95], "answers": SURE}, "answers"),  # better by luck alone
        ({"aligned": [0.5, 0.52, 0.51, 0.55], "answers": SURE}, "aligned"),
        ({"aligned": SURE, "answers": [0.5, 1.0, 1.0, 0.95]}, "answers"),
        ({"answers": [1.1, 1.1, 1.1, 1.1]}, "nothing"),
    ],
)
def test_a_map_of_activations_must_beat_the_fit_to_answers_beyond_luck(
    losses: dict[str, list[float]],
    start: str,
    model: TargetModel,
    work: Job,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told = Told({"nothing": FLAT, "naive": [1.5, 1.5, 1.5, 1.5], "gradfix": FLAT, "aligned": FLAT, **losses})
    monkeypatch.setattr(methods, "cross_validate", told)
    answers = Aligned(model.vector * 0.3, None, "answers", {}, 0)
    aligned = Aligned(model.vector * 0.5, None, "regression", {}, 0, answers)
    context = ground_of(model, work.rows, aligned=aligned)
    assert select(context, alike=0.1, steps=0, training=False).candidate.name == start


@pytest.mark.parametrize(
    ("score", "classes", "chosen"),
    [
        (0.3, None, "gradfix"),
        (1.0, None, "nothing"),
        (1.0, 2, "gradfix"),  # the losses are 1, and those of guessing one of two are 0.69
        (0.3, 3, "nothing"),
    ],
)
def test_luck_is_asked_for_only_where_there_is_something_to_lose(
    score: float,
    classes: int | None,
    chosen: str,
    model: TargetModel,
    work: Job,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = ("nothing", "naive", "gradfix", "re-voted", "few-shot", "naive-fine-tuned")
    told = Told({**dict.fromkeys(names, FLAT), "gradfix": LUCKY}, score=score, classes=classes)
    monkeypatch.setattr(methods, "cross_validate", told)
    assert select(ground_of(model, work.rows)).candidate.name == chosen


@given(seed=st.integers(0, 20), parts=st.sampled_from([1, 4]))
def test_luck_in_choosing_a_setting_has_no_part_in_what_is_compared(seed: int, parts: int) -> None:
    losses = np.random.default_rng(seed).normal(1.0, 0.3, size=(40, 24))  # 40 settings that are all the same
    dealt = [_Part((), list(range(first, 24, parts)), None) for first in range(parts)]  # type: ignore[arg-type]
    table = _Table(dealt, get_task("text-classification"))
    for number, row in enumerate(losses):
        table.losses[("level", float(number)),] = row
        table.scores[("level", float(number)),] = np.ones(24)
    way = MaskVector("confident", "confident", vector=None, grid=())  # type: ignore[arg-type]
    found = table.choose(way, SETTINGS, validated=False)
    number = int(found.setting["level"])
    assert found.losses.tolist() == losses[number].tolist()
    assert number == losses.mean(axis=1).argmin()
    assert found.calibrated_loss >= found.loss
    for place in range(24):
        part = [other for other in range(24) if other % 4 == place % 4]
        best = np.delete(losses, part, axis=1).mean(axis=1).argmin()
        assert found.seen.losses[place] == losses[best, place]


def test_a_single_sample_is_never_more_than_luck(
    model: TargetModel, work: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("nothing", "naive", "gradfix", "re-voted", "few-shot", "naive-fine-tuned")
    told = Told({name: [0.1 if name == "gradfix" else 1.0] for name in names})
    monkeypatch.setattr(methods, "cross_validate", told)
    assert select(ground_of(model, work.rows)).candidate.name == "nothing"


@pytest.mark.parametrize(
    ("losses", "ends"),
    [
        ([0.9, 0.8, 0.85, 0.7], 3),  # the third stop is worse: the fourth takes longer than all three
        ([1.2, 0.9, 0.8, 0.7], 4),  # the first steps lead away, the next ones do not
        ([1.2, 1.3, 0.8, 0.7], 2),
        ([0.9, 0.8, 0.7, 0.6], 4),
    ],
)
def test_training_is_given_up_at_the_first_stop_that_is_worse(
    losses: list[float], ends: int, model: TargetModel, work: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate, seen = TargetModel.evaluate, np.ones(len(work.rows))
    rival = Candidate("nothing", "nothing", {}, seen, seen, Seen(seen, seen, seen), ())
    coming = iter(losses)

    def evaluating(self: TargetModel, rows: Any, **options: Any) -> Any:
        found, loss = evaluate(self, rows, **options), next(coming)
        return replace(found, losses=[loss] * found.n, loss=loss, logits=None, scores=[0.5] * found.n)

    monkeypatch.setattr("gradfix.transport.methods.finetune", lambda *_, stops, **__: iter(stops))
    monkeypatch.setattr(TargetModel, "evaluate", evaluating)
    way = FineTune("few-shot", "few-shot", start=StartingPoint(), rates=(1e-4,), stops=(5, 15, 40, 100))
    with ground_of(model, work.rows) as context:
        part = _Part((), range(len(work.rows)), context.encoded(()))
        table = _Table([part], model.task)
        assert len(_walk_parts(context, way, table, [part], rival, silent)) == ends


@pytest.mark.parametrize("sure", [True, False])
def test_alpha_stays_1_unless_another_is_better_beyond_luck(
    sure: bool, model: TargetModel, work: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate = TargetModel.evaluate
    gains = (
        [0.5] * 9 if sure else [3.0, *[-0.3] * 8]
    )  # all of them, or one much and the others less than nothing
    standing = [0.0]
    move = TargetModel.move

    def moving(self: TargetModel, delta: Any, alpha: float) -> None:
        standing.append(alpha)
        move(self, delta, alpha)

    def evaluating(self: TargetModel, rows: Any, **options: Any) -> Any:
        found = evaluate(self, rows, **options)
        losses = [2.0 - gain * (standing[-1] != 1.0) for gain in gains]
        return replace(found, losses=losses, loss=sum(losses) / 9, logits=None, scores=[1.0] * 9)

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
        held = (1,) if way.shaped(context) else ()
        try:
            for setting in way.candidates(context, held):
                seen.append((dict(setting), weights(model)))
        finally:
            model.restore()
        assert len(seen) >= 2
        assert len({tuple(setting.items()) for setting, _ in seen}) == len(seen)
        for setting, there in seen:
            delta, alpha = way.build(context, setting, held)
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
    assert same(two, one)


@pytest.mark.parametrize("labelled", [False, True])
def test_votes_of_the_first_step_are_counted_once_for_all_folds_where_these_set_out_from_one_place(
    labelled: bool, model: TargetModel, work: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[int] = []
    votes = TargetModel.votes

    def counting(self: TargetModel, rows: Any, **options: Any) -> Any:
        counted.append(len(rows))
        return votes(self, rows, **options)

    monkeypatch.setattr(TargetModel, "votes", counting)
    kind = MaskVector if labelled else AddVector
    start = StartingPoint(kind("there", "there", vector=model.vector, grid=(0.5,)), {"alpha": 0.5})
    way = Revote("re-voted", "re-voted", vector=model.vector, step=0.1, count=2, start=start)
    number = len(work.rows)
    with ground_of(model, work.rows) as context:
        for held in context.singles:
            assert len(list(way.candidates(context, held))) == 2
            model.restore()
    # Two thirds of the samples vote in each fold's own place; what is counted for all folds at once is not among them.
    assert sum(counted) == (4 if labelled else 2) * number


def test_the_control_walks_like_the_transport_with_other_vectors(model: TargetModel, work: Job) -> None:
    tau, other = model.vector, model.vector * -1.0
    with ground_of(model, work.rows) as context:
        for way in ways_of(model):
            if isinstance(way, FineTune) and way.start.way is None:
                continue  # what starts at θ_B and trains has no task vector in it
            setting = next(iter(way.candidates(context, ())))
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

    def places(self, context: SelectionContext, held: Held) -> Iterator[tuple[Setting, TaskVector, float]]:
        for place in super().places(context, held):
            yield place
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
                model.move(*way.build(context, {"alpha": alpha}, (number,)))
                expected[index, fold] = model.evaluate([work.rows[place] for place in fold]).losses
        model.restore()
    curve = {setting["alpha"]: loss for setting, loss, _ in found.curve}
    assert curve == pytest.approx({0.0: expected[0].mean(), 0.5: expected[1].mean()}, abs=1e-6)
    best = (0.0, 0.5).index(found.setting["alpha"])
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


class Bumpy(AddVector):
    """Losses by α, whatever the model: a bump between 0 and 1."""

    def candidates(self, context: SelectionContext, held: Held) -> Iterator[Setting]:
        for setting in super().candidates(context, held):
            bumps = {0.1: 0.4, 0.2: 0.8, 0.3: 1.2, 0.45: 0.9, 0.6: 0.5, 1.0: -0.5}
            BUMP[0] = bumps.get(setting["alpha"], 0.0)
            yield setting


BUMP = [0.0]


def test_a_bump_hides_no_alpha(model: TargetModel, work: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluate = TargetModel.evaluate

    def evaluating(self: TargetModel, rows: Any, **options: Any) -> Any:
        found = evaluate(self, rows, **options)
        return replace(found, losses=[1.0 + BUMP[0]] * found.n, loss=1.0 + BUMP[0], logits=None)

    monkeypatch.setattr(TargetModel, "evaluate", evaluating)
    with ground_of(model, work.rows) as context:
        found = cross_validate(context, Bumpy("naive", "naive", vector=model.vector, grid=SETTINGS.alphas))
    assert [setting["alpha"] for setting, _, _ in found.curve] == list(SETTINGS.alphas)
    assert found.setting == {"alpha": 1.0}


@pytest.mark.parametrize(
    ("rate", "steps", "found"),
    [
        (1e-4, 15, (1e-4, 15)),
        (3e-4, 40, (3e-4, 40)),
        (3e-3, 40, (3e-3, 40)),  # past the end of the first rates
        (3e-4, 400, (3e-4, 400)),  # and of the first stops
        (3e-4, 9000, (3e-4, 400)),
    ],
)
def test_the_search_for_a_rate_and_steps_goes_on_where_its_end_is_the_best(
    rate: float,
    steps: int,
    found: tuple[float, int],
    model: TargetModel,
    work: Job,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    evaluate = TargetModel.evaluate

    def train(
        self: FineTune, context: SelectionContext, tried: float, stops: Any, held: Held
    ) -> Iterator[int]:
        for stop in stops:
            BUMP[0] = float(abs(np.log(tried / rate)) + abs(np.log(stop / steps)))
            yield stop

    def evaluating(self: TargetModel, rows: Any, **options: Any) -> Any:
        seen = evaluate(self, rows, **options)
        return replace(seen, losses=[BUMP[0]] * seen.n, loss=BUMP[0], logits=None)

    monkeypatch.setattr(FineTune, "_train", train)
    monkeypatch.setattr(TargetModel, "evaluate", evaluating)
    with ground_of(model, work.rows) as context:
        candidate = cross_validate(context, methods.training_from(StartingPoint(), None, SETTINGS))
    assert (candidate.setting["learning_rate"], candidate.setting["finetune_steps"]) == found


def test_a_search_never_trains_for_longer_than_it_was_told(
    model: TargetModel, work: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: set[int] = set()
    evaluate = TargetModel.evaluate

    def train(
        self: FineTune, context: SelectionContext, rate: float, stops: Any, held: Held
    ) -> Iterator[int]:
        for stop in stops:
            trained.add(stop)
            BUMP[0] = 1.0 / stop
            yield stop

    def evaluating(self: TargetModel, rows: Any, **options: Any) -> Any:
        seen = evaluate(self, rows, **options)
        return replace(seen, losses=[BUMP[0]] * seen.n, loss=BUMP[0], logits=None)

    monkeypatch.setattr(FineTune, "_train", train)
    monkeypatch.setattr(TargetModel, "evaluate", evaluating)
    with ground_of(model, work.rows) as context:
        cross_validate(context, methods.training_from(StartingPoint(), None, SETTINGS, 20))
    assert trained == {5, 15, 20}


def test_training_that_only_leads_away_is_given_up(
    model: TargetModel, work: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[tuple[float, int]] = []
    evaluate = TargetModel.evaluate

    def train(
        self: FineTune, context: SelectionContext, rate: float, stops: Any, held: Held
    ) -> Iterator[int]:
        for stop in stops:
            trained.append((rate, stop))
            BUMP[0] = 10.0 + rate * stop
            yield stop

    def evaluating(self: TargetModel, rows: Any, **options: Any) -> Any:
        seen = evaluate(self, rows, **options)
        return replace(seen, losses=[BUMP[0]] * seen.n, loss=BUMP[0], logits=None)

    monkeypatch.setattr(FineTune, "_train", train)
    settings = SelectionSettings(rates=(1.0,), more_rates=(3.0, 0.3, 0.1), stops=(1, 2, 4, 8, 16))
    with ground_of(model, work.rows, settings=settings) as context:
        start = cross_validate(context, methods.nothing(model.vector))
        monkeypatch.setattr(TargetModel, "evaluate", evaluating)
        cross_validate(context, methods.training_from(StartingPoint(), None, settings), rival=start)
    assert {stop for _, stop in trained} == {1, 2}
    # A smaller rate is tried, as long as it is better; a larger one is not.
    assert {rate for rate, _ in trained} == {1.0, 0.3, 0.1}


def test_calibration_takes_confidence_away_and_nothing_else() -> None:
    from gradfix.evaluation.calibration import calibrated

    generator = np.random.default_rng(0)
    logits = generator.normal(size=(400, 4)) * 2
    labels = np.array([generator.choice(4, p=np.exp(row) / np.exp(row).sum()) for row in logits])

    def losses(scaled: Any) -> Any:
        top = scaled - scaled.max(axis=1, keepdims=True)
        return np.log(np.exp(top).sum(axis=1)) - top[np.arange(400), labels]

    parts = [range(first, 400, 4) for first in range(4)]
    fair = calibrated(logits, losses(logits), parts)
    assert fair == pytest.approx(losses(logits), abs=1e-9)  # they are what the labels were drawn from
    sure = calibrated(8.0 * logits, losses(8.0 * logits), parts)
    assert sure == pytest.approx(fair, abs=1e-9)
    assert losses(8.0 * logits).mean() > 2 * fair.mean()


def test_doubt_takes_confidence_away_where_only_the_right_class_is_known() -> None:
    from gradfix.evaluation.calibration import doubted

    parts = [range(first, 40, 4) for first in range(4)]
    sure = np.where(np.arange(40) % 3 == 0, 9.0, 0.01)  # right two times of three, and always sure
    unsure = np.full(40, 1.7)  # a little better than guessing one of six, 1.79
    assert sure.mean() > unsure.mean()
    judged, other = doubted(sure, 6, parts), doubted(unsure, 6, parts)
    assert judged.mean() < other.mean() < np.log(6)
    assert np.array_equal(
        np.argsort(judged, kind="stable") // 14 == 0, np.argsort(sure, kind="stable") // 14 == 0
    )
    assert doubted(np.full(40, 9.0), 6, parts) == pytest.approx(
        np.log(6)
    )  # what is always wrong is as good as guessing


@pytest.mark.parametrize(
    ("losses", "scores", "found"),
    [
        ([0.1, 1.3, 0.7], [1.0, 1.0, 0.0], True),
        ([0.1, 1.5, 0.7], [1.0, 1.0, 0.0], False),  # the class named has less than a quarter
        ([0.1, 1.3, 0.6], [1.0, 1.0, 0.0], False),  # another one than that named has more than a half
        ([-0.1, 1.3, 0.7], [1.0, 1.0, 0.0], False),
        ([0.1, 1.3, 0.7], [1.0, 0.5, 0.0], False),
    ],
)
def test_losses_that_no_classifier_has_are_left_alone(
    losses: list[float], scores: list[float], found: bool
) -> None:
    from gradfix.evaluation.calibration import cross_entropies

    assert cross_entropies(np.array(losses), np.array(scores), 4) == found
    assert not cross_entropies(np.array(losses), np.array(scores), 1)


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
    context = SelectionContext(SimpleNamespace(task=None), rows, folds, more=others)  # type: ignore[arg-type]
    assert sorted(index for fold in folds for index in fold) == list(range(len(classes)))
    assert max(map(len, folds)) - min(map(len, folds)) <= 1
    for number, fold in enumerate(folds):
        left = context.without((number,))
        assert all(rows[index] not in left for index in fold)
        assert len(left) == len(rows) - len(fold) + more
        assert left[len(left) - more :] == others
    assert context.without(()) == [*rows, *others]


def test_ballots_of_a_fold_are_of_all_others_and_of_what_judges_nothing(
    model: TargetModel, work: Job
) -> None:
    more = [{"text": "red green", "label": "neutral"}, {"text": "who where what", "label": "positive"}]
    with ground_of(model, work.rows, more=more) as context:
        start = StartingPoint()
        for held in ((), *context.singles, (0, 2)):
            counted, plain = context.votes_without(start, held), model.votes(context.without(held))
            assert sorted(counted.sample_ids) == sorted(plain.sample_ids)
            assert counted.keys() == plain.keys()
            for name in plain:
                assert name.endswith(SHIFT) or torch.equal(counted[name], plain[name]), name


@pytest.mark.parametrize(
    ("naive", "taught", "start"),
    [
        (FLAT, {}, "answers"),  # by the labels alone
        (FLAT, {"naive": 0.5, "answers": 0.9}, "naive"),  # though the labels say otherwise
        (FLAT, {"naive": 0.9, "answers": 0.5}, "answers"),
        ([9.0] * 4, {"naive": 0.5, "answers": 0.55}, "answers"),  # the labels count, too
        ([1.5] * 4, {"naive": 0.5, "answers": 1.2}, "nothing"),  # and decide alone where they are sure
        ([0.5, 2.0, 1.9, 0.8], {"naive": 0.5, "answers": 1.2}, "naive"),  # which these are not
    ],
)
def test_what_carries_the_answers_over_is_told_by_the_tuned_source(
    naive: list[float],
    taught: dict[str, float],
    start: str,
    model: TargetModel,
    work: Job,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    losses = {**dict.fromkeys(("nothing", "gradfix", "confident"), [1.1] * 4), "aligned": FLAT}
    if taught:
        taught = {"nothing": 1.1, "gradfix": 1.5, "confident": 1.5, "aligned": 2.0, **taught}
    told = Told({**losses, "naive": naive, "answers": [0.9] * 4}, taught=taught)
    monkeypatch.setattr(methods, "cross_validate", told)
    answers = Aligned(model.vector * 0.3, None, "answers", {}, 0)
    aligned = Aligned(model.vector * 0.5, None, "regression", {}, 0, answers)
    context = ground_of(model, work.rows, aligned=aligned)
    choice = select(context, alike=0.1, steps=0, training=False)
    assert choice.candidate.name == start
    assert ("and of the tuned model's answers to 40 inputs" in choice.why) == bool(taught)


@pytest.mark.parametrize(("asked", "chosen"), [(True, "gradfix"), (False, "nothing")])
def test_where_more_judge_than_labels_less_has_to_be_shown(
    asked: bool, chosen: str, model: TargetModel, work: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("nothing", "naive", "gradfix", "confident")
    losses = {**dict.fromkeys(names, [1.5] * 4), "nothing": FLAT, "gradfix": [0.5, 1.1, 1.1, 1.0]}
    # Of four, and of these and forty that say nothing, a gain of 0.5 and 0.6 standard errors.
    told = Told(losses, taught=dict.fromkeys(names, 1.0) if asked else {})
    monkeypatch.setattr(methods, "cross_validate", told)
    choice = select(ground_of(model, work.rows), steps=0, training=False)
    assert choice.candidate.name == chosen


@pytest.mark.parametrize(("others", "fits"), [(0, 3), (100, 1)])
def test_what_was_fitted_to_the_samples_is_judged_as_it_is_without_them(
    others: int, fits: int, model: TargetModel, work: Job
) -> None:
    asked: list[frozenset[int]] = []

    def refit(places: frozenset[int]) -> TaskVector:
        asked.append(places)
        return model.vector * (0.1 * sum(places))

    def places(samples: Any) -> frozenset[int]:
        return frozenset(place for place, row in enumerate(work.rows) if row in samples)

    vector, inputs = model.vector * 2.0, len(work.rows) + others
    aligned = Aligned(vector, None, "regression", {}, inputs, refit=refit, places=places)
    way = AddVector("aligned", "aligned addition", vector=vector, grid=(0.0, 1.0))
    with ground_of(model, work.rows, aligned=aligned) as context:
        start = StartingPoint(way, {"alpha": 1.0})
        found = cross_validate(context, way)
        wanted = np.empty(len(work.rows))
        for held in context.singles:
            judged = range(len(work.rows)) if fits == 1 else context.places(held)
            model.move(model.vector, 0.1 * sum(judged))
            wanted[context.places(held)] = model.evaluate(context.encoded(held)).losses
        model.restore()
        assert dict(found.setting) == {"alpha": 1.0}
        np.testing.assert_allclose(found.losses, wanted, rtol=1e-5)
        assert len(asked) == len(set(asked)) == fits
        # Of all samples, for the output; what sets out from there sets out from each fold's own.
        assert way.build(context, {"alpha": 1.0}) == (vector, 1.0)
        assert start.shaped(context)
        held = context.singles[0]
        assert start.reach(context, held)[0] is not start.reach(context)[0]
        assert len(asked) == fits
    with ground_of(model, work.rows, aligned=replace(aligned, refit=None)) as context:
        assert not way.shaped(context)


def test_the_curve_of_a_choice_has_the_best_point_of_each_alpha(model: TargetModel, work: Job) -> None:
    curve = (
        ({"alpha": 0.5, "level": 0.1}, 1.0, 0.2),
        ({"alpha": 0.5, "level": 0.3}, 0.8, 0.4),
        ({"alpha": 0.2, "level": 0.1}, 0.9, 0.3),
    )
    way = AddVector("naive", "naive", vector=model.vector, grid=SETTINGS.aligned_alphas)
    one = np.array([0.8])
    score = np.array([0.4])
    candidate = Candidate("naive", "naive", curve[1][0], one, score, Seen(one, one, score), curve)
    choice = Choice(way, candidate, (candidate,), (way,), "so", "cross-fit")
    found = choice.alpha(0.5)
    assert [(point.alpha, point.loss) for point in found.curve] == [(0.2, 0.9), (0.5, 0.8)]
    assert choice.steps() is None
