"""The whole job for a model that transformers does not know, beside a twin written by hand."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from gradfix.checkpoints import Checkpoint
from gradfix.errors import GradfixError
from gradfix.evaluation.evaluate import evaluate
from gradfix.evaluation.target_model import TargetModel
from gradfix.tasks import CustomTask, get_task
from gradfix.transport.pipeline import Transported, transport
from gradfix.vectors.placement import place
from gradfix.vectors.task_vector import TaskVector
from tests.builders import gradfix

CLASSES = ("down", "up", "flat")
ALPHA = 0.6


class Net(nn.Module):
    """Convolution, batch norm with running statistics, and a linear head."""

    def __init__(self, width: int = 6, tied: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, width, 3)
        self.norm = nn.BatchNorm2d(width)
        self.head = nn.Linear(width, len(CLASSES))
        self.register_buffer("scale", torch.ones(()), persistent=False)  # made anew, stored nowhere
        if tied:
            self.again = self.head

    def features(self, images: Tensor) -> Tensor:
        return self.norm(self.conv(images) * self.scale).relu().mean(dim=(2, 3))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))


def rows_of(n: int, seed: int) -> list[dict[str, Any]]:
    """Images of 6 × 6 that get brighter downwards, upwards, or not at all, as nested lists."""
    generator = torch.Generator().manual_seed(seed)
    slope = torch.linspace(-1, 1, 6)[:, None].expand(6, 6)
    return [
        {
            "pixels": (slope * (index % 3 - 1) + torch.randn(6, 6, generator=generator)).tolist(),
            "label": CLASSES[index % 3],
        }
        for index in range(n)
    ]


def encode(rows: Any) -> dict[str, Tensor]:
    return {
        "images": torch.tensor([row["pixels"] for row in rows])[:, None],
        "labels": torch.tensor([CLASSES.index(row["label"]) for row in rows]),
    }


def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return cross_entropy(model(batch["images"]), batch["labels"], reduction="none")


def predict(model: nn.Module, batch: dict[str, Tensor]) -> tuple[list[str], Tensor]:
    best = model(batch["images"]).argmax(dim=1)
    return [CLASSES[index] for index in best.tolist()], best == batch["labels"]


def net_task(build: Callable[[], nn.Module] = Net, **options: Any) -> CustomTask:
    given = {
        "encode_rows": encode,
        "loss_of": loss,
        "predict_of": predict,
        "class_of": lambda row: row["label"],
    }
    return CustomTask(**{**given, "build": build, **options})


def trained(seed: int, start: nn.Module | None = None, steps: int = 15) -> Net:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Net()
        if start is not None:
            model.load_state_dict(start.state_dict())
        optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
        for step in range(steps):
            optimizer.zero_grad()
            loss(model.train(), encode(rows_of(24, seed=100 * seed + step))).mean().backward()
            optimizer.step()
    return model.eval()


class Blocks(nn.Module):
    """Residual blocks in a list, as transformers and timm's models have them."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(36, 8)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)) for _ in range(2)
        )
        self.head = nn.Linear(8, len(CLASSES))

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.embed(images.flatten(1))
        for block in self.blocks:
            hidden = hidden + block(hidden)
        return self.head(hidden)


def test_bare_files_of_models_in_blocks_are_aligned(tmp_path: Path) -> None:
    for name, seed in (("old", 0), ("mine", 0), ("new", 1)):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = Blocks()
            if name == "mine":
                with torch.no_grad():
                    for parameter in model.blocks.parameters():
                        parameter.add_(torch.randn_like(parameter), alpha=0.05)
        save_file(model.state_dict(), tmp_path / f"{name}.safetensors")
    result = transport(
        task=net_task(Blocks),
        source_base=str(tmp_path / "old.safetensors"),
        source_tuned=str(tmp_path / "mine.safetensors"),
        target_base=str(tmp_path / "new.safetensors"),
        support=rows_of(12, seed=7),
        align="regression",
        alpha="1",
        mask="none",
        output=tmp_path / "out",
    )
    fitted = result.record.alignment.tensors
    assert set(fitted) == {"blocks.0.2.weight", "blocks.1.2.weight"}
    written, before = (load_file(tmp_path / name) for name in ("out/model.safetensors", "new.safetensors"))
    changed = {name for name in written if not torch.equal(written[name], before[name])}
    assert changed <= {name.replace("weight", end) for name in fitted for end in ("weight", "bias")}
    assert changed


