"""The comparison: every baseline, paired intervals, and a target that always comes back to where it was."""

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from gradfix.checkpoints.expressions import Given
from gradfix.evaluation.evaluate import EncodedRows
from gradfix.evaluation.finetuning import Paused, finetune
from gradfix.evaluation.target_model import TargetModel
from gradfix.recipes.settings import SelectionSettings
from gradfix.transport.comparison import (
    BASELINES,
    LABELS,
    Judge,
    Outcome,
    chosen_along,
    chosen_ways,
    summarise,
    table_csv,
    table_markdown,
)
from gradfix.transport.context import MOST_PAUSED, SelectionContext, StartingPoint
from gradfix.transport.folds import VotesByFold
from gradfix.transport.selection import training_from
from gradfix.vectors.control import shuffled
from gradfix.vectors.scratch import Scratch
from tests import tiny
from tests.builders import Job, gradfix, job, loaded, tuned_from, vector

pytestmark = pytest.mark.slow


@pytest.fixture
def work(tmp_path: Path) -> Job:
    return job("text-classification", tmp_path)


def state(model: TargetModel) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.model.state_dict().items()}


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], two[name]) for name in one)


def test_a_model_moved_and_restored_is_the_target_to_the_bit(work: Job) -> None:
    model = loaded(work)
    before = state(model)
    model.move(model.vector, 0.3)
    assert not same(before, state(model))
    model.move(model.vector, 1.0)
    model.restore()
    assert same(before, state(model))
    for _ in finetune(model, len(work.rows), model.encoder(work.rows), learning_rate=1e-2, stops=[2]):
        assert not same(before, state(model))
    model.restore()
    assert same(before, state(model))
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.model.parameters())


def test_votes_by_folds_add_up_to_those_of_their_samples(work: Job) -> None:
    model, folds = loaded(work), [[0, 3, 6], [1, 4, 7], [2, 5, 8]]
    with Scratch() as scratch:
        votes_without = VotesByFold(model, work.rows, folds, scratch)
        for found, chosen in (
            (votes_without.all(), range(9)),
            (votes_without.all(), range(9)),  # asked for again, it is read again
            (votes_without.without([1]), [0, 2, 3, 5, 6, 8]),
        ):
            expected = model.votes([work.rows[index] for index in chosen])
            assert found.samples == expected.samples
            # Of a key's bias the gradient is rounding alone, so its votes depend on the batch.
            names = [name for name in expected if not name.endswith("key.bias")]
            assert all(torch.equal(found[name], expected[name]) for name in names)


def test_the_slope_is_the_derivative_of_the_loss_along_the_direction(work: Job) -> None:
    model = loaded(work)
    slope = model.slope(model.vector, work.rows)
    step = 1e-2
    losses = []
    for alpha in (step, -step):
        model.move(model.vector, alpha)
        losses.append(model.evaluate(work.rows).loss)
    model.restore()
    assert slope == pytest.approx((losses[0] - losses[1]) / (2 * step), rel=1e-2)


def test_fine_tuning_lowers_the_loss_and_its_settings_are_chosen_on_held_out_samples(work: Job) -> None:
    model = loaded(work)
    start = model.evaluate(work.rows).loss
    for _ in finetune(model, len(work.rows), model.encoder(work.rows), learning_rate=1e-2, stops=[20]):
        assert model.evaluate(work.rows).loss < start / 2
    model.restore()
    settings = SelectionSettings(rates=(10.0,), more_rates=(), stops=(3,))
    with SelectionContext(model, work.rows, [[0, 1, 2], [3, 4, 5], [6, 7, 8]], settings=settings) as context:
        way = training_from(StartingPoint(), None, settings)
        chosen = chosen_along(Judge(model, model.encode(work.rows)), context, way)
    assert chosen.setting["finetune_steps"] == 0  # such a rate ruins the model; not training is a candidate
    assert model.evaluate(work.rows).loss == pytest.approx(start, rel=1e-6)


