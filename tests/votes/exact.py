"""What votes must be, from autograd's gradient of each sample, with room only for gradients that are rounding."""

import torch
from torch import nn

from gradfix.tasks.batches import batch_size, select
from gradfix.votes import Votes, count_votes


def sample_gradients(model, batch, loss, names=None):
    """Each sample's gradient by name; parameters without one are left out."""
    named = dict(model.named_parameters())
    names = [name for name in (names or named) if named[name].requires_grad]
    found = []
    for n in range(batch_size(batch)):
        value = loss(model, select(batch, slice(n, n + 1))).sum()
        gradients = torch.autograd.grad(value, [named[name] for name in names], allow_unused=True)
        found.append({name: g for name, g in zip(names, gradients, strict=True) if g is not None})
    return found


def assert_exact(votes: Votes, model: nn.Module, batches, loss, names=None) -> None:
    low, high = {}, {}
    for batch in batches:
        for gradients in sample_gradients(model, batch, loss, names):
            largest = max(float(g.abs().max()) for g in gradients.values() if g.numel())
            eps = torch.finfo(next(iter(gradients.values())).dtype).eps
            for name, gradient in gradients.items():
                # Zeros are exact (rows not touched, closed units), but for biases, whose terms may cancel:
                # that of attention's keys has none but rounding errors for a gradient (nor have the weights,
                # where there is one position to attend to).
                small = gradient.abs() <= 1e3 * eps * largest
                unsure = small & ((gradient != 0) | name.endswith("bias") | ("in_proj" in name))
                sign = torch.where(unsure, 0, -gradient.sign()).int()
                low[name] = low.get(name, 0) + sign - unsure.int()
                high[name] = high.get(name, 0) + sign + unsure.int()
    assert set(votes) == set(low)
    for name, counts in votes.items():
        wrong = (counts < low[name]) | (counts > high[name])
        assert not wrong.any(), f"{name}: {int(wrong.sum())} of {wrong.numel()} coordinates"


def assert_fast_is_exact(model, batches, loss, plain=()):
    """Count fast in float64, compare, and check which parameters were left to the plain loop."""
    votes = count_votes(model, batches, loss)
    assert set(votes.plain) == set(plain), votes.plain
    assert_exact(votes, model, batches, loss)
    return votes
