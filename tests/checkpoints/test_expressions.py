"""Lazy sources of tensors beside the same computed at once."""

import pytest
import torch
from torch import Tensor

from gradfix.checkpoints.expressions import Given, Remembered, Tally


def test_the_first_tensors_that_find_room_are_read_once_and_all_as_they_are() -> None:
    tensors = {name: torch.arange(12.0).reshape(4, 3) + number for number, name in enumerate("abc")}
    read: list[str] = []

    class Counted(Given):
        def read(self, name: str, rows: slice | None = None) -> Tensor:
            read.append(name)
            return super().read(name, rows)

    source = Remembered(Counted(tensors), room=2 * tensors["a"].nbytes)
    assert source.specs == Given(tensors).specs
    for _ in range(3):
        for name, tensor in tensors.items():
            assert torch.equal(source.read(name, slice(1, 3)), tensor[1:3])
            assert torch.equal(source.read(name), tensor)
    assert [read.count(name) for name in "abc"] == [1, 1, 6]


@pytest.mark.parametrize("dtype", [torch.int8, torch.int16])
def test_votes_of_a_tensor_are_added_up_beyond_32_bits(dtype: torch.dtype) -> None:
    size, most = 100_000, torch.iinfo(dtype).max
    votes = torch.full((size,), most, dtype=dtype)
    votes[0], votes[1] = 0, -most
    tally = Tally()
    tally.add_votes(votes)
    assert (tally.voted, tally.tied, tally.net) == (size, 1, (size - 1) * most)
