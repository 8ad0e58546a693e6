"""What count_votes refuses, restores and promises, whatever the model."""

import gc
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gradfix.errors import GradfixError
from gradfix.votes import count_votes, mean_gradient
from tests.models import tiny_bert
from tests.votes.exact import assert_exact, sample_gradients

COUNTERS = pytest.mark.parametrize("method", ["fast", "plain"])


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Tanh(), nn.Linear(8, 3)).double()


def squares(model, batch):
    return (model(batch["x"]) - batch["y"]).square().mean(1)


def data(samples, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(samples, width, generator=generator, dtype=torch.float64) for width in (4, 3))
    return {"x": x, "y": y}


def part(batch, *bounds):
    return {key: value[slice(*bounds)] for key, value in batch.items()}


@given(st.integers(1, 9), st.lists(st.integers(0, 4), max_size=4), st.sampled_from(["fast", "plain"]))
@settings(max_examples=20, deadline=None)
def test_batch_size_changes_no_vote(samples, sizes, method):
    model, batch = network(), data(samples)
    batches, start = [], 0
    for size in [*sizes, samples]:
        batches.append(part(batch, start, min(start + size, samples)))
        start = min(start + size, samples)
    votes = count_votes(model, batches, squares, method=method)
    assert votes.samples == samples
    model.eval()
    assert_exact(votes, model, [batch], squares)


@given(st.integers(0, 200), st.integers(1, 7), st.floats(0.01, 3))
@settings(max_examples=25, deadline=None)
def test_masking_by_the_mean_vote_never_goes_uphill(seed, samples, alpha):
    """METHOD.md's theorem: gᵀ(m ⊙ τ) = −Σ m |g||τ| ≤ 0."""
    model, batch = network(seed), data(samples, seed)
    gradient = mean_gradient(model, [batch], squares)
    votes = count_votes(model, [batch], squares, vote="mean")
    torch.manual_seed(seed)
    total = bound = 0.0
    for name, g in gradient.items():
        tau = torch.randn_like(g)
        mask = (tau.sign() == votes[name]) & (tau != 0)
        total += float((g * alpha * mask * tau).sum())
        bound -= float((g.abs() * alpha * mask * tau.abs()).sum())
    assert total <= 0
    assert total == pytest.approx(bound)


def test_the_mean_is_over_samples_not_over_batches():
    model, batch = network(), data(5)
    gradient = mean_gradient(model, [part(batch, 0, 4), part(batch, 4, 5)], squares)
    model.eval()
    each = sample_gradients(model, batch, squares)
    for name, g in gradient.items():
        expected = torch.stack([one[name] for one in each]).mean(0)
        torch.testing.assert_close(g, expected.float())


@COUNTERS
@pytest.mark.parametrize(
    ("loss", "text"),
    [
        (lambda m, b: squares(m, b).mean(), "returned a scalar for a batch of"),
        (lambda m, b: squares(m, b).repeat(2), r"returned shape \("),
        (lambda m, b: squares(m, b).detach(), "does not depend on any parameter"),
        (lambda m, b: 1.0, "returned float"),
        (lambda m, b: squares(m, b).long(), "returned torch.int64; expected floating-point values"),
    ],
)
def test_a_loss_that_is_not_one_a_sample_is_refused(method, loss, text):
    with pytest.raises(GradfixError, match=text):
        count_votes(network(), [data(3)], loss, method=method)


def test_batches_that_are_none_are_refused():
    for batch, text in [
        (
            {"x": torch.randn(2, 4), "y": torch.randn(3, 3)},
            r"batch\['y'\] holds 3 samples, batch\['x'\] holds 2",
        ),
        ({"x": torch.tensor(1.0)}, "scalar tensor"),
        (["text"], "holds no tensor"),
    ]:
        with pytest.raises(GradfixError, match=text):
            count_votes(network(), [batch], squares)


def test_unknown_names_and_modes_are_refused():
    with pytest.raises(GradfixError, match=r"no parameter 5\.weight"):
        count_votes(network(), [data(2)], squares, parameters=["0.weight", "5.weight"])
    with pytest.raises(GradfixError, match="vote 'median' is not known"):
        count_votes(network(), [data(2)], squares, vote="median")
    with pytest.raises(GradfixError, match="dtype 'int8'"):
        count_votes(network(), [data(2)], squares, dtype="int8")
    with pytest.raises(GradfixError, match="samples= has 3 ids"):
        count_votes(network(), [data(2)], squares, samples=["a", "b", "c"])
    with pytest.raises(GradfixError, match="none requires a gradient"):
        count_votes(network().requires_grad_(False), [data(2)], squares)


