"""Products that are given again are those of the same call."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from gradfix.votes.fast.outputs import Outputs
from gradfix.votes.fast.recorder import Recorder
from gradfix.votes.fast.rules import linear


class Twice(nn.Module):
    """Uses one weight for two products, and another for a third."""

    def __init__(self) -> None:
        super().__init__()
        self.shared, self.last = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(functional.gelu(self.shared(functional.gelu(self.shared(x)))))


def gradient(model: nn.Module, x: torch.Tensor, **options: Outputs) -> torch.Tensor:
    x = x.clone().requires_grad_()
    recorder = Recorder(dict(model.named_parameters()), len(x), **options)
    with recorder:
        losses = model(x).pow(2).sum(dim=(1, 2))
    recorder.backward(losses, lambda *_: None, [x])
    recorder.close()
    assert x.grad is not None
    return x.grad


def test_each_call_of_a_weight_has_its_own_output(monkeypatch):
    torch.manual_seed(0)
    model, x = Twice(), torch.randn(3, 4, 6)
    outputs = Outputs(lambda tensor: tensor.clone)
    expected = gradient(model, x, keeping=outputs)
    monkeypatch.setattr(linear, "_product", lambda *_: pytest.fail("a product was computed"))
    assert torch.equal(gradient(model, x, known=outputs), expected)
    assert torch.equal(gradient(model, x, known=outputs), expected)  # as often as is needed


def test_what_was_not_kept_is_computed():
    torch.manual_seed(0)
    model, x = Twice(), torch.randn(3, 4, 6)
    kept = []

    def few(tensor: torch.Tensor):
        kept.append(tensor)
        return tensor.clone if len(kept) == 2 else None

    outputs = Outputs(few)
    outputs.unread = frozenset({"last.weight"})
    expected = gradient(model, x, keeping=outputs)
    assert len(kept) == 2  # the last one is not asked for
    assert torch.equal(gradient(model, x, known=outputs), expected)


def test_an_output_of_another_shape_is_not_taken():
    torch.manual_seed(0)
    model, x = Twice(), torch.randn(3, 4, 6)
    outputs = Outputs(lambda tensor: tensor.clone)
    gradient(model, x, keeping=outputs)
    assert torch.equal(gradient(model, x[:, :2], known=outputs), gradient(model, x[:, :2]))
