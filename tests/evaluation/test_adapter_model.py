"""In adapter space the coordinates are those of B: votes are exact, masks keep the first-order guarantee."""

from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import nn

from gradfix.checkpoints import Checkpoint
from gradfix.checkpoints.expressions import Given
from gradfix.errors import GradfixError
from gradfix.evaluation.adapter_model import AdapterModel, coordinates_of
from gradfix.evaluation.binding import bind
from gradfix.evaluation.finetuning import finetune
from gradfix.tasks import get_task
from gradfix.vectors.masks import mask
from gradfix.vectors.placement import place
from gradfix.vectors.task_vector import Granularity, TaskVector
from tests.adapters import QUIET, adapter_job
from tests.builders import Job, loaded

pytestmark = [*QUIET]

GRANULARITIES = get_args(Granularity)


def opened(
    work: Job, granularity: Granularity = "coordinate", kind: type[AdapterModel] = AdapterModel
) -> AdapterModel:
    target = Checkpoint.open(work.models["target_base"])
    tau = TaskVector.between(work.models["source_base"], work.models["source_tuned"])
    task = get_task(work.task)
    bind(task, target, tau, work.rows)
    placement = place(tau, target)
    assert placement.adapter is not None
    placement = replace(placement, adapter=replace(placement.adapter, granularity=granularity))
    return kind.load(task, target, placement)


@pytest.fixture(scope="module", params=["bert", "clip", "gpt2"])
def work(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Job:
    return adapter_job(request.param, tmp_path_factory.mktemp(request.param))


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_the_whole_vector_moves_the_model_as_the_dense_one_does(work: Job, granularity: Granularity) -> None:
    thin, dense = opened(work, granularity), loaded(work)
    rows = list(work.held_out)[:6]
    before = thin.evaluate(rows).losses
    torch.testing.assert_close(torch.tensor(before), torch.tensor(dense.evaluate(rows).losses))
    for model in (thin, dense):
        model.move(model.vector, 0.7)
    moved = thin.evaluate(rows).losses
    assert moved != before
    # what no gradient of the task reaches, dense leaves alone, too
    torch.testing.assert_close(
        torch.tensor(moved), torch.tensor(dense.evaluate(rows).losses), rtol=1e-4, atol=1e-5
    )
    thin.restore()
    assert thin.evaluate(rows).losses == before


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_votes_are_the_signs_of_each_samples_gradient_times_a(work: Job, granularity: Granularity) -> None:
    thin, dense = opened(work, granularity), loaded(work)
    rows = list(work.rows)[:3]
    votes = thin.votes(rows)
    named = dict(dense.model.named_parameters())
    homes = {theirs: name for name, theirs in dense.names.items()}
    for path, layer in thin.layers.items():
        weight = thin._stored_as[f"{path}.lora_B"].memory
        theirs = next(name for name in homes if coordinates_of(name, granularity) == weight)
        expected = torch.zeros_like(layer.parameter)
        for row in rows:
            (batch,) = dense.encode([row]).batches
            (gradient,) = torch.autograd.grad(
                dense.task.loss(dense.model, batch).sum(), [named[homes[theirs]]]
            )
            flat = gradient.T if layer.shape.kind == "transposed" else gradient.flatten(1)
            exact = flat @ layer.down.T
            if granularity != "coordinate":  # the derivative along what the factor scales
                exact = (exact * layer._up).sum(dim=1 if granularity == "row" else 0)
            clear = exact.abs() > 1e-6 * exact.abs().max()
            expected += torch.where(clear, -exact.sign(), torch.zeros(()))
        differing = (votes.read(weight).float() != expected).float().mean()
        assert differing < 0.01, (theirs, differing)


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("strategy", ["agreement", "force"])
def test_a_mean_vote_never_raises_the_loss_to_first_order(
    work: Job, strategy: str, granularity: Granularity
) -> None:
    thin = opened(work, granularity)
    votes = thin.votes(work.rows, vote="mean")
    kept = mask(thin.vector, votes, strategy=strategy)
    slope = thin.slope(kept, work.rows)
    assert slope < 0
    # against the dense twin: the gradient of the weights along (m ⊙ B) A
    step = 1e-3
    before = thin.evaluate(work.rows).loss
    thin.move(kept, step)
    measured = (thin.evaluate(work.rows).loss - before) / step
    thin.restore()
    assert measured == pytest.approx(slope, rel=0.05, abs=1e-3)


def test_training_moves_b_alone_and_comes_back(work: Job) -> None:
    thin = opened(work)
    frozen = {name: value.clone() for name, value in thin.model.named_parameters() if "lora_B" not in name}
    whole = set(thin._whole)
    for _ in finetune(
        thin, len(work.rows), thin.encoder(list(work.rows)), learning_rate=1e-2, stops=[2], head=False
    ):
        pass
    for name, value in thin.model.named_parameters():
        if name in frozen and name not in whole:
            assert torch.equal(value, frozen[name]), name
    moved = thin.displacement()
    kept = {name: moved.read(name).clone() for name in moved.specs}
    assert any(value.any() for value in kept.values())
    loss = thin.evaluate(work.rows).losses
    thin.restore()
    thin.move(thin.vector.derive(Given(kept)), 1.0)
    torch.testing.assert_close(
        torch.tensor(thin.evaluate(work.rows).losses), torch.tensor(loss), rtol=1e-4, atol=1e-5
    )


def test_detached_it_leaves_nothing_behind(work: Job) -> None:
    thin = opened(work)
    layers = [layer.module for layer in thin.layers.values()]
    thin.detach()
    for module in layers:
        assert "forward" not in vars(module)
        assert "lora_B" not in dict(module.named_parameters())


class Bypassing(nn.Linear):
    """A layer whose weight is used by others, as torch's own attention does."""


def test_a_weight_that_is_used_without_calling_its_layer_is_refused(tmp_path: Path) -> None:
    work = adapter_job("bert", tmp_path)
    thin = opened(work)
    layer = next(iter(thin.layers.values()))
    module = layer.module
    module.forward = layer._forward  # as if the model never called it
    with pytest.raises(GradfixError, match=r"without calling the layer.*--space weights"):
        thin.votes(work.rows)


def test_a_layer_that_computes_in_its_own_way_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = adapter_job("bert", tmp_path)
    monkeypatch.setattr(Bypassing, "forward", lambda self, x: nn.functional.linear(x, 2 * self.weight))
    task = get_task(work.task)
    target = Checkpoint.open(work.models["target_base"])
    tau = TaskVector.between(work.models["source_base"], work.models["source_tuned"])
    bind(task, target, tau, work.rows)
    load = task.load_model

    def changed(*arguments: object, **options: object) -> nn.Module:
        model = load(*arguments, **options)
        model.bert.encoder.layer[0].attention.self.query.__class__ = Bypassing
        return model

    monkeypatch.setattr(task, "load_model", changed)
    with pytest.raises(GradfixError, match=r"query.weight: a Bypassing computes in a way of its own"):
        AdapterModel.load(task, target, place(tau, target))
