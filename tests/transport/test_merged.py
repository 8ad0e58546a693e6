"""Merging with samples: what is chosen, and a table that says what it does to every task."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import gradfix as gf
from gradfix.evaluation.evaluate import Evaluation
from gradfix.evaluation.intervals import Interval
from gradfix.transport.merged import BASE, MERGED, MergedTable
from tests import tiny
from tests.builders import gradfix, tuned_from

pytestmark = pytest.mark.slow


def written(path: Path, rows: Any) -> Path:
    path.write_text("".join(json.dumps(dict(row)) + "\n" for row in rows))
    return path


@pytest.fixture
def parts(tmp_path: Path) -> list[object]:
    """Two fine-tunes of a language model, as task vectors, and samples of both."""
    base = tiny.save_tiny_gpt2(tmp_path / "base", seed=0)
    arguments: list[object] = ["--target-base", base]
    for number, scale in enumerate((0.02, 0.05)):
        tuned = tuned_from(tmp_path / f"tuned{number}", base, "AutoModelForCausalLM", scale)
        gf.TaskVector.between(base, tuned).save(tmp_path / f"chat{number}.safetensors")
        rows = [
            {"prompt": f"user {w}", "completion": f"assistant {w} yes"} for w in tiny.WORDS[8 * number :][:8]
        ]
        arguments += ["--task-vector", tmp_path / f"chat{number}.safetensors"]
        arguments += ["--samples", written(tmp_path / f"s{number}.jsonl", rows)]
    return [*arguments, "--task", "causal-lm"]


def test_alpha_is_the_one_of_least_mean_loss_ratio(parts: list[object], tmp_path: Path) -> None:
    run = gradfix("merge", *parts, "--method", "sum", "--output", tmp_path / "out", "--json")
    assert run.exit_code == 0, run.stderr
    told = json.loads(run.stdout)
    table = told["table"]
    assert table["judged_on"] == "samples"
    assert set(table["scores"]) == {BASE, "chat0 alone", "chat1 alone", MERGED}
    assert f"α = {told['alpha']:g}, chosen on the samples" in run.stderr
    # By hand: the written model's losses beside those at other α.
    vectors = [gf.TaskVector.load(tmp_path / f"chat{number}.safetensors") for number in range(2)]

    def ratios(alpha: float) -> float:
        model = tmp_path / f"alpha{alpha}"
        gf.apply(gf.merge(vectors, method="sum"), tmp_path / "base", alpha=alpha, output=model)
        losses = [
            [
                gf.evaluate(model=place, task="causal-lm", data=tmp_path / f"s{number}.jsonl").loss
                for place in (model, tmp_path / "base")
            ]
            for number in range(2)
        ]
        return sum(here / there for here, there in losses) / 2

    best = ratios(told["alpha"])
    assert all(best <= ratios(alpha) + 1e-6 for alpha in (0.1, 0.5, 1.5) if alpha != told["alpha"])


def test_coefficients_of_each_are_in_the_weights_that_are_written(
    parts: list[object], tmp_path: Path
) -> None:
    run = gradfix(
        "merge", *parts, "--method", "sum", "--coefficients", "each", "--retain", tmp_path / "s0.jsonl",
        "--test", tmp_path / "s0.jsonl", "--test", tmp_path / "s1.jsonl", "--output", tmp_path / "out", "--json",
    )  # fmt: skip
    assert run.exit_code == 0, run.stderr
    told = json.loads(run.stdout)
    assert told["table"]["judged_on"] == "test"
    assert "retained" in told["table"]["scores"][MERGED]
    one, two = told["coefficients"]
    base = load_file(tmp_path / "base" / "model.safetensors")
    tuned = [load_file(tmp_path / f"tuned{number}" / "model.safetensors") for number in range(2)]
    for name, value in load_file(tmp_path / "out" / "model.safetensors").items():
        expected = base[name] + one * (tuned[0][name] - base[name]) + two * (tuned[1][name] - base[name])
        assert torch.allclose(value, expected, atol=1e-6), name


def test_a_merge_that_harms_says_so() -> None:
    def scored(score: float) -> Evaluation:
        return Evaluation(
            "t", "accuracy", 9, score, Interval(score, 0.1, 0.9, 9, "wilson"), 1.0, 0, 0.0, [], [], []
        )

    scores = {BASE: {"a": scored(0.8), "b": scored(0.5)}, MERGED: {"a": scored(0.4), "b": scored(0.6)}}
    gains = {"a": Interval(-0.4, -0.6, -0.1, 9, "x"), "b": Interval(0.1, -0.1, 0.3, 9, "x")}
    table = MergedTable((BASE, MERGED), ("a", "b"), scores, "test", gains)
    assert table.harmed == ["a"]
    (said,) = table.remarks()
    assert said.startswith("the merge harms a: −40.0 points against the new base")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--samples", "s"], "--samples: expected one for each of the 2 task vectors, found 1"),
        (["--task", "causal-lm"], "--task: only with --samples"),
        (
            ["--samples", "s", "--samples", "t"],
            "--task: expected one for each of the 2 task vectors, found 0",
        ),
        (
            ["--samples", "s", "--samples", "t", "--task", "x", "--coefficients", "each", "--alpha", "1"],
            "--coefficients each chooses α; leave out --alpha",
        ),
    ],
)
def test_options_that_do_not_go_together(more: list[str], message: str) -> None:
    both = ["--task-vector", "a", "--task-vector", "b", "--target-base", "c", "--output", "d"]
    refused = gradfix("merge", *both, *more)
    assert (refused.exit_code, message in refused.stderr) == (2, True), refused.stderr
