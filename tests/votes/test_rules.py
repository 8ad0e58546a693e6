"""Every rule gives the plain loop's votes, for random shapes; what has no rule is counted all the same."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.t5.modeling_t5 import T5LayerNorm
from transformers.pytorch_utils import Conv1D

from gradfix.votes import count_votes
from tests.votes.exact import assert_fast_is_exact

CHECKS = settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
SIZES = {"N": st.integers(2, 5), "T": st.integers(1, 5), "seed": st.integers(0, 99)}


def squares(model, batch):
    """A loss with a gradient of its own for each sample."""
    output = model(batch)
    return (output - 0.3).square().flatten(1).mean(1)


class Calls(nn.Module):
    """A module with parameters and a function of (itself, batch)."""

    def __init__(self, function, **parts):
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        return self.function(self, x)


def bare(*shape):
    return nn.Parameter(torch.randn(shape))


def double(module):
    torch.manual_seed(1)
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    return module.double().eval()


SEQUENCE = {
    "linear": lambda: nn.Linear(6, 4),
    "linear without bias": lambda: nn.Linear(6, 4, bias=False),
    "relu gives exact zeros": lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4)),
    "conv1d of transformers": lambda: nn.Sequential(Conv1D(4, 6), nn.Tanh(), Conv1D(3, 4)),
    "layer norm": lambda: nn.Sequential(nn.Linear(6, 4), nn.LayerNorm(4), nn.Linear(4, 2)),
    "rms norm": lambda: nn.Sequential(nn.Linear(6, 4), nn.RMSNorm(4), nn.Linear(4, 2)),
    "rms norm of llama": lambda: nn.Sequential(nn.Linear(6, 4), LlamaRMSNorm(4), nn.Linear(4, 2)),
    "rms norm of t5": lambda: nn.Sequential(nn.Linear(6, 4), T5LayerNorm(4), nn.Linear(4, 2)),
    "samples second": lambda: Calls(
        lambda m, x: m.b(m.norm(m.a(x.transpose(0, 1)))).transpose(0, 1),
        a=nn.Linear(6, 4),
        norm=nn.LayerNorm(4),
        b=nn.Linear(4, 2),
    ),
    "flattened": lambda: Calls(
        lambda m, x: m.b(m.a(x.reshape(-1, 6)).tanh()).view(*x.shape[:2], 2),
        a=nn.Linear(6, 4),
        b=nn.Linear(4, 2),
    ),
    "flattened, positions first": lambda: Calls(
        lambda m, x: m.a(x.transpose(0, 1).reshape(-1, 6)).view(x.shape[1], x.shape[0], 4).transpose(0, 1),
        a=nn.Linear(6, 4),
    ),
    "a module used twice": lambda: Calls(lambda m, x: m.a(m.a(x).tanh()), a=nn.Linear(6, 6)),
    "a weight used by another": lambda: Calls(
        lambda m, x: functional.linear(m.a(x).tanh(), m.a.weight.t(), m.c), a=nn.Linear(6, 4), c=bare(6)
    ),
    "matrix products": lambda: Calls(lambda m, x: (x @ m.a).tanh() @ m.b, a=bare(6, 4), b=bare(4, 3)),
    "position and scale": lambda: Calls(lambda m, x: (x + m.p[: x.shape[1]]) * m.s, p=bare(5, 6), s=bare(6)),
    "one plus weight": lambda: Calls(lambda m, x: x * (1.0 + m.s.float().double()).exp(), s=bare(6)),
    "class token": lambda: Calls(
        lambda m, x: m.a(torch.cat([m.c.expand(len(x), -1, -1), x], 1)), c=bare(1, 1, 6), a=nn.Linear(6, 3)
    ),
    "a scalar": lambda: Calls(lambda m, x: m.a(x) * m.s.exp(), a=nn.Linear(6, 3), s=bare()),
    "in place": lambda: Calls(
        lambda m, x: m.a(x).add_(m.b).mul_(m.s), a=nn.Linear(6, 3), b=bare(3), s=bare(3)
    ),
    "attention": lambda: Calls(
        lambda m, x: m.a(x, x, x, need_weights=False)[0], a=nn.MultiheadAttention(6, 2, batch_first=True)
    ),
    "attention, samples second": lambda: Calls(
        lambda m, x: m.a(x.transpose(0, 1), *[x.transpose(0, 1)] * 2)[0].transpose(0, 1),
        a=nn.MultiheadAttention(6, 2),
    ),
    "cross attention": lambda: Calls(
        lambda m, x: m.a(m.l(x), x, x)[0], l=nn.Linear(6, 6), a=nn.MultiheadAttention(6, 3, batch_first=True)
    ),
    "no parameter in the first layer": lambda: nn.Sequential(nn.Tanh(), nn.Linear(6, 2)),
}


@pytest.mark.parametrize("kind", SEQUENCE)
@CHECKS
@given(**SIZES)
def test_sequence_rules(kind, N, T, seed):
    model = double(SEQUENCE[kind]())
    x = torch.randn(N, T, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    assert_fast_is_exact(model, [x], squares)


IMAGE = {
    "conv2d": lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1),
    "conv2d dilated": lambda: nn.Conv2d(4, 2, (2, 3), dilation=(1, 2), bias=False),
    "conv2d in groups": lambda: nn.Conv2d(4, 6, 2, groups=2),
    "conv2d by channel": lambda: nn.Conv2d(4, 4, 3, padding=1, groups=4),
    "conv1d": lambda: Calls(lambda m, x: m.c(x.flatten(2)), c=nn.Conv1d(4, 3, 3, stride=2, padding=1)),
    "group norm": lambda: nn.Sequential(nn.Conv2d(4, 4, 1), nn.GroupNorm(2, 4), nn.Conv2d(4, 2, 1)),
    "batch norm": lambda: nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)),
    "patches": lambda: Calls(
        lambda m, x: m.l(m.c(x).flatten(2).transpose(1, 2)), c=nn.Conv2d(4, 6, 2, stride=2), l=nn.Linear(6, 3)
    ),
}


@pytest.mark.parametrize("kind", IMAGE)
@CHECKS
@given(N=st.integers(2, 4), size=st.integers(5, 7), seed=st.integers(0, 99))
def test_image_rules(kind, N, size, seed):
    model = double(IMAGE[kind]())
    x = torch.randn(N, 4, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    assert_fast_is_exact(model, [x], squares)


def tied():
    table = nn.Embedding(7, 4, padding_idx=0)
    head = nn.Linear(4, 7, bias=False)
    head.weight = table.weight
    return Calls(lambda m, x: m.h(m.e(x)), e=table, h=head)


TEXT = {
    "embedding": lambda: nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 2)),
    "embedding with padding": lambda: nn.Embedding(7, 4, padding_idx=0),
    "tied": tied,
    "positions alike for all": lambda: Calls(
        lambda m, x: m.e(x) + m.p(torch.arange(x.shape[1])[None]), e=nn.Embedding(7, 4), p=nn.Embedding(5, 4)
    ),
    "two tables in one": lambda: Calls(lambda m, x: m.e(x) * m.e((x + 1) % 7), e=nn.Embedding(7, 4)),
}


@pytest.mark.parametrize("kind", TEXT)
@CHECKS
@given(**SIZES)
def test_text_rules(kind, N, T, seed):
    ids = torch.randint(0, 7, (N, T), generator=torch.Generator().manual_seed(seed))
    assert_fast_is_exact(double(TEXT[kind]()), [ids], squares)


@pytest.mark.parametrize(
    ("build", "plain"),
    [
        (lambda: nn.Sequential(nn.Linear(6, 4), nn.PReLU()), {"1.weight"}),
        (
            lambda: Calls(lambda m, x: m.a(x[..., :3], x[..., 3:]), a=nn.Bilinear(3, 3, 2)),
            {"a.weight", "a.bias"},
        ),
        (
            lambda: Calls(
                lambda m, x: torch.einsum("nti,oi->nto", x, m.w).tanh() + m.a(x),
                w=bare(4, 6),
                a=nn.Linear(6, 4),
            ),
            set(),
        ),
        (lambda: Calls(lambda m, x: Hidden.apply(m.a(x), m.s), a=nn.Linear(6, 3), s=bare(3)), {"s"}),
        (
            lambda: Calls(
                lambda m, x: m.a(m.q.expand(len(x), -1, -1), x, x)[0],
                q=bare(1, 4, 6),
                a=nn.MultiheadAttention(6, 2, batch_first=True),
            ),
            {"q", "a.in_proj_weight", "a.in_proj_bias"},
        ),
        (
            lambda: nn.Sequential(nn.Linear(6, 4), Checkpointed(), nn.Linear(4, 2)),
            {"0.weight", "0.bias", "1.a.weight", "1.a.bias", "2.weight", "2.bias"},
        ),
    ],
    ids=[
        "prelu",
        "bilinear",
        "einsum of data",
        "hidden from torch's mode",
        "learned queries",
        "checkpointed",
    ],
)
def test_what_has_no_rule_is_left_to_the_plain_loop_and_reported(build, plain):
    x = torch.randn(3, 2, 6, dtype=torch.float64)
    votes = assert_fast_is_exact(double(build()), [x], squares, plain)
    assert all(votes.plain.values())


class Hidden(torch.autograd.Function):
    """A scale that torch's function mode does not see."""

    @staticmethod
    def forward(ctx, x, scale):
        ctx.save_for_backward(x, scale)
        return x * scale

    @staticmethod
    def backward(ctx, gradient):
        x, scale = ctx.saved_tensors
        return gradient * scale, (gradient * x).flatten(0, -2).sum(0)