@dataclass
class Files:
    """Three bare files, and the models that they were saved from."""

    folder: Path
    old: Net
    mine: Net
    new: Net
    task: CustomTask

    def run(self, name: str = "out", task: CustomTask | None = None, **options: Any) -> Transported:
        given = {
            "source_base": str(self.folder / "old.safetensors"),
            "source_tuned": str(self.folder / "mine.safetensors"),
            "target_base": str(self.folder / "new.safetensors"),
            "output": self.folder / name,
            "support": rows_of(12, seed=7),
            "test": rows_of(30, seed=8),
        }
        return transport(task=task or self.task, **{**given, **options})

    def save(self, name: str, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
        state = change(dict(load_file(self.folder / f"{name}.safetensors")))
        save_file(
            {key: value.contiguous() for key, value in state.items()}, self.folder / f"{name}.safetensors"
        )


@pytest.fixture
def files(tmp_path: Path) -> Files:
    old = trained(1)
    mine, new = trained(3, start=old), trained(2)
    for name, model in (("old", old), ("mine", mine), ("new", new)):
        save_file(model.state_dict(), tmp_path / f"{name}.safetensors")
    return Files(tmp_path, old, mine, new, net_task())


def without(prefix: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda state: {name: value for name, value in state.items() if not name.startswith(prefix)}


def by_hand(model: nn.Module, old: Any, mine: Any, rows: Any, alpha: float = ALPHA) -> dict[str, Tensor]:
    """θ_B + α(m ⊙ τ): one backward pass a sample, at the model given, which is θ_B in eval mode."""
    parameters = {name: value for name, value in model.named_parameters() if name in old}
    votes = {name: torch.zeros_like(value) for name, value in parameters.items()}
    for row in rows:
        gradients = torch.autograd.grad(loss(model, encode([row])).sum(), list(parameters.values()))
        for name, gradient in zip(parameters, gradients, strict=True):
            votes[name] += (-gradient).sign()
    moved = {}
    for name, value in parameters.items():
        tau = mine[name] - old[name]
        kept = (tau.sign() == votes[name].sign()) & (tau != 0)
        moved[name] = (tau * kept) * alpha + value.detach()
    return moved


def test_bare_files_are_transported_as_by_hand(files: Files) -> None:
    support, test = rows_of(12, seed=7), rows_of(30, seed=8)
    result = files.run(alpha=str(ALPHA))
    written, before, mine = (
        load_file(files.folder / name)
        for name in ("out/model.safetensors", "new.safetensors", "mine.safetensors")
    )
    expected = by_hand(files.new, load_file(files.folder / "old.safetensors"), mine, support)
    assert written.keys() == before.keys()
    for name, value in written.items():
        assert torch.equal(value, expected.get(name, before[name])), name
    # Running statistics are θ_B's, though the fine-tune moved them.
    buffers = {"norm.running_mean", "norm.running_var", "norm.num_batches_tracked"}
    assert written.keys() - expected.keys() == buffers
    assert not any(torch.equal(mine[name], before[name]) for name in buffers - {"norm.num_batches_tracked"})
    assert set(result.record.silent_parameters) == buffers - {"norm.num_batches_tracked"}
    # What was measured is what was written, on the statistics of θ_B.
    twin = Net()
    twin.load_state_dict(written)
    judgement = result.judgement
    assert judgement is not None
    for measured, model in ((judgement.base, files.new), (judgement.transported, twin.eval())):
        with torch.no_grad():
            assert measured.losses == pytest.approx(loss(model, encode(test)).tolist(), rel=1e-4)
            assert measured.predictions == predict(model, encode(test))[0]


@pytest.mark.slow
def test_the_output_tells_all_and_promises_no_rerun(files: Files) -> None:
    result = files.run(batch_size=5)
    out = files.folder / "out"
    names = {path.name for path in out.iterdir()}
    assert names >= {"model.safetensors", "gradfix.json", "recipe.yaml", "report.html", "README.md"}
    assert "config.json" not in names
    record = json.loads((out / "gradfix.json").read_text())
    assert record["verdict"] == result.verdict
    assert result.alpha.chosen_on == "cross-fit"
    # The bases are apart, so what the fine-tune does is carried over as well.
    assert {"nothing", "naive", "gradfix", "re-voted", "aligned", "answers"} <= {
        candidate["name"] for candidate in record["method"]["candidates"]
    }
    assert record["judgement"]["control"]["n"] == 30
    assert record["certificate"]["slope"] != 0
    assert len({sample["sha256"] for sample in record["support"]}) == 12
    text = (out / "recipe.yaml").read_text()
    assert text.startswith("# Not the whole recipe: task, support came from Python.")
    recipe = yaml.safe_load(text)
    assert "gradfix run" not in (out / "README.md").read_text()
    assert "library_name" not in (out / "README.md").read_text()
    assert (
        "task, support came from Python, so that script makes it again" in (out / "report.html").read_text()
    )
    # Its recipe has the options but not the functions, so running it is refused in so many words.
    data, again = files.folder / "rows.jsonl", files.folder / "again.yaml"
    data.write_text("\n".join(map(json.dumps, rows_of(6, seed=1))))
    again.write_text(yaml.safe_dump({**recipe, "support": str(data), "output": str(files.folder / "again")}))
    rerun = gradfix("run", again)
    assert rerun.exit_code == 1
    assert "unknown task 'custom'" in rerun.stderr
    assert "or an object in Python, as gf.transport(task=…)" in rerun.stderr
    assert not (files.folder / "again").exists()


def test_a_recipe_cannot_name_functions() -> None:
    with pytest.raises(GradfixError, match=r"unknown task .custom..*an object in Python"):
        get_task("custom")
    with pytest.raises(GradfixError, match="'image-classification' is a task that gradfix brings"):
        net_task(name="image-classification")


def test_a_head_of_the_tuned_file_comes_along(files: Files) -> None:
    for name in ("old", "new"):
        files.save(name, without("head."))
    files.run(alpha=str(ALPHA))
    written, mine = (
        load_file(files.folder / "out/model.safetensors"),
        load_file(files.folder / "mine.safetensors"),
    )
    here = Net()
    here.load_state_dict({**files.new.state_dict(), **{n: mine[n] for n in ("head.weight", "head.bias")}})
    expected = by_hand(here.eval(), load_file(files.folder / "old.safetensors"), mine, rows_of(12, seed=7))
    assert expected.keys() == {"conv.weight", "conv.bias", "norm.weight", "norm.bias"}
    assert all(torch.equal(written[name], value) for name, value in expected.items())
    assert all(torch.equal(written[name], mine[name]) for name in ("head.weight", "head.bias"))
    Net().load_state_dict(written)


def test_statistics_of_a_head_are_the_tuned_files(files: Files) -> None:
    def topped() -> Net:
        model = Net()
        model.head = nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3))
        return model

    for name in ("old", "new"):
        files.save(name, without("head."))
    top = {f"head.{name}": value for name, value in topped().head.state_dict().items()}
    top["head.1.running_mean"] = torch.tensor([1.0, 2.0, 3.0])
    files.save("mine", lambda state: {**without("head.")(state), **top})
    task = net_task(topped)
    model = TargetModel.load(*loading(files, task))
    assert model.model.head[1].running_mean.tolist() == [1.0, 2.0, 3.0]
    files.run(task=task, alpha="1")
    written = load_file(files.folder / "out/model.safetensors")
    assert written["head.1.running_mean"].tolist() == [1.0, 2.0, 3.0]
    topped().load_state_dict(written)


