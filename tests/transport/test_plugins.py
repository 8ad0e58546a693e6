"""Functions of the user's own in every command that takes them, beside what gradfix brings of the same."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import gradfix as gf
from gradfix.alignment.rotation.maps import procrustes
from gradfix.errors import GradfixError
from gradfix.tasks import TextClassification
from gradfix.transport.comparison import ZERO_SHOT
from tests.builders import Job, gradfix, job

pytestmark = pytest.mark.slow
HERE = __name__


def agreeing(tau: Tensor, signal: Tensor, block: Any, *, share: float = 1.0) -> Tensor:
    """As gradfix's agreement does, times a share; it writes into what it is given."""
    keep = tau * signal > 0
    return tau.mul_(keep).mul_(share)


def everything(tau: Tensor, signal: Tensor, block: Any) -> Tensor:
    return tau


gf.register("mask", needs="nothing", name="keep-all")(everything)
gf.register("mask", needs="magnitudes", name="by-size")(lambda tau, signal, block: tau)


def zeros_and_ones(tau: Tensor, signal: Tensor, block: Any) -> Tensor:
    return (tau * signal) > 0


def averaged(blocks: list[Tensor], *, power: int = 1) -> Tensor:
    return (sum(blocks[1:], blocks[0]) / len(blocks)) ** power


def rotated(source: Tensor, tuned: Tensor, target: Tensor) -> Tensor:
    return (tuned - source) @ procrustes(source, target)


class Smoothed(TextClassification):
    """Text classification whose loss is smoothed over the labels."""

    name = "smoothed"

    def __init__(self, *columns: str, smoothing: float = 0.0, **options: Any) -> None:
        super().__init__(*columns, **options)
        self.smoothing = smoothing

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        logits = self.logits(model, batch)
        labels = batch["labels"].to(logits.device)
        return cross_entropy(logits, labels, reduction="none", label_smoothing=self.smoothing)


def build() -> nn.Module:
    return nn.Linear(3, 2)


def linear_task(*, wide: bool = False) -> gf.CustomTask:
    def encode(rows: Any) -> Any:
        return {
            "x": torch.tensor([row["x"] for row in rows]),
            "label": torch.tensor([row["label"] for row in rows]),
        }

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return cross_entropy(model(batch["x"]), batch["label"], reduction="none")

    def predict(model: nn.Module, batch: Any) -> Any:
        best = model(batch["x"]).argmax(1)
        return best, best == batch["label"]

    return gf.CustomTask(encode, loss, predict, build=build, class_of=lambda row: row["label"])


def no_task() -> str:
    return "text-classification"


@pytest.fixture
def work(tmp_path: Path) -> Job:
    return job("text-classification", tmp_path)


def weights(output: Path) -> dict[str, Tensor]:
    return load_file(output / "model.safetensors")


def same(one: Path, other: Path) -> bool:
    here, there = weights(one), weights(other)
    return here.keys() == there.keys() and all(torch.equal(here[name], there[name]) for name in here)


def test_a_mask_of_ones_own_masks_like_the_one_it_copies(work: Job, tmp_path: Path) -> None:
    work.run(tmp_path / "brought", alpha=1.0)
    work.run(tmp_path / "path", alpha=1.0, mask=f"{HERE}:agreeing")
    work.run(tmp_path / "half", alpha=2.0, mask=f"{HERE}:agreeing,share=0.5")
    result = work.run(tmp_path / "function", alpha=1.0, mask=agreeing)
    assert result.record.recipe["mask"] == f"{HERE}:agreeing"
    assert same(tmp_path / "brought", tmp_path / "path")
    assert same(tmp_path / "brought", tmp_path / "half")
    assert same(tmp_path / "brought", tmp_path / "function")
    # A saved recipe asks for the function's code to be trusted, each time.
    again = ("run", tmp_path / "half" / "recipe.yaml", "--output", tmp_path / "again")
    refused = gradfix(*again)
    assert refused.exit_code == 1
    assert "--trust-plugins" in refused.stderr


def test_a_mask_that_asks_nobody_counts_no_votes(work: Job, tmp_path: Path) -> None:
    work.run(tmp_path / "naive", alpha=1.0, mask="none")
    result = work.run(tmp_path / "own", alpha=1.0, mask="keep-all")
    assert result.record.votes is None
    assert same(tmp_path / "naive", tmp_path / "own")
    with pytest.raises(GradfixError, match="vote: mask keep-all asks for no votes"):
        work.run(tmp_path / "idle", alpha=1.0, mask="keep-all", vote="mean")


