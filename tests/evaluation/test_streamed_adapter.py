"""Beside a base that is fetched block by block an adapter is what it is beside one in memory."""

from pathlib import Path

import pytest
import torch

from gradfix.checkpoints import Checkpoint
from gradfix.errors import GradfixError
from gradfix.evaluation.binding import bind
from gradfix.evaluation.streaming.choice import load_target
from gradfix.evaluation.streaming.plan import plan_memory
from gradfix.evaluation.streaming.streamed_adapter import StreamedAdapterModel
from gradfix.tasks import get_task
from gradfix.vectors.placement import place
from gradfix.vectors.task_vector import Granularity, TaskVector
from tests.adapters import QUIET, adapter_job, loaded_adapter
from tests.builders import Job
from tests.evaluation.test_adapter_model import opened
from tests.evaluation.test_streaming import turned

pytestmark = [*QUIET]


@pytest.mark.parametrize(
    ("family", "granularity"),
    [
        *((family, "coordinate") for family in ("llama", "qwen2", "bert", "t5")),
        ("llama", "row"),
        ("clip", "component"),
    ],
)
def test_streamed_equals_resident(family: str, granularity: Granularity, tmp_path: Path) -> None:
    work = adapter_job(family, tmp_path)
    resident = opened(work, granularity)
    streamed = opened(work, granularity, StreamedAdapterModel)
    rows = list(work.rows)[:5]
    expected, found = resident.votes(rows), streamed.votes(rows)
    assert found.record == expected.record
    assert turned(found, expected) == 0
    (other,) = streamed.votes_of([rows])
    assert turned(other, expected) == 0
    slope = resident.slope(resident.vector, rows)
    assert streamed.slope(streamed.vector, rows) == pytest.approx(slope, rel=1e-5)
    for model in (resident, streamed):
        model.move(model.vector, 0.5)
    assert resident.votes(rows).record == streamed.votes(rows).record
    if not streamed.task.generates:
        assert streamed.evaluate(rows).losses == pytest.approx(resident.evaluate(rows).losses, rel=1e-5)
    theirs, ours = resident.displacement(), streamed.displacement()
    assert all(torch.equal(ours.read(name), theirs.read(name)) for name in theirs.specs)
    for model in (resident, streamed):
        model.restore()
    written = [model.output(model.vector, 0.5) for model in (resident, streamed)]
    for path, layer in written[0].layers.items():
        assert torch.equal(written[1].layers[path].up, layer.up)
    assert written[1].whole.keys() == written[0].whole.keys()
    for path, state in written[0].whole.items():
        assert all(torch.equal(written[1].whole[path][name], value) for name, value in state.items())


def test_a_count_is_told_from_that_of_another_adapter(tmp_path: Path) -> None:
    """Votes depend on A, which is no parameter."""
    identities = []
    for name, scale in (("one", 0.05), ("other", 0.1)):
        work = adapter_job("llama", tmp_path / name, scale=scale)
        work.models["target_base"] = tmp_path / "one" / "new"
        model = opened(work, "coordinate", StreamedAdapterModel)
        assert isinstance(model, StreamedAdapterModel)
        identities.append(model._identity([]))
    one, other = identities
    assert one.pop("adapter") != other.pop("adapter")
    assert one == other


def test_a_weight_that_is_used_without_calling_its_layer_is_refused(tmp_path: Path) -> None:
    work = adapter_job("bert", tmp_path)
    model = opened(work, "coordinate", StreamedAdapterModel)
    layer = next(iter(model.layers.values()))
    layer.module.forward = layer._forward  # as if the model never called it
    with pytest.raises(GradfixError, match=r"without calling the layer.*--space weights"):
        model.votes(work.rows)


def small_memory(work: Job) -> int:
    """Less than the model needs in memory, and more than a block does."""
    target = Checkpoint.open(work.models["target_base"])
    plan = plan_memory(target, voting=(), batch_size=4, memory=1)
    return (sum(plan.streamed.values()) + sum(plan.resident.values())) // 2


@pytest.mark.slow
def test_a_streamed_transport_writes_the_same_adapter(tmp_path: Path) -> None:
    work = adapter_job("llama", tmp_path)
    made = [
        work.run(tmp_path / name, memory=memory, batch_size=4, alpha="0,0.5,1", test=work.held_out)
        for name, memory in (("resident", "auto"), ("streamed", small_memory(work)))
    ]
    files = [(Path(one.output) / "adapter_model.safetensors").read_bytes() for one in made]
    assert files[0] == files[1]
    assert made[0].alpha == made[1].alpha
    loaded_adapter(tmp_path / "streamed", work.models["target_base"], work.auto_class)


def test_memory_is_planned_for_what_the_adapter_changes_alone(tmp_path: Path) -> None:
    """Its weights moved as weights vote only where the adapter is; a head that it leaves alone has no votes."""
    work = adapter_job("llama", tmp_path)
    target = Checkpoint.open(work.models["target_base"])
    tau = TaskVector.between(work.models["source_base"], work.models["source_tuned"])
    placement = place(tau, target)
    vector = placement.vector
    assert set(placement.changing) == {name for name in vector.specs if not vector.is_zero(name)}
    assert 0 < len(placement.changing) < len(vector.specs)

    task = get_task("causal-lm", max_length=8)
    bind(task, target, vector, work.rows)
    plan = plan_memory(target, voting=placement.changing, batch_size=1, length=8, memory=1)
    least = sum(plan.streamed.values())
    assert least < sum(
        plan_memory(target, voting=vector.specs, batch_size=1, length=8, memory=1).streamed.values()
    )
    model = load_target(task, target, placement, memory=least, batch_size=1)
    assert model.streams
    model.vote_where(vector)
    assert set(model.votes(list(work.rows)[:2])) == set(placement.changing)