class Checkpointed(nn.Module):
    """A segment that is run again in the backward pass."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(4, 4)

    def forward(self, x):
        return torch.utils.checkpoint.checkpoint(self.a, x, use_reentrant=False)


def test_samples_that_influence_each_other_are_left_to_the_plain_loop():
    model = double(
        nn.Sequential(nn.Linear(6, 4), Calls(lambda m, x: x - 0.5 * x.mean(0, keepdim=True).tanh()))
    )
    x = torch.randn(3, 2, 6, dtype=torch.float64)
    votes = count_votes(model, [x], squares)
    assert set(votes.plain) == {"0.weight", "0.bias"}
    alone = count_votes(model, [x], squares, method="plain")
    assert all(torch.equal(votes[name], alone[name]) for name in alone)


def test_a_parameter_that_had_no_gradient_when_verified_is_counted_later():
    """The first two samples close the gate; the third opens it."""
    model = double(
        Calls(
            lambda m, x: m.a(x) + m.b(x) * x.amax((1, 2), keepdim=True).gt(5),
            a=nn.Linear(6, 2),
            b=nn.Linear(6, 2),
        )
    )
    x = torch.randn(3, 4, 6, dtype=torch.float64).clamp(-1, 1)
    x[2] += 9
    assert_fast_is_exact(model, [x], squares, {"b.weight", "b.bias"})


def test_a_model_that_takes_another_way_is_verified_anew():
    model = double(
        Calls(
            lambda m, x: m.a(x) if x.shape[1] < 3 else m.b(m.a(x).tanh()),
            a=nn.Linear(6, 4),
            b=nn.Linear(4, 4),
        )
    )
    batches = [torch.randn(3, T, 6, dtype=torch.float64) for T in (2, 4, 2, 4)]
    assert_fast_is_exact(model, batches, squares)


def test_empty_and_single_sample_batches():
    model = double(nn.Linear(6, 4))
    x = torch.randn(4, 2, 6, dtype=torch.float64)
    batches = [x[:0], x[:1], x[1:]]
    votes = count_votes(model, batches, squares)
    together = count_votes(model, [x], squares)
    assert votes.samples == 4
    assert all(torch.equal(votes[name], together[name]) for name in together)
    assert len(count_votes(model, [x[:0]], squares)) == 0


def test_frozen_parameters_cast_no_votes_unless_named():
    model = double(nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 2)))
    model[0].requires_grad_(False)
    x = torch.randn(3, 2, 6, dtype=torch.float64)
    assert set(count_votes(model, [x], squares)) == {"2.weight", "2.bias"}
    named = count_votes(model, [x], squares, parameters=["0.weight"])
    assert set(named) == {"0.weight"}
    assert not model[0].weight.requires_grad
    model[0].requires_grad_(True)
    assert torch.equal(named["0.weight"], count_votes(model, [x], squares)["0.weight"])