def test_batch_statistics_are_refused_by_name():
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, track_running_stats=False)).double()
    with pytest.raises(GradfixError, match="mix samples: 1;"):
        count_votes(model, [data(3)], squares)


@COUNTERS
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_losses_that_are_not_finite_name_the_sample(method, poison):
    batch = data(5)
    batch["y"][3, 0] = poison
    with pytest.raises(GradfixError, match="sample 3: the loss is not finite"):
        count_votes(network(), [part(batch, 0, 2), part(batch, 2, 5)], squares, method=method)


@COUNTERS
def test_gradients_that_are_not_finite_name_the_sample_and_the_parameter(method):
    def rooted(model, batch):
        return (model(batch["x"]) * batch["y"]).abs().sum(1).sqrt()  # √ has no slope at 0

    batch = data(5)
    batch["y"][3] = 0
    with pytest.raises(GradfixError, match=r"sample 3: the gradient of \d\.\w+ is not finite"):
        count_votes(network(), [part(batch, 0, 2), part(batch, 2, 5)], rooted, method=method)


@COUNTERS
@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_as_it_was(method, fails):
    model = network().train()
    model[2].eval()
    model[0].bias.requires_grad_(False)
    model[3].bias.grad = kept = torch.ones(3, dtype=torch.float64)
    modes = [module.training for module in model.modules()]
    hooks = [
        len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules()
    ]

    def loss(model, batch):
        assert not model.training
        torch.rand(3)
        if fails and len(batch["x"]) == 1:
            raise KeyError("mine")
        return squares(model, batch)

    state = torch.get_rng_state()
    if fails:
        with pytest.raises(KeyError, match="mine"):
            count_votes(model, [data(3), part(data(3), 0, 1)], loss, method=method, seed=4)
    else:
        count_votes(model, [data(3)], loss, method=method, seed=4)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes
    after = [
        len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules()
    ]
    assert after == hooks
    assert not any(parameter._post_accumulate_grad_hooks for parameter in model.parameters())
    assert [p.requires_grad for p in model.parameters()] == [True, False, True, True]
    assert model[3].bias.grad is kept
    assert torch.equal(kept, torch.ones(3, dtype=torch.float64))
    assert model[0].weight.grad is None


def test_parameters_without_a_gradient_and_buffers_are_listed():
    model = network()
    model.unused = nn.Linear(2, 2)
    model.register_buffer("offset", torch.zeros(1))
    names = [*dict(model.named_parameters()), "offset"]
    votes = count_votes(model, [data(3)], lambda m, b: squares(m[:4], b), parameters=names)
    assert votes.uncovered == ("unused.weight", "unused.bias", "offset")
    assert "unused.weight" not in votes


def test_works_where_the_caller_wants_no_gradients():
    model, batch = network(), data(3)
    expected = count_votes(model, [batch], squares)
    with torch.inference_mode():
        votes = count_votes(model, [{k: v.clone() for k, v in batch.items()}], squares)
    assert all(torch.equal(votes[name], expected[name]) for name in expected)


def test_progress_reports_samples():
    seen = []
    count_votes(network(), [data(2), data(2, 1)], squares, progress=lambda *step: seen.append(step))
    assert seen == [("counting votes", 2, 4, "samples"), ("counting votes", 4, 4, "samples")]


def test_tied_parameters_have_one_vote_under_the_name_asked_for():
    from tests.models import tiny_gpt2

    model = tiny_gpt2()
    batch = {"input_ids": torch.randint(0, 96, (3, 5))}

    def loss(model, batch):
        return model(**batch).logits.square().mean((1, 2))

    one = count_votes(model, [batch], loss, parameters=["lm_head.weight"])
    other = count_votes(model, [batch], loss, parameters=["transformer.wte.weight", "lm_head.weight"])
    assert set(one) == {"lm_head.weight"}
    assert set(other) == {"transformer.wte.weight"}
    assert torch.equal(one["lm_head.weight"], other["transformer.wte.weight"])


