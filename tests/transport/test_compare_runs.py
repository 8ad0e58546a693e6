"""Runs of a comparison: which rows, how far it is, and going on after an end."""

import dataclasses
import json
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

import gradfix as gf
from gradfix.alignment.rotation import families
from gradfix.errors import GradfixError
from gradfix.evaluation.finetuning import finetune
from gradfix.evaluation.target_model import TargetModel
from gradfix.recipes import CompareRecipe, validate
from gradfix.recipes.fields import COMPARED
from gradfix.transport import methods
from gradfix.transport.comparison import (
    AUTO,
    BASELINES,
    FEW_SHOT,
    FULL,
    ORACLE,
    PERMUTATION,
    ZERO_SHOT,
    Judge,
    compare,
)
from gradfix.transport.comparison.sharing import FEWEST, Claims, processes_for
from gradfix.transport.context import SelectionContext
from gradfix.transport.methods import AddVector
from tests.builders import Job, gradfix, job, loaded

pytestmark = pytest.mark.slow
ROWS = ("naive", "gradfix", "control")


@pytest.fixture
def work(tmp_path: Path) -> Job:
    return job("text-classification", tmp_path)


def asked(work: Job, **more: Any) -> dict[str, Any]:
    given = {"data": work.held_out, "test": work.rows, "samples_per_class": (2,), "seeds": 2, "methods": ROWS}
    return {**work.models, "task": work.task, **given, **more}


def scores(table: Any) -> list[Any]:
    return [
        (line.budget, line.method, [dataclasses.replace(outcome, seconds=0.0) for outcome in line.outcomes])
        for line in table.lines
    ]


def test_the_rows_are_those_that_were_asked_for(work: Job, tmp_path: Path) -> None:
    assert set(COMPARED) == {*BASELINES, PERMUTATION, AUTO, FEW_SHOT, ORACLE, FULL}
    told: list[tuple[str, int, int]] = []
    table = gf.compare(
        **asked(work, methods=(*ROWS, "few-shot"), finetune_steps=3, output=tmp_path / "t"),
        progress=lambda stage, done, total, unit="": told.append((stage, done, total)),
    )
    assert [line.method for line in table.lines] == [ZERO_SHOT, *ROWS, "few-shot"]
    steps = [outcome.setting["finetune_steps"] for outcome in table.lines[-1].outcomes]
    assert max(steps) <= 3
    assert ("draw 2 of 2, 2 a class: few-shot fine-tuning", 3, 4) in told
    assert (tmp_path / "t" / "report.html").exists()
    with pytest.raises(GradfixError, match=r"methods: expected one of naive, permutation.* found 'nave'"):
        gf.compare(**asked(work, methods=("nave",)))
    with pytest.raises(GradfixError, match="methods oracle needs target_tuned"):
        gf.compare(**asked(work, methods=("oracle",)))


