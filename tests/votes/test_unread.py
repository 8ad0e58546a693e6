"""Products whose outputs no gradient depends on: found, left out where nobody looks at the losses, and nowhere else."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from gradfix.evaluation.streaming.counting import Arrived
from gradfix.votes.fast.accumulate import Tally
from gradfix.votes.fast.counter import FastCounter
from gradfix.votes.fast.rules import linear
from gradfix.votes.fast.verification import Plan
from gradfix.votes.plain import count_plainly

SAMPLES, WIDTH = 5, 6
End = Callable[[Tensor, Tensor], Tensor]


class Block(nn.Module):
    """What comes in, and two products of it, put together in one of several ways."""

    def __init__(self, end: End) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        self.end = end
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.end(x, self.down(functional.gelu(self.up(x))))


class Sparing(FastCounter):
    """Counts where nobody looks at the losses."""

    sparing = True


def loss(block: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    arrived: Tensor = Arrived.apply(block(batch["x"]), batch["gradient"])  # type: ignore[no-untyped-call]
    return arrived


def drawn(seed: int = 1) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return {name: torch.randn(SAMPLES, 3, WIDTH, dtype=torch.double) for name in ("x", "gradient")}


def counted(block: Block, batch: dict[str, Tensor], plan: Plan) -> tuple[dict[str, Tensor], Tensor]:
    """Votes with what is spared left out, and the gradient of what came in."""
    parameters, leaves = dict(block.named_parameters()), list[Tensor]()

    def of_leaves(block: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        leaves[:] = [batch["x"].detach().requires_grad_()]
        return loss(block, {**batch, "x": leaves[0]})

    tally = Tally(parameters)
    counter = Sparing(block, of_leaves, parameters, tally, None, plan=plan, leaves=lambda: leaves)
    counter.count(batch, 0)
    assert not counter.reasons
    assert leaves[0].grad is not None
    return tally.counts(), leaves[0].grad


def plainly(block: Block, batch: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
    parameters = dict(block.named_parameters())
    tally = Tally(parameters)
    count_plainly(block, batch, SAMPLES, loss, parameters, tally.vote)
    x = batch["x"].clone().requires_grad_()
    return tally.counts(), torch.autograd.grad(loss(block, {**batch, "x": x}).sum(), x)[0]


def norm(x: Tensor) -> Tensor:
    return functional.layer_norm(x, (WIDTH,))


SPARED: dict[str, End] = {
    "a sum": lambda x, y: x + y,
    "in place": lambda x, y: (x * 1.0).add_(y),
    "alone": lambda x, y: y,
    "dropout and other shapes": lambda x, y: (
        x.transpose(1, 2) + functional.dropout(y, 0.5, False).transpose(1, 2)
    ).transpose(1, 2),
    "normalised what came in": lambda x, y: norm(x) + y,
}
READ: dict[str, End] = {
    "normalised after": lambda x, y: norm(x + y),
    "a gate": lambda x, y: x * y,
    "a gate without a gradient": lambda x, y: x * torch.sigmoid(y.detach()) + y,
    "a branch": lambda x, y: x + y if bool(y[0, 0, 0] > 0) else x - y,
    "another sum's factor": lambda x, y: (x + y).relu() + y,
}


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The output features of each product that a rule computed."""
    seen: list[int] = []

    class Counting:
        def linear(self, x: Tensor, weight: Tensor, bias: Any) -> Tensor:
            seen.append(len(weight))
            return functional.linear(x, weight, bias)

    monkeypatch.setattr(linear, "functional", Counting())
    return seen


@pytest.mark.parametrize("end", [*SPARED, *READ])
def test_gradients_are_those_of_the_whole_pass_with_the_last_product_left_out_where_nothing_reads_it(
    end: str, products: list[int]
) -> None:
    block, batch, plan = Block((SPARED | READ)[end]), drawn(), Plan()
    counted(block, batch, plan)
    assert plan.spared == (frozenset({"down.weight"}) if end in SPARED else frozenset())
    products.clear()
    for seed in (1, 2):
        found, expected = counted(block, drawn(seed), plan), plainly(block, drawn(seed))
        assert found[0].keys() == expected[0].keys()
        assert all(torch.equal(found[0][name], expected[0][name]) for name in found[0])
        assert torch.allclose(found[1], expected[1], rtol=1e-12)
    assert products == [2 * WIDTH, *([] if end in SPARED else [WIDTH])] * 2


def test_a_block_that_reads_what_another_of_its_kind_did_not_is_run_whole(products: list[int]) -> None:
    for end in ("a gate without a gradient", "normalised after"):
        plan = Plan()
        counted(Block(SPARED["a sum"]), drawn(), plan)
        assert plan.spared
        block = Block(READ[end])
        products.clear()
        found, expected = counted(block, drawn(), plan), plainly(block, drawn())
        assert WIDTH in products
        assert all(torch.equal(found[0][name], expected[0][name]) for name in found[0])
        assert torch.allclose(found[1], expected[1], rtol=1e-12)


def test_nothing_is_left_out_where_losses_are_looked_at(products: list[int]) -> None:
    block, batch, plan = Block(SPARED["a sum"]), drawn(), Plan()
    parameters = dict(block.named_parameters())
    FastCounter(block, loss, parameters, Tally(parameters), None, plan=plan).count(batch, 0)
    assert plan.spared is None
    assert products.count(WIDTH) == products.count(2 * WIDTH)
