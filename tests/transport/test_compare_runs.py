"""Runs of a comparison: which rows, how far it is, and going on after an end."""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import pytest

import gradfix as gf
from gradfix.errors import GradfixError
from gradfix.recipes.fields import COMPARED
from gradfix.transport.comparison import AUTO, BASELINES, FEW_SHOT, FULL, ORACLE, ZERO_SHOT, compare
from tests.builders import Job, job

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
    assert set(COMPARED) == {*BASELINES, AUTO, FEW_SHOT, ORACLE, FULL}
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
    with pytest.raises(GradfixError, match="methods: there is no row 'nave'; choose from naive, random"):
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
