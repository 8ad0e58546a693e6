"""Vectors computed once: the same values by any rows, and one computation."""

import pytest
import torch

from gradfix.checkpoints.expressions import Elementwise
from gradfix.vectors.scratch import Scratch
from tests.builders import vector


def test_a_kept_vector_has_the_same_values_and_is_computed_once() -> None:
    tau = vector(w=torch.randn(40, 7), v=torch.randn(5), none=torch.zeros(0, 3))
    computed: list[int] = []

    def counted(block: torch.Tensor) -> torch.Tensor:
        computed.append(block.numel())
        return block * 3

    lazy = tau.derive(Elementwise(tau, counted))
    with Scratch() as scratch:
        kept = scratch.keep(lazy)
        seen = sum(computed)
        assert seen == 40 * 7 + 5
        assert list(kept) == list(tau)
        for name in tau:
            assert torch.equal(kept[name], tau[name] * 3)
        assert torch.equal(kept.read("w", slice(3, 9)), tau["w"][3:9] * 3)
        assert sum(computed) == seen


def test_where_the_disk_has_no_room_the_vector_stays_lazy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradfix.vectors.scratch.SHARE_OF_DISK", 0.0)
    tau = vector(w=torch.randn(4, 7))
    with Scratch() as scratch:
        assert scratch.keep(tau) is tau
