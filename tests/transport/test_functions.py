"""The public functions, with rows in memory and tasks of the caller's own, beside the commands."""

import json
from pathlib import Path

import datasets
import pandas
import pytest
import torch
from safetensors.torch import save_file

import gradfix as gf
from gradfix.errors import GradfixError
from tests.builders import Job, gradfix, job
from tests.tasks.test_custom import net_task, rows_of, trained

pytestmark = pytest.mark.slow


@pytest.fixture
def work(tmp_path: Path) -> Job:
    return job("text-classification", tmp_path)


def test_evaluate_measures_what_the_command_does(work: Job, tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in work.held_out))
    asked = ["--model", work.models["source_tuned"], "--task", work.task, "--data", tmp_path / "d.jsonl"]
    told = json.loads(gradfix("evaluate", *asked, "--json").stdout)
    for rows in (
        list(work.held_out),
        datasets.Dataset.from_list(list(work.held_out)),
        pandas.DataFrame(work.held_out),
    ):
        found = gf.evaluate(model=work.models["source_tuned"], task=work.task, data=rows)
        assert (found.score, found.loss) == (told["score"], told["loss"])
    shown = repr(found).splitlines()
    assert len(shown) <= 3
    assert "accuracy" in shown[0]
    assert "<strong>accuracy" in found._repr_html_()
    kept = gf.evaluate(
        model=work.models["source_tuned"], task=work.task, data=work.held_out, output=tmp_path / "e.json"
    )
    assert json.loads((tmp_path / "e.json").read_text())["scores"] == kept.scores


def test_check_finds_and_refuses_nothing_by_an_exception(work: Job) -> None:
    found = gf.check(**work.models, task=work.task, support=work.rows)
    assert found.ok
    assert repr(found).startswith("possible: ")
    wrong = gf.check(**work.models, task=work.task, support=[{"text": "a"}])
    assert not wrong.ok
    assert repr(wrong).startswith("not possible\n  error: row 0: has no column 'label'")


def test_check_reckons_with_all_that_auto_tries(work: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradfix.transport.memory._speed", lambda *_: 1e9)
    monkeypatch.setattr("gradfix.transport.checks._measured_seconds", lambda *_: 0.0)

    def seconds(**options: object) -> float:
        found = gf.check(**work.models, task=work.task, support=work.rows, **options)
        assert found.seconds is not None
        return found.seconds

    told, untrained, whole = seconds(method="gradfix"), seconds(training=False), seconds()
    assert whole > seconds(finetune_steps=1) > untrained > 1.5 * told
    steps = [seconds(method="gradfix", finetune_steps=steps) - told for steps in (10, 20)]
    assert steps[1] == pytest.approx(2 * steps[0])
    assert steps[0] > 0


def test_votes_are_those_of_the_file(work: Job, tmp_path: Path) -> None:
    (tmp_path / "s.jsonl").write_text("".join(json.dumps(row) + "\n" for row in work.rows))
    target = work.models["target_base"]
    asked = ["--target-base", target, "--task", work.task, "--support", tmp_path / "s.jsonl"]
    assert gradfix("votes", *asked, "--output", tmp_path / "v.safetensors").exit_code == 0
    stored = gf.Votes.load(tmp_path / "v.safetensors")
    counted = gf.votes(target_base=target, task=work.task, support=work.rows)
    assert all(torch.equal(counted[name], stored[name]) for name in stored)
    assert gf.inspect(tmp_path / "v.safetensors").facts["samples"] == len(work.rows)


def test_a_task_of_ones_own_is_checked_measured_and_compared(tmp_path: Path) -> None:
    old = trained(1)
    for name, net in (("old", old), ("mine", trained(2, old)), ("new", trained(3, old))):
        save_file(net.state_dict(), tmp_path / f"{name}.safetensors")
    models = {
        "source_base": tmp_path / "old.safetensors",
        "source_tuned": tmp_path / "mine.safetensors",
        "target_base": tmp_path / "new.safetensors",
    }
    task = net_task(metric="share right")
    measured = gf.evaluate(task=task, model=models["source_tuned"], data=rows_of(30, seed=5))
    assert measured.metric == "share right"
    assert gf.check(**models, task=task, support=rows_of(6, seed=4)).ok
    table = gf.compare(
        **models, task=task, data=rows_of(30, seed=5), test=rows_of(30, seed=6), retain=rows_of(12, seed=7),
        samples_per_class=(2,), seeds=2, output=tmp_path / "table",
    )  # fmt: skip
    assert table.metric == "share right"
    assert {len(line.outcomes) for line in table.lines} == {2}
    assert all(line.retained is not None for line in table.lines)
    assert "GradFix" in repr(table)
    recipe = (tmp_path / "table" / "recipe.yaml").read_text()
    assert "data: rows given in Python" in recipe
    refused = gradfix("run", tmp_path / "table" / "recipe.yaml", "--output", tmp_path / "again")
    assert (refused.exit_code, len(refused.stderr.splitlines())) == (1, 1)


def test_a_transport_shows_itself_in_ten_lines(work: Job, tmp_path: Path) -> None:
    result = work.run(tmp_path / "out", test=work.held_out, alpha=0.3)
    shown = repr(result)
    assert len(shown.splitlines()) <= 10
    assert len(shown) < 1500
    assert str(tmp_path / "out") in shown
    html = result._repr_html_()
    assert html.startswith("<p><strong>transported to ")
    assert result.judgement is not None
    assert len(repr(result.judgement).splitlines()) == 6
    assert len(repr(result.applied)) < 1000


def test_options_that_are_wrong_are_named(work: Job, tmp_path: Path) -> None:
    with pytest.raises(
        GradfixError, match=r"evaluate: batch_size: Input should be greater than or equal to 1"
    ):
        gf.evaluate(model="m", task=work.task, data=work.rows, batch_size=0)
    with pytest.raises(GradfixError, match="data: a list_iterator has no rows by number"):
        gf.evaluate(model="m", task=work.task, data=iter(work.rows))  # type: ignore[arg-type]