def test_a_run_of_other_options_takes_nothing_over(
    work: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = sys.modules[compare.__module__]
    draw, seeds = module.draw, []

    def ended(judge: Any, support: Any, *, seed: int, **options: Any) -> Any:
        seeds.append(seed)
        if len(seeds) == 2:
            raise KeyboardInterrupt
        return draw(judge, support, seed=seed, **options)

    monkeypatch.setattr(module, "draw", ended)
    output = tmp_path / "table"
    with pytest.raises(KeyboardInterrupt):
        gf.compare(**asked(work, output=output))
    kept = tmp_path / ".table.draws.jsonl"
    kept.write_text(kept.read_text() + '{"of": "half a li')
    assert not output.exists()
    # Another question is another run: nothing of the first counts for it.
    gf.compare(**asked(work, output=output, batch_size=8, seeds=1))
    assert seeds == [0, 1, 0]


def test_what_is_done_is_not_done_again(work: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = gf.compare(**asked(work))
    module = sys.modules[compare.__module__]
    draw, seeds = module.draw, []

    def ended(judge: Any, support: Any, *, seed: int, **options: Any) -> Any:
        seeds.append(seed)
        if len(seeds) == 2:
            raise KeyboardInterrupt
        return draw(judge, support, seed=seed, **options)

    monkeypatch.setattr(module, "draw", ended)
    with pytest.raises(KeyboardInterrupt):
        gf.compare(**asked(work, output=tmp_path / "table"))
    again = gf.compare(**asked(work, output=tmp_path / "table"))
    assert seeds == [0, 1, 1]
    assert scores(again) == scores(whole)
    assert not (tmp_path / ".table.draws.jsonl").exists()


def test_tasks_stand_side_by_side_and_what_is_done_is_not_done_again(
    work: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, rows in (("pool", work.held_out), ("test", work.rows)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(dict(row)) + "\n" for row in rows))
    for name, seed in (("one", 2), ("two", 3)):
        places = {key: str(value) for key, value in work.models.items()}
        recipe = {
            "command": "compare", **places, "task": work.task, "data": str(tmp_path / "pool.jsonl"),
            "test": str(tmp_path / "test.jsonl"), "samples_per_class": [seed], "seeds": 2,
            "methods": ["naive"], "output": str(tmp_path / name),
        }  # fmt: skip
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(recipe))
    tables = [tmp_path / f"{name}.yaml" for name in ("one", "two")]
    refused = gradfix("table", *tables, "--output", tmp_path / "table")
    assert (refused.exit_code, "no number of samples a class is common" in refused.stderr) == (1, True)
    assert not (tmp_path / "one").exists()
    (tmp_path / "two.yaml").write_text((tmp_path / "one.yaml").read_text().replace("/one", "/three"))
    run = gradfix(
        "table", f"first={tables[0]}", f"second={tables[1]}", "--output", tmp_path / "table", "--json"
    )
    assert run.exit_code == 0, run.stderr
    made = [path.stat().st_mtime_ns for path in (tmp_path / "one").iterdir()]
    told = json.loads(run.stdout)
    assert told["columns"] == ["method", "first", "second", "mean"]
    again = gradfix("table", f"first={tables[0]}", f"second={tables[1]}", "--output", tmp_path / "more")
    assert again.exit_code == 0, again.stderr
    assert made == [path.stat().st_mtime_ns for path in (tmp_path / "one").iterdir()]
    # The same from Python, of folders and of results; the mean is that of the columns.
    table = gf.table({"first": tmp_path / "one", "second": tmp_path / "three"})
    found = {name: score.value for name, score in table.scores(2, "naive").items()}
    assert found["mean"] == pytest.approx((found["first"] + found["second"]) / 2)
    assert table.markdown() == (tmp_path / "table" / "table.md").read_text()
    with pytest.raises(GradfixError, match="expected one of demo"):
        gf.table({"first": tmp_path})
    # Data that changed are another comparison than the one that is there.
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(dict(row)) + "\n" for row in work.rows[:-1]))
    changed = gradfix("table", *tables, "--output", tmp_path / "again")
    assert (changed.exit_code, "is there already, of other options or files" in changed.stderr) == (1, True)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """What each process beside others has: sums over several differ in their last bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
def test_processes_side_by_side_find_the_same(
    work: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    comparison = import_module(
        "gradfix.transport.comparison.compare"
    )  # the package's attribute is the function
    take, draw, here = Claims.take, comparison.draw, list[int]()

    def taking(claims: Claims, one: tuple[int, int]) -> bool:
        left = claims.folder is not None and one[1] == 1  # to the other process
        return not left and take(claims, one)

    def drawing(*given: Any, seed: int, **options: Any) -> Any:
        here.append(seed)
        return draw(*given, seed=seed, **options)

    options = asked(work, methods=("naive", "few-shot"), finetune_steps=2)
    alone = gf.compare(**options, processes=1)
    monkeypatch.setattr(Claims, "take", taking)
    monkeypatch.setattr(comparison, "draw", drawing)
    beside = gf.compare(**options, processes=2, output=tmp_path / "table")
    assert here == [0]
    assert scores(alone) == scores(beside)
    assert not (tmp_path / ".table.draws.jsonl").exists()


def test_what_exists_in_this_process_alone_is_computed_here(work: Job, tmp_path: Path) -> None:
    def claimed(**options: Any) -> int:
        recipe = validate(CompareRecipe, {**places, **options}, "compare")
        return processes_for(recipe, model, {}, 6)

    places = {key: str(value) for key, value in work.models.items()}
    places |= {"task": work.task, "data": "d", "test": "t", "output": "o"}
    model = SimpleNamespace(model=torch.nn.Linear(2, 2), streams=False)
    gf.register("mask", name="here-alone")(lambda tau, signal, block: tau)
    assert claimed(processes=2) == 2
    assert claimed(processes=9) == 6
    assert claimed(processes=2, methods=["here-alone"]) == 1
    assert claimed(device="cuda") == 1
    assert processes_for(validate(CompareRecipe, places, "compare"), model, {}, FEWEST - 1) == 1


def test_a_head_that_is_fitted_in_each_draw_is_measured_in_each_draw(work: Job) -> None:
    table = gf.compare(**asked(work, methods=("naive",), seeds=3, head="probe", best_on_test=True))
    for line in table.lines:
        losses = [outcome.loss for outcome in line.outcomes]
        assert len(set(losses)) > 1, line.method


def test_votes_at_the_base_are_counted_once_and_places_measured_once(
    work: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted, measured = list[int](), list[int]()
    count, evaluate = TargetModel.votes_of, TargetModel.evaluate

    def counting(model: TargetModel, groups: Any, **options: Any) -> Any:
        counted.append(sum(map(len, groups)))
        return count(model, groups, **options)

    def evaluating(model: TargetModel, rows: Any, **options: Any) -> Any:
        measured.append(len(rows) if isinstance(rows, list) else sum(map(len, rows.positions)))
        return evaluate(model, rows, **options)

    monkeypatch.setattr(TargetModel, "votes_of", counting)
    monkeypatch.setattr(TargetModel, "evaluate", evaluating)
    alone = gf.compare(**asked(work, methods=("force",), seeds=1))
    votes, places = sum(counted), sum(measured)
    counted.clear()
    measured.clear()
    together = gf.compare(**asked(work, methods=("gradfix", "soft", "force"), seeds=1))
    assert sum(counted) == votes
    assert sum(measured) < 3 * places
    assert scores(alone)[-1] in scores(together)  # whoever asked first


def test_training_from_the_base_is_walked_once_for_all_who_ask(
    work: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []
    monkeypatch.setattr(
        methods, "finetune", lambda *given, **options: counted(steps, finetune(*given, **options))
    )
    both = gf.compare(**asked(work, methods=("auto", "few-shot"), seeds=1, finetune_steps=6))
    shared = len(steps)
    steps.clear()
    alone = gf.compare(**asked(work, methods=("few-shot",), seeds=1, finetune_steps=6))
    rows = {line.method: line.outcomes[0] for line in both.lines}
    assert dataclasses.replace(rows["few-shot"], seconds=0.0) == dataclasses.replace(
        alone.lines[-1].outcomes[0], seconds=0.0
    )
    few_shot_alone = len(steps)
    steps.clear()
    gf.compare(**asked(work, methods=("auto",), seeds=1, finetune_steps=6))
    assert shared < len(steps) + few_shot_alone


def counted(steps: list[int], walk: Any) -> Any:
    for step in walk:
        steps.append(step)
        yield step


def test_the_best_alpha_on_test_stands_beside_the_chosen_one_and_says_so(work: Job, tmp_path: Path) -> None:
    methods = ("naive", "permutation", "gradfix", "few-shot")
    table = gf.compare(
        **asked(work, methods=methods, finetune_steps=1, best_on_test=True, output=tmp_path / "table")
    )
    lines = {line.method: line for line in table.lines}
    bounds = [name for name in lines if name.endswith("-best-on-test")]
    assert bounds == [f"{name}-best-on-test" for name in methods[:3]]
    for name in bounds:
        best, chosen = lines[name], lines[name.removesuffix("-best-on-test")]
        assert all(one.score >= two.score for one, two in zip(best.outcomes, chosen.outcomes, strict=True))
        assert best.label == f"{chosen.label}: best α on test"
        assert best.over_control is None
    places = {key: str(path) for key, path in work.models.items()}
    aligned = {"align": "permutation", "align_data": work.held_out}
    for name, more in (("naive", {}), ("permutation", aligned)):
        found = lines[f"{name}-best-on-test"].outcomes[0]
        assert found == lines[f"{name}-best-on-test"].outcomes[1]  # no draw shapes the vector
        alpha = found.setting["alpha"] or 0.6
        made = gf.transport(
            **places, task=work.task, support=work.held_out[:6], mask="none", alpha=alpha, test=work.rows,
            output=tmp_path / name, **more,
        )  # fmt: skip
        assert made.judgement.transported.score == found.score or not found.setting["alpha"]
        assert made.judgement.transported.score <= found.score
    validated = gf.compare(
        **asked(work, methods=("naive",), seeds=1, validation=work.held_out, validation_split=None)
    )
    found = {line.method: line.outcomes[0] for line in validated.lines}
    assert list(found) == [ZERO_SHOT, "naive", "naive-by-validation"]
    made = gf.transport(
        **places, task=work.task, support=work.held_out[:6], mask="none", validation=work.held_out, test=work.rows,
        output=tmp_path / "validated",
    )  # fmt: skip
    assert found["naive-by-validation"].setting["alpha"] == made.alpha.alpha
    assert found["naive-by-validation"].score == made.judgement.transported.score
    assert f"or on {len(work.held_out)} validation samples" in validated.caption
    page = (tmp_path / "table" / "report.html").read_text()
    assert "but for the rows that say so, which are bounds" in page
    assert (
        "GradFix (majority, agreement): best α on test" in (tmp_path / "table" / "comparison.md").read_text()
    )


def test_a_permutation_that_is_not_known_names_the_row(work: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(families, "KNOWN", frozenset({"t5"}))
    with pytest.raises(
        GradfixError, match=r"methods permutation: .*'bert' may be rotated; .*; leave the row out"
    ):
        gf.compare(**asked(work, methods=("permutation",)))


def test_the_best_alpha_on_test_is_judged_as_every_other_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = job("causal-lm", tmp_path)  # its settings are chosen by tokens, its results are generated
    model, metrics = loaded(work), list[str]()
    assert model.judging.metric != model.task.metric
    evaluate = type(model).evaluate

    def evaluating(*given: Any, **options: Any) -> Any:
        found = evaluate(*given, **options)
        metrics.append(found.metric)
        return found

    monkeypatch.setattr(type(model), "evaluate", evaluating)
    test, way = model.encode(work.held_out), AddVector("naive", "naive", vector=model.vector, grid=(0.0, 1.0))
    with SelectionContext(model, work.rows, [[0, 1, 2], [3, 4, 5]]) as context:
        judge = Judge(model, test, best_on_test=True)
        judge.measure({}, context.clock())
        assert judge.best(context, way) is not None
    assert metrics == [model.judging.metric] * 3
