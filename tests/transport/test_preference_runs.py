"""Whole commands on preference pairs: recognised, transported by every method, compared, measured alone."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import gradfix as gf
from tests.builders import Job, gradfix, job

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Job:
    return job("preference-pairs", tmp_path_factory.mktemp("pairs"))


def test_check_recognises_pairs_and_shows_one(work: Job, tmp_path: Path) -> None:
    support = tmp_path / "support.jsonl"
    support.write_text("".join(f"{json.dumps(row)}\n" for row in work.rows))
    models = [part for name, path in work.models.items() for part in (f"--{name.replace('_', '-')}", path)]
    shown = gradfix("check", *models, "--task", "causal-lm", "--support", support)
    assert shown.exit_code == 0, shown.output
    said = " ".join(shown.output.split())
    assert "preference pairs: the loss is DPO's, held against the new base" in said
    assert "user a⟦yes </s>⟧ rather than ⟦assistant a yes </s>⟧" in said


def test_auto_chooses_among_all_methods_and_the_verdict_tells_of_rewards(work: Job, tmp_path: Path) -> None:
    work = Job("causal-lm", work.models, work.rows, work.held_out, work.auto_class)
    made = work.run(tmp_path / "out", method="auto", test=work.held_out, finetune_steps=8, unlabelled=None)
    judged = made.judgement
    assert judged is not None
    assert (judged.base.metric, judged.base.task) == ("reward_accuracy", "preference-pairs")
    assert judged.base.score == 0.5  # it is its own reference
    assert made.record.method is not None
    assert {"gradfix", "fine-tuned", "few-shot"} & {one.name for one in made.record.method.candidates}
    page = (tmp_path / "out" / "report.html").read_text()
    assert "reward accuracy" in page
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    measured = gf.evaluate(model=tmp_path / "out", task="preference-pairs", data=work.held_out)
    assert measured.metric == "preference_accuracy"
    assert torch.isfinite(next(again.parameters())).all()


def test_every_row_of_a_comparison_trains_and_judges_on_pairs(work: Job, tmp_path: Path) -> None:
    table = gf.compare(
        task=work.task, **{name: str(path) for name, path in work.models.items()}, data=work.rows, test=work.held_out,
        samples_per_class=[4], seeds=1, methods=["naive", "gradfix", "control", "few-shot"], finetune_steps=4,
        processes=1, output=tmp_path / "table",
    )  # fmt: skip
    scores = {line.method: line.score.value for line in table.lines}
    assert scores["zero-shot"] == 0.5
    assert table.metric == "reward accuracy"


def test_beta_is_an_option_of_pairs(work: Job, tmp_path: Path) -> None:
    made = work.run(tmp_path / "out", alpha=0.5, steps=2, beta=0.5)
    assert made.record.recipe["beta"] == 0.5