def test_samples_are_recognised_by_what_they_hold():
    model, batch = network(), data(4)
    whole = count_votes(model, [batch], squares).sample_ids
    parts = count_votes(model, [part(batch, 0, 1), part(batch, 1, 4)], squares).sample_ids
    assert whole == parts
    assert len(set(whole)) == 4
    assert count_votes(model, [batch], squares, samples="abcd").sample_ids == tuple("abcd")


def test_the_verification_holds_for_as_long_as_the_model_and_the_loss():
    """A second count runs no sample twice."""
    model, batch = tiny_bert(), {"input_ids": torch.randint(0, 96, (4, 5))}
    sizes = []

    def loss(model, batch):
        sizes.append(len(batch["input_ids"]))
        return model(**batch).logits.square().sum(1)

    first = count_votes(model, [batch], loss)
    assert sizes == [1, 1, 2, 4]
    sizes.clear()
    second = count_votes(model, [batch, batch], loss)
    assert sizes == [4, 4]
    assert all(torch.equal(2 * first[name].int(), second[name].int()) for name in first)


@pytest.mark.parametrize("vote", ["mean", "majority"])
def test_an_infinite_loss_of_finite_gradients_is_named_in_any_batch(vote):
    def loss(model, batch):
        return squares(model, batch) + batch["more"]

    first, second = ({**data(3, seed), "more": torch.zeros(3)} for seed in (0, 1))
    second["more"][1] = torch.inf
    with pytest.raises(GradfixError, match="sample 4: the loss is not finite"):
        count_votes(network(), [first, second], loss, vote=vote)


def test_an_infinite_gradient_of_a_finite_loss_is_named_by_both_ways():
    model = nn.Linear(4, 3)
    x, scale = torch.randn(6, 4), torch.ones(6, 1)
    x[5], scale[5] = 1e20, 1e20

    def loss(model, batch):
        out = model(batch[0])
        return ((out - out.detach()) * batch[1]).sum(1)

    for method in ("fast", "plain"):
        with pytest.raises(GradfixError, match="sample 5: the gradient of weight is not finite in 12 of 12"):
            count_votes(model, [(x, scale)], loss, method=method)


def test_gradients_are_counted_whose_sum_overflows():
    model = nn.Linear(4, 3)
    x, scale = torch.full((2, 4), 1e-3), torch.full((2, 1), 3e38)

    def loss(model, batch):
        out = model(batch[0])
        return ((out - out.detach()) * batch[1]).sum(1)

    fast, plain = (count_votes(model, [(x, scale)], loss, method=method) for method in ("fast", "plain"))
    assert all(torch.equal(fast[name], plain[name]) for name in ("weight", "bias"))


class OverflowsInBatches(torch.autograd.Function):
    """The same values; their gradient is infinite where more than two samples are computed together."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * (torch.inf if len(gradient) > 2 else 1.0)


def test_gradients_that_overflow_only_in_a_batch_are_told_as_that():
    model = nn.Linear(4, 3)

    def loss(model, batch):
        return OverflowsInBatches.apply(model(batch)).sum(1)

    with pytest.raises(
        GradfixError, match="samples 0 to 3: gradients overflow in the batch, but in no sample"
    ):
        count_votes(model, [torch.ones(4, 4)], loss, method="fast")


def test_a_gradient_near_the_largest_number_is_counted_still():
    model = nn.Linear(1, 1, bias=False)
    x, scale = torch.full((4, 1), 1.5e19), torch.full((4, 1), 2e19)
    x[0] = -x[0]

    def loss(model, batch):
        out = model(batch[0])
        return ((out - out.detach()) * batch[1]).sum(1)

    fast, plain = (count_votes(model, [(x, scale)], loss, method=method) for method in ("fast", "plain"))
    assert torch.equal(fast["weight"], plain["weight"])


def test_a_counted_model_is_let_go_of_at_once():
    gc.collect()
    gc.disable()  # nothing may wait for the collector: a model is large
    try:
        model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
        count_votes(model, [(torch.randn(4, 4),)], lambda model, batch: model(batch[0]).pow(2).sum(1))
        watched = weakref.ref(model)
        del model
        assert watched() is None
    finally:
        gc.enable()