def test_steps_of_few_shot_fine_tuning_take_few_samples_and_all_in_turn(
    work: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, rows = loaded(work), [{**row, "place": place} for place, row in enumerate(tiny.texts(20, seed=5))]
    seen: list[list[int]] = []
    encoder = model.encoder

    def watched(rows: Any) -> Callable[[Sequence[int]], EncodedRows]:
        encode = encoder(rows)
        return lambda places: (seen.append([rows[place]["place"] for place in places]), encode(places))[1]

    monkeypatch.setattr(model, "encoder", watched)

    def tuned(seed: int) -> dict[str, torch.Tensor]:
        for _ in finetune(model, len(rows), model.encoder(rows), learning_rate=1e-3, stops=[4], seed=seed):
            pass
        found = state(model)
        model.restore()
        return found

    first = tuned(0)
    assert [len(part) for part in seen] == [10, 10, 10, 10]
    rounds = [seen[0] + seen[1], seen[2] + seen[3]]
    assert all(sorted(places) == list(range(20)) for places in rounds)
    assert rounds[0] != rounds[1]
    assert same(first, tuned(0))
    assert not same(first, tuned(1))
    seen.clear()
    del rows[16:]
    tuned(0)
    assert seen == [list(range(16))]  # one batch, encoded once


@pytest.mark.parametrize("count", [9, 20])
def test_training_goes_on_where_it_was_left_as_if_it_had_never_stopped(count: int, work: Job) -> None:
    model, rows = loaded(work), tiny.texts(count, seed=5)
    kept: dict[int, Paused] = {}

    def pause(steps: int, tensors: Mapping[str, torch.Tensor]) -> None:
        kept[steps] = Paused(steps, Given({name: tensor.clone() for name, tensor in tensors.items()}))

    def trained(stops: Sequence[int], **options: Any) -> dict[str, torch.Tensor]:
        walk = finetune(
            model, len(rows), model.encoder(rows), learning_rate=1e-2, stops=stops, seed=3, **options
        )
        assert list(walk) == list(stops)
        found = state(model)
        model.restore()
        return found

    whole = trained([7])
    half = trained([1, 3], pause=pause)
    for _ in finetune(model, 4, model.encoder(rows), learning_rate=1e-3, stops=[2, 5], pause=pause):
        break  # given up at a stop: it can go on, too
    model.restore()
    assert kept.keys() == {3, 2}
    assert same(trained([3, 7], resume=kept[3]), whole)
    assert same(trained([3], resume=kept[3]), half)
    assert not same(half, whole)


def test_a_walk_that_breaks_between_two_stops_is_not_kept(work: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    model, kept = loaded(work), list[int]()
    walk = finetune(
        model,
        len(work.rows),
        model.encoder(work.rows),
        learning_rate=1e-2,
        stops=[2, 9],
        pause=lambda steps, _: kept.append(steps),
    )
    assert next(walk) == 2
    monkeypatch.setattr(model.task, "loss", lambda *_: torch.tensor(float("nan")).expand(9) / 0)
    with pytest.raises(RuntimeError):
        next(walk)
    assert not kept
    model.restore()


def test_of_walks_that_can_go_on_the_last_ones_are_kept(work: Job) -> None:
    model = loaded(work)
    with SelectionContext(model, work.rows, [[0, 1], [2]]) as context:
        for number in range(MOST_PAUSED + 2):
            context.pause(number, number + 1, {"weight": torch.full((3,), float(number))})
        assert context.paused(0, 100) is None
        last = context.paused(MOST_PAUSED + 1, 100)
        assert last is not None
        assert last.steps == MOST_PAUSED + 2
        assert last.tensors.read("weight").tolist() == [MOST_PAUSED + 1.0] * 3
        assert context.paused(MOST_PAUSED + 1, last.steps - 1) is None  # it is past that stop


def test_a_step_moves_along_the_mean_loss_of_its_samples(work: Job) -> None:
    model = loaded(work)
    plain = torch.optim.AdamW(model.trainable(), lr=1e-3, weight_decay=0.0)
    for _ in range(2):
        plain.zero_grad()
        encoded = model.encode(work.rows)
        losses = torch.cat([model.task.loss(model.model, batch) for batch in encoded.batches])
        losses.mean().backward()  # type: ignore[no-untyped-call]
        plain.step()
    plain.zero_grad()
    expected = state(model)
    model.restore()
    for _ in finetune(model, len(work.rows), model.encoder(work.rows), learning_rate=1e-3, stops=[2]):
        for name, tensor in state(model).items():
            if not name.endswith(
                "key.bias"
            ):  # no loss depends on it: its steps have the signs of rounding errors
                torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=2e-5)


def test_a_shuffled_vector_has_the_same_values_in_other_places_whatever_rows_are_read() -> None:
    tau = vector(w=torch.randn(40, 7), v=torch.randn(5))
    control = shuffled(tau, seed=1)
    for name in ("w", "v"):
        assert torch.equal(control[name].flatten().sort().values, tau[name].flatten().sort().values)
        assert not torch.equal(control[name], tau[name])
        assert torch.equal(
            torch.cat([control.read(name, slice(0, 3)), control.read(name, slice(3, None))]), control[name]
        )
    assert torch.equal(shuffled(tau, seed=1)["w"], control["w"])
    assert not torch.equal(shuffled(tau, seed=2)["w"], control["w"])


def test_compare_writes_every_row_with_intervals(work: Job, tmp_path: Path) -> None:
    for name, rows in (("pool", tiny.texts(60, seed=3)), ("test", tiny.texts(30, seed=4))):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    tuned_target = tuned_from(
        tmp_path / "new-tuned", work.models["target_base"], "AutoModelForSequenceClassification"
    )
    options = [
        part for kind, path in work.models.items() for part in (f"--{kind.replace('_', '-')}", str(path))
    ]
    result = gradfix(
        "compare", *options, "--target-tuned", tuned_target, "--task", work.task, "--data", tmp_path / "pool.jsonl",
        "--test", tmp_path / "test.jsonl", "--samples-per-class", 1, "--samples-per-class", 2, "--seeds", 2,
        "--output", tmp_path / "table", "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    rows = json.loads(result.stdout)["rows"]
    assert [(row["budget"], row["method"]) for row in rows] == [
        (budget, method) for budget in (1, 2) for method in LABELS if method != "permutation"
    ]
    for row in rows:
        assert row["score"]["n"] == 2
        assert (row["over_control"] is None) == (
            row["method"] in {"zero-shot", "control", "auto-control", "full"}
        )
        assert all(
            (outcome["way"] is not None) == row["method"].startswith("auto") for outcome in row["outcomes"]
        )
    assert "with 2 a class auto chose " in json.loads(result.stdout)["caption"]
    assert {path.name for path in (tmp_path / "table").iterdir()} == {
        "comparison.json", "comparison.csv", "comparison.md", "recipe.yaml", "report.html",
    }  # fmt: skip
    table = list(csv.DictReader(io.StringIO((tmp_path / "table" / "comparison.csv").read_text())))
    assert len(table) == 2 * 2 * (len(LABELS) - 1)


def test_differences_are_paired_by_draw() -> None:
    def outcomes(**scores: float) -> dict[str, Outcome]:
        return {name: Outcome(score, 0.0, {"alpha": 1.0}) for name, score in scores.items()}

    draws: list[dict[str, Any]] = [
        outcomes(**{"zero-shot": 0.2, "control": 0.3, "gradfix": 0.4}),
        outcomes(**{"zero-shot": 0.6, "control": 0.7, "gradfix": 0.8}),
    ]
    lines = {line.method: line for line in summarise(draws, budget=3)}
    gain = lines["gradfix"].gain
    assert (gain.value, gain.low) == (pytest.approx(0.2), None)  # two draws are too few for an interval
    over = lines["gradfix"].over_control
    assert over is not None
    assert over.value == pytest.approx(0.1)
    assert lines["control"].over_control is None
    assert "| GradFix (majority, agreement) | 0.600 |" in table_markdown(list(lines.values()), "caption")
    assert table_csv(list(lines.values())).count("\n") == 7


def test_auto_is_told_apart_from_its_own_control_and_by_what_it_chose() -> None:
    scores = {"zero-shot": 0.2, "control": 0.5, "auto": 0.6, "auto-control": 0.1}
    draws = [
        {
            name: Outcome(score, 0.0, {"alpha": 1.0}, way=way if name == "auto" else None)
            for name, score in scores.items()
        }
        for way in ("aligned addition", "naive addition", "aligned addition")
    ]
    lines = summarise(draws, budget=5)
    over = next(line for line in lines if line.method == "auto").over_control
    assert over is not None
    assert over.value == pytest.approx(0.5)
    assert chosen_ways(lines) == "auto chose aligned addition in 2 of 3 draws, naive addition in 1"


def test_every_method_has_a_label() -> None:
    assert set(BASELINES) < set(LABELS)
