"""Memory that is used again never has a tensor in it that somebody still has."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from gradfix.checkpoints.reading import reuse
from gradfix.checkpoints.reading.reuse import Reuse, empty, reusing
from gradfix.checkpoints.reading.safetensors_file import SafetensorsFile

SIZE = 1 << 20


def test_memory_is_used_again_once_no_tensor_is_in_it() -> None:
    memory = Reuse()
    first = memory.empty(SIZE)
    place = first.data_ptr()
    second = memory.empty(SIZE)
    assert second.data_ptr() != place
    del first
    assert memory.empty(SIZE).data_ptr() == place


@pytest.mark.parametrize(
    "keep",
    [
        lambda tensor: tensor.view(torch.bfloat16)[7:9],
        lambda tensor: tensor.numpy()[3:],
        lambda tensor: torch.nn.Parameter(tensor.view(torch.float32)),
        lambda tensor: (tensor.view(torch.float32).requires_grad_() * 2.0).grad_fn,
        lambda tensor: tensor.untyped_storage(),
        lambda tensor: memoryview(tensor.numpy()),
    ],
)
def test_whatever_still_refers_to_memory_keeps_it(keep) -> None:
    memory = Reuse()
    tensor = memory.empty(SIZE).zero_()
    place, kept = tensor.data_ptr(), keep(tensor)
    del tensor
    others = [memory.empty(SIZE) for _ in range(3)]
    assert place not in {other.data_ptr() for other in others}
    del others, kept


def test_what_a_graph_saved_keeps_its_numbers() -> None:
    memory = Reuse()
    weight = memory.empty(4 * SIZE).view(torch.float32).fill_(3.0)
    x = torch.ones(SIZE, requires_grad=True)
    output = (x * weight).sum()
    del weight
    memory.empty(4 * SIZE).fill_(0)
    output.backward()
    assert bool((x.grad == 3.0).all())


def test_free_memory_of_another_size_goes_first() -> None:
    memory = Reuse()
    held = memory.empty(SIZE)
    memory.empty(2 * SIZE)
    memory.empty(3 * SIZE)
    assert sorted(len(piece) - 64 for piece in memory._pieces) == [SIZE, 3 * SIZE]
    memory.clear()
    assert not memory._pieces
    held.zero_()


def test_memory_begins_where_torch_would_have_it() -> None:
    memory = Reuse()
    assert all(memory.empty(SIZE + n).data_ptr() % 64 == 0 for n in range(5))


def test_only_what_is_read_inside_and_large_is_used_again(tmp_path: Path) -> None:
    save_file({"large": torch.arange(SIZE), "small": torch.arange(5)}, tmp_path / "a.safetensors")
    file, memory = SafetensorsFile(tmp_path / "a.safetensors"), Reuse()
    with reusing(memory):
        value = file.read("large")
        file.read("small")
    assert len(memory._pieces) == 1
    file.read("large")
    assert len(memory._pieces) == 1
    assert torch.equal(value, torch.arange(SIZE))
    assert empty(SIZE).numel() == SIZE
    assert reuse._CURRENT.get() is None