def test_samples_are_drawn_by_class_and_trained_on(files: Files) -> None:
    data = files.folder / "data.jsonl"
    data.write_text("\n".join(map(json.dumps, rows_of(30, seed=5))))
    seen = []

    def features(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        seen.append(model.training)
        return model.features(batch["images"])

    drawn = {"support": None, "data": str(data), "samples_per_class": 2, "alpha": "0.3", "test": None}
    remembered = files.run("memory", **{**drawn, "data": rows_of(30, seed=5)}).record.support
    assert sorted(int(sample.row.split()[-1]) % 3 for sample in remembered) == [0, 0, 1, 1, 2, 2]
    with pytest.raises(GradfixError, match="class 0 has 10 samples, fewer than the 11 a class asked for"):
        files.run("other", **{**drawn, "samples_per_class": 11})
    result = files.run(task=net_task(features_of=features), sampling="herding", finetune_steps=2, **drawn)
    numbers = [int(re.findall(r"line (\d+) of", sample.row)[0]) - 1 for sample in result.record.support]
    assert sorted(number % 3 for number in numbers) == [0, 0, 1, 1, 2, 2]
    assert set(seen) == {False}
    written, before = (
        load_file(files.folder / name) for name in ("out/model.safetensors", "new.safetensors")
    )
    changed = {name for name in written if not torch.equal(written[name], before[name])}
    assert changed == {name for name, _ in files.new.named_parameters()}  # no buffer among them
    with pytest.raises(GradfixError, match="custom: choosing samples by features needs features_of="):
        files.run("other", sampling="herding", **drawn)


def test_voters_and_frozen_parameters(files: Files) -> None:
    def frozen() -> Net:
        model = Net()
        model.conv.requires_grad_(False)
        return model

    def changed(task: CustomTask, name: str) -> set[str]:
        files.run(name, task=task, alpha="1", mask="none", test=None)
        written, before = load_file(files.folder / name / "model.safetensors"), files.new.state_dict()
        return {key for key in written if not torch.equal(written[key], before[key])}

    assert changed(net_task(frozen), "a") == {"norm.weight", "norm.bias", "head.weight", "head.bias"}
    assert changed(net_task(voters_of=lambda model: ["conv.weight"]), "b") == {"conv.weight"}
    with pytest.raises(
        GradfixError, match=r"voters_of names what is no parameter: conv\.weights; found conv"
    ):
        files.run("c", task=net_task(voters_of=lambda model: ["conv.weights"]))
    with pytest.raises(GradfixError, match="no parameter is to vote"):
        files.run("c", task=net_task(lambda: Net().requires_grad_(False)))


def test_a_module_that_its_caller_keeps_stays_as_it_is(files: Files) -> None:
    kept = trained(4).train()
    kept.head.eval()
    kept.conv.requires_grad_(False)
    before = {name: value.clone() for name, value in kept.state_dict().items()}
    modes = [module.training for module in kept.modules()]
    gradients = [p.grad.clone() for p in kept.parameters()]  # which training left
    with torch.random.fork_rng(devices=[]):
        generator = torch.manual_seed(9).get_state()
        kept_model, fresh = (
            TargetModel.load(*loading(files, net_task(build, voters_of=lambda m: dict(m.named_parameters()))))
            for build in (lambda: kept, Net)
        )
        assert torch.equal(torch.get_rng_state(), generator)
    rows = rows_of(6, seed=7)
    assert kept_model.slope(kept_model.vector, rows) == fresh.slope(fresh.vector, rows)
    files.run(task=net_task(lambda: kept), alpha="1", finetune_steps=1)
    after = kept.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert [module.training for module in kept.modules()] == modes
    assert [p.requires_grad for p in kept.parameters()] == [False, False, True, True, True, True]
    assert all(torch.equal(p.grad, g) for p, g in zip(kept.parameters(), gradients, strict=True))


def loading(files: Files, task: CustomTask) -> tuple[CustomTask, Checkpoint, Any]:
    old, mine, new = (
        Checkpoint.open(files.folder / f"{name}.safetensors") for name in ("old", "mine", "new")
    )
    return task, new, place(TaskVector.between(old, mine), new)


def test_statistics_come_back_and_are_rounded_as_they_are_written(files: Files) -> None:
    model = TargetModel.load(*loading(files, files.task), dtype=torch.bfloat16)
    stored = files.new.norm.running_var
    assert torch.equal(model.model.norm.running_var, stored.bfloat16().float())
    assert int(model.model.norm.num_batches_tracked) == int(files.new.norm.num_batches_tracked) == 15
    assert float(model.model.scale) == 1.0  # stored nowhere, so as it was built
    model.model.norm.running_mean.zero_()
    model.restore()
    assert torch.equal(model.model.norm.running_mean, files.new.norm.running_mean.bfloat16().float())


def test_what_is_stored_nowhere_is_refused_by_name(files: Files) -> None:
    whole = files.new.state_dict()
    for missing in ("conv.bias", "norm.running_var", "head.weight"):
        files.save("new", lambda state, missing=missing: without(missing)(dict(whole)))
        # A weight that only the two sources have would be no addition: it is τ's, with no place in the target.
        with pytest.raises(
            GradfixError, match=rf"new\.safetensors: has no weights for {re.escape(missing)}, and "
        ):
            files.run()
    files.save("new", lambda state: {f"wrapped.{name}": value for name, value in whole.items()})
    with pytest.raises(GradfixError, match=r"conv\.bias, conv\.weight.* with their names, such as wrapped\."):
        files.run()
    files.save("new", lambda state: without("norm.num_batches")(dict(whole)))  # as files before torch 0.4.1
    files.run(alpha="0")
    Net().load_state_dict(load_file(files.folder / "out/model.safetensors"))


def test_another_architecture_is_refused_by_name(files: Files) -> None:
    with pytest.raises(
        GradfixError, match=r"other shapes than are stored: conv\.weight \[4, 1, 3, 3\] against \[6, "
    ):
        files.run(task=net_task(lambda: Net(width=4)))
    wide = {"norm.running_mean": torch.zeros(1)}  # which copying would stretch in silence
    files.save("new", lambda state: {**state, **wide})
    with pytest.raises(
        GradfixError, match=r"norm\.running_mean \[6\] against \[1\]|shapes differ.*running_mean"
    ):
        files.run()


def test_tied_weights_are_found_under_either_name_and_refused_under_both(files: Files) -> None:
    def renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name.replace("head.", "again."): value for name, value in state.items()}

    task = net_task(lambda: Net(tied=True))
    plain = [dict(model.state_dict()) for model in (files.old, files.mine, files.new)]
    for name in ("old", "mine", "new"):
        files.save(name, renamed)
    files.run(task=task, alpha=str(ALPHA))
    written = load_file(files.folder / "out/model.safetensors")
    expected = by_hand(files.new, plain[0], plain[1], rows_of(12, seed=7))
    assert torch.equal(written["again.weight"], expected["head.weight"])
    for name, state in zip(("old", "mine", "new"), plain, strict=True):
        files.save(name, lambda own, state=state: {**own, "head.weight": state["head.weight"].clone()})
    with pytest.raises(
        GradfixError, match=r"head\.weight, again\.weight are one tied weight .* store it once"
    ):
        files.run("other", task=task)


