"""A model that is spread over processes or devices is refused by name."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

import gradfix as gf
from gradfix.errors import GradfixError
from gradfix.votes.isolation import refuse_spread
from tests.ranks.world import free_port


def loss(model: nn.Module, batch: Tensor) -> Tensor:
    return model(batch).square().sum(1)


@pytest.fixture
def one_process() -> Iterator[None]:
    import torch.distributed as dist

    store = dist.TCPStore("127.0.0.1", free_port(), 1, True)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_process")
def test_sharded_and_wrapped_models_are_refused() -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    plain, sharded = nn.Linear(4, 2), nn.Linear(4, 2)
    mesh = init_device_mesh("cpu", (1,))
    sharded.weight = nn.Parameter(distribute_tensor(sharded.weight.data, mesh, [Shard(0)]))
    with pytest.raises(
        GradfixError, match=r"Linear: sharded over processes .*: weight; give its files.*--memory"
    ):
        gf.count_votes(sharded, [torch.ones(2, 4)], loss)
    wrapped = nn.parallel.DistributedDataParallel(plain)
    with pytest.raises(GradfixError, match=r"give the model that it wraps \(model.module\)"):
        gf.count_votes(wrapped, [torch.ones(2, 4)], loss)
    assert gf.count_votes(wrapped.module, [torch.ones(2, 4)], loss).samples == 2


def test_a_device_map_over_several_places_is_refused() -> None:
    from accelerate import dispatch_model

    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    whole = dispatch_model(model, {"": "cpu"})
    assert gf.count_votes(whole, [torch.ones(2, 4)], loss).samples == 2
    whole.hf_device_map = {"0": 0, "1": "cpu"}
    with pytest.raises(
        GradfixError, match="Sequential: spread over 0, cpu by a device_map; load it on one device, or"
    ):
        refuse_spread(whole)
    split = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2, device="meta"))
    refuse_spread(split)  # of what is not there yet, nothing is known
