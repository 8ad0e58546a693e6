"""Vectors computed once: the same values by any rows, and one computation."""

import pytest
import torch

from gradfix.checkpoints.expressions import Elementwise, Selection
from gradfix.checkpoints.tensors import known_zero
from gradfix.vectors.scratch import Kept, Scratch
from gradfix.vectors.task_vector import TaskVector
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
        assert scratch.keep(kept) is kept
        assert scratch.keep(kept, from_first=True) is not kept  # of other ranks it may have other values


def test_where_the_disk_has_no_room_the_vector_stays_lazy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradfix.vectors.scratch.SHARE_OF_DISK", 0.0)
    tau = vector(w=torch.randn(4, 7))
    with Scratch() as scratch:
        assert scratch.keep(tau) is tau


def test_what_is_0_everywhere_is_known_and_not_stored_again() -> None:
    tau = vector(w=torch.randn(4, 7), v=torch.zeros(6, 2), u=torch.ones(3))

    class Telling(Selection):
        def known_zero(self, name: str) -> bool:
            return name == "v"

        def read(self, name: str, rows: slice | None = None) -> torch.Tensor:
            assert name != "v"
            return super().read(name, rows) * (name != "u")

    with Scratch() as scratch:
        kept = scratch.keep(TaskVector(Telling(tau, {name: name for name in tau})))
        # v was known to be 0 and not read, u was found to be; both are known to be from now on.
        assert [known_zero(kept, name) for name in ("w", "v", "u")] == [False, True, True]
        assert torch.equal(kept["w"], tau["w"])
        assert torch.equal(kept["v"], torch.zeros(6, 2))
        assert torch.equal(kept.read("v", slice(2, 5)), torch.zeros(3, 2))
        assert torch.equal(kept["u"], torch.zeros(3))
        assert isinstance(kept.source, Kept)
        assert "v" not in kept.source.offsets