def test_a_reduced_loss_is_refused_wherever_it_is_used(files: Files) -> None:
    scalar = net_task(loss_of=lambda model, batch: loss(model, batch).mean())
    message = (
        r"custom: loss_of returned a scalar as losses for a batch of \d+ samples; expected a tensor \[\d+\]"
    )
    for options in ({}, {"alpha": "1"}, {"alpha": "1", "mask": "none"}):
        with pytest.raises(GradfixError, match=message):
            files.run(task=scalar, **options)
    model = TargetModel.load(*loading(files, scalar))
    for use in (model.votes, model.evaluate, lambda rows: model.slope(model.vector, rows)):
        with pytest.raises(GradfixError, match=message):
            use(rows_of(4, seed=1))
    assert not (files.folder / "out").exists()
    for n in (1, 4):
        with pytest.raises(GradfixError, match=message):
            evaluate(files.new, scalar, rows_of(n, seed=1))
    column = net_task(loss_of=lambda model, batch: loss(model, batch)[:, None])
    with pytest.raises(GradfixError, match=r"returned shape \[4, 1\] as losses for a batch of 4"):
        evaluate(files.new, column, rows_of(4, seed=1))


@pytest.mark.parametrize(
    ("predicted", "message"),
    [
        (lambda: (["up"], torch.ones(4)), "returned 1 predictions for a batch of 4 samples"),
        (lambda: (["up"] * 4, torch.ones(())), r"returned a scalar as scores .* expected a tensor \[4\]"),
        (lambda: (["up"] * 4, 1.0), "returned a float as scores"),
        (
            lambda: (["up"] * 4, torch.full((4,), 100.0)),
            r"scores from 100 to 100; expected values in \[0, 1\]",
        ),
        (lambda: (["up"] * 4, torch.full((4,), torch.nan)), "scores from nan to nan"),
    ],
)
def test_predictions_and_scores_are_one_a_sample(predicted: Any, message: str) -> None:
    task = net_task(predict_of=lambda model, batch: predicted())
    with pytest.raises(GradfixError, match=message):
        evaluate(Net(), task, rows_of(4, seed=1))