@pytest.mark.parametrize(
    ("mask", "told"),
    [
        (
            f"{HERE}:zeros_and_ones",
            r"zeros_and_ones: returned a tensor \[1\] of bool; expected .*: tau \* mask",
        ),
        ("by-size", "by-size compares sizes with another task vector, which gf.mask takes in Python"),
        (
            "argeement",
            "mask: expected one of agreement, .*, by-size, keep-all, or module:function, found 'argeement'",
        ),
        (f"{HERE}:agreeing,share=most", "parameter share: input should be a valid number"),
    ],
)
def test_a_mask_that_can_not_be_used_is_refused(work: Job, tmp_path: Path, mask: str, told: str) -> None:
    with pytest.raises(GradfixError, match=told):
        work.run(tmp_path / "out", alpha=1.0, mask=mask)
    assert not (tmp_path / "out").exists()


def test_a_comparison_shows_masks_of_ones_own_beside_the_others(work: Job) -> None:
    own = f"{HERE}:agreeing,share=1"
    table = gf.compare(
        **work.models, task=work.task, data=work.held_out, test=work.rows, samples_per_class=(2,), seeds=1,
        methods=("gradfix", own, "keep-all", "naive"),
    )  # fmt: skip
    found = {line.method: line.outcomes[0] for line in table.lines}
    assert list(found) == [ZERO_SHOT, "naive", "gradfix", own, "keep-all"]
    for mine, brought in ((own, "gradfix"), ("keep-all", "naive")):
        assert (found[mine].score, found[mine].loss) == (found[brought].score, found[brought].loss)


def test_a_merge_method_of_ones_own(work: Job, tmp_path: Path) -> None:
    files = []
    for number, scale in enumerate((1.0, -0.5)):
        vector = gf.TaskVector.between(work.models["source_base"], work.models["source_tuned"]) * scale
        vector.save(tmp_path / f"tau{number}.safetensors")
        files += ["--task-vector", tmp_path / f"tau{number}.safetensors"]
    for name, method in (("brought", "mean"), ("own", f"{HERE}:averaged,power=1")):
        run = gradfix(
            "merge",
            *files,
            "--target-base",
            work.models["source_base"],
            "--method",
            method,
            "--output",
            tmp_path / name,
        )
        assert run.exit_code == 0, run.stderr
    here, there = weights(tmp_path / "brought"), weights(tmp_path / "own")
    assert all(torch.allclose(here[name], there[name], atol=1e-7) for name in here)
    wrong = gradfix("merge", *files, "--method", f"{HERE}:averaged,power=a", "--output", tmp_path / "wrong")
    assert (wrong.exit_code, "parameter power" in wrong.stderr) == (2, True), wrong.stderr


def test_an_alignment_of_ones_own_fits_what_it_says(work: Job, tmp_path: Path) -> None:
    work.run(tmp_path / "brought", align="regression", mask="none", alpha=1.0)
    result = work.run(tmp_path / "own", align=rotated, mask="none", alpha=1.0)
    assert same(tmp_path / "brought", tmp_path / "own")
    assert result.record.alignment is not None
    assert result.record.alignment.method == f"{HERE}:rotated"
    with pytest.raises(GradfixError, match=r"returned a tensor \[1, 2\]; expected finite numbers"):
        work.run(
            tmp_path / "no", align=lambda source, tuned, target: torch.zeros(1, 2), mask="none", alpha=1.0
        )


def test_a_task_of_ones_own_by_name(work: Job, tmp_path: Path) -> None:
    work.run(tmp_path / "brought", alpha=1.0)
    work.run(tmp_path / "same", alpha=1.0, task=f"{HERE}:Smoothed")
    work.run(tmp_path / "smoothed", alpha=1.0, task=f"{HERE}:Smoothed,smoothing=0.9")
    assert same(tmp_path / "brought", tmp_path / "same")
    assert not same(tmp_path / "brought", tmp_path / "smoothed")
    with pytest.raises(GradfixError, match="no_task: made a str; expected a task"):
        work.run(tmp_path / "no", task=f"{HERE}:no_task")


def test_a_task_made_of_functions_from_the_command_line(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(2, 3, generator=generator), torch.randn(2, generator=generator)
    for name, scale in (("old", 1.0), ("tuned", 1.2), ("new", 0.9)):
        save_file({"weight": weight * scale, "bias": bias * scale}, tmp_path / f"{name}.safetensors")
    rows = [{"x": torch.randn(3, generator=generator).tolist(), "label": number % 2} for number in range(12)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    models = [
        f"--{kind}={tmp_path / name}.safetensors"
        for kind, name in (("source-base", "old"), ("source-tuned", "tuned"), ("target-base", "new"))
    ]
    run = gradfix(
        "transport", *models, "--task", f"{HERE}:linear_task,wide=no", "--support", tmp_path / "rows.jsonl",
        "--method", "gradfix", "--output", tmp_path / "out",
    )  # fmt: skip
    assert run.exit_code == 0, run.stderr
    again = gradfix(
        "run", tmp_path / "out" / "recipe.yaml", "--trust-plugins", "--output", tmp_path / "again"
    )
    assert again.exit_code == 0, again.stderr
    assert same(tmp_path / "out", tmp_path / "again")