def test_predictions_may_be_a_tensor() -> None:
    task = net_task(predict_of=lambda model, batch: (batch["labels"], torch.ones(len(batch["labels"]))))
    found = evaluate(Net(), task, rows_of(4, seed=1))
    assert json.loads(json.dumps(found.predictions)) == [0, 1, 2, 0]


class Telling(nn.Module):
    """A model that returns what it is told to, whatever it reads."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output

    def forward(self, images: Tensor) -> Any:
        return self.output


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize(
    "wrap", [lambda x: x, lambda x: {"hidden": x.repeat(1, 2), "scores": x}, lambda x: (x,)]
)
def test_what_the_losses_are_the_cross_entropy_of_is_found(wrap: Any, half: bool) -> None:
    """A task of functions has no classes, but its model may return their scores, in whatever order."""
    rows = rows_of(12, seed=3)
    logits = torch.randn(12, 3, generator=torch.Generator().manual_seed(0)) * 3
    logits = logits.bfloat16() if half else logits
    labels = encode(rows)["labels"]
    order = torch.tensor([2, 0, 1])  # the model's own numbers for the classes
    losses = cross_entropy(logits.float(), order[labels], reduction="none")
    right = logits.argmax(dim=1) == order[labels]

    def found(losses: Tensor, scores: Tensor, output: Any) -> Tensor | None:
        task = net_task(
            loss_of=lambda model, batch: (model(batch["images"]), losses)[1],
            predict_of=lambda model, batch: (["up"] * 12, scores),
        )
        return evaluate(Telling(output), task, rows, logits=True).logits

    kept = found(losses, right, wrap(logits))
    assert kept is not None
    assert torch.equal(kept, logits.float())
    # Neither what a loss is only near to, nor one that names another class than the score, nor no cross-entropy.
    assert found(losses * 1.1, right, wrap(logits)) is None
    assert found(losses, ~right, wrap(logits)) is None
    assert found(losses, right * 0.5, wrap(logits)) is None
    assert found((logits - 1.0).square().mean(dim=1).float(), right, wrap(logits)) is None
    assert found(losses, right, wrap(logits)[:6] if isinstance(wrap(logits), Tensor) else None) is None


def test_scores_of_classes_that_some_batches_lack_are_none() -> None:
    rows = rows_of(40, seed=3)
    task = net_task(
        loss_of=lambda model, batch: loss(model, batch) * (1.5 if len(batch["labels"]) < 32 else 1)
    )
    assert evaluate(Net(), task, rows, logits=True).logits is None
    assert evaluate(Net(), net_task(), rows, logits=True).logits is not None
    assert evaluate(Net(), net_task(), rows).logits is None


def test_rows_that_cannot_be_used_are_named(files: Files) -> None:
    rows = rows_of(6, seed=1)
    for wrong, message in (
        ([*rows, ("pixels", "up")], "row 6: expected a mapping of column names to values, found tuple"),
        (
            [{**rows[0], "extra": object()}, *rows],
            "row 0: column 'extra' holds a object, which can't be hashed",
        ),
        (
            [*rows, {**rows[0], "label": 0.5}],
            "row 6: class_of returned a float; expected a class's name or number",
        ),
        ([], "the support set is empty"),
    ):
        with pytest.raises(GradfixError, match=message):
            files.run(support=wrong)
    with pytest.raises(
        GradfixError, match="row 0: has no column 'id', which columns= names; found 'pixels', 'label'"
    ):
        files.run(task=net_task(columns=["id"]))
    with pytest.raises(GradfixError, match="custom: a transport needs build="):
        files.run(task=CustomTask(encode, loss, predict))
    with pytest.raises(GradfixError, match="custom: build returned dict; expected a module"):
        files.run(task=net_task(dict))


def test_classes_are_counted_as_they_occur() -> None:
    task = net_task(class_of=lambda row: row["label"])
    labels = ["b", "a", 3, "b", torch.tensor(3), "3"]
    assert task.classes([{"label": label} for label in labels]) == [0, 1, 2, 0, 2, 3]
    assert net_task(class_of=None).classes([{}] * 3) == [0, 0, 0]


def test_columns_that_count_are_hashed(files: Files) -> None:
    support = [{**row, "note": index} for index, row in enumerate(rows_of(6, seed=1))]
    whole = files.run("a", support=support, alpha="1", test=None).record.support
    other = [{**row, "note": -1} for row in support]
    part, same = (
        files.run(
            name, task=net_task(columns=["pixels", "label"]), support=rows, alpha="1", test=None
        ).record.support
        for name, rows in (("b", support), ("c", other))
    )
    assert [row.sha256 for row in part] == [row.sha256 for row in same]
    assert not {row.sha256 for row in part} & {row.sha256 for row in whole}


def test_a_job_forgets_the_columns_of_the_one_before() -> None:
    task = net_task(class_of=None)
    task.check([{"image": torch.zeros(4, 4, dtype=torch.uint8).numpy()}], support=True)
    task.check([{"image": torch.zeros(4, 4, dtype=torch.uint8).numpy(), "id": 1}])
    assert task.columns == {"image": "image", "id": "id"}
    task.check([{"image": [[0.5]]}], support=True)
    assert task.columns == {"image values": "image"}


def test_a_column_of_numbers_named_image_is_no_picture(files: Files) -> None:
    def renamed(rows: Any) -> list[dict[str, Any]]:
        return [{"image": row["pixels"], "label": row["label"]} for row in rows]

    task = net_task(
        encode_rows=lambda rows: encode([{"pixels": row["image"], "label": row["label"]} for row in rows])
    )
    # θ_B's bias makes one class of everything, so that predictions change and are shown.
    files.save("new", lambda state: {**state, "head.bias": torch.tensor([50.0, 0.0, 0.0])})
    shift = {"head.bias": torch.tensor([-100.0, 0.0, 0.0])}
    files.save("mine", lambda state: {**state, "head.bias": state["head.bias"] + shift["head.bias"]})
    result = files.run(
        task=task,
        support=renamed(rows_of(6, seed=1)),
        test=renamed(rows_of(9, seed=2)),
        alpha="1",
        mask="none",
    )
    shown = result.record.examples.shown
    assert shown
    assert {"image values"} == shown[0].input.keys()
    assert shown[0].label in CLASSES


@pytest.mark.slow
def test_the_page_on_custom_models_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = Path(__file__).parents[2] / "docs" / "custom-models.md"
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    space: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, str(page), "exec"), space)
    assert isinstance(space["result"], Transported)
    space["build"]().load_state_dict(load_file(tmp_path / "mine-on-new" / "model.safetensors"))
