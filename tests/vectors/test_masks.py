"""Each mask strategy against its definition in one line, and its policies for ties, zeros and uncovered tensors."""

from fractions import Fraction
from math import comb

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gradfix.errors import GradfixError
from gradfix.recipes import Mask
from gradfix.vectors.mask_strategies import STRATEGIES, Block, significant_votes
from gradfix.vectors.masks import mask
from gradfix.votes.metadata import counts_dtype
from tests.builders import N, vector, votes

TAU = st.lists(st.sampled_from([-2.0, -1e-38, -0.0, 0.0, 1e-45, 0.5, 3.0]), min_size=1, max_size=40)


def sign(x: float) -> int:
    return (x > 0) - (x < 0)


DEFINITIONS = {
    "agreement": lambda t, v: t if sign(t) == sign(v) and t != 0 else 0.0,
    "force": lambda t, v: abs(t) * sign(v),
    "soft": lambda t, v: t * (abs(v) / N) if sign(t) == sign(v) and t != 0 else 0.0,
    "none": lambda t, v: t,
}


@pytest.mark.parametrize("strategy", DEFINITIONS)
@given(data=st.data(), tau=TAU)
def test_strategies_equal_their_definition_coordinate_by_coordinate(
    strategy: str, data: st.DataObject, tau: list[float]
) -> None:
    counts = data.draw(st.lists(st.integers(-N, N), min_size=len(tau), max_size=len(tau)))
    x, v = torch.tensor(tau), torch.tensor(counts, dtype=torch.int8)
    found = STRATEGIES[strategy].function(x, v, Block(voters=N))
    expected = torch.tensor([DEFINITIONS[strategy](float(t), c) for t, c in zip(x, counts, strict=True)])
    assert torch.equal(found, expected)


def chance_of(net: int, voters: int) -> Fraction:
    """P(net votes ≥ net) of fair coins, by counting outcomes."""
    outcomes = sum(comb(voters, heads) for heads in range(voters + 1) if 2 * heads - voters >= net)
    return Fraction(outcomes, 2**voters)


LEVELS = st.one_of(st.floats(0, 0.5), st.integers(1, 60).map(lambda power: 2.0**-power))


@given(voters=st.integers(0, 90), level=LEVELS)
def test_the_fewest_significant_votes_are_those_of_the_binomial_tail(voters: int, level: float) -> None:
    found = significant_votes(voters, level)
    significant = [net for net in range(1, voters + 1) if chance_of(net, voters) <= Fraction(level)]
    assert found == min(significant, default=voters + 1)


def test_significant_votes_of_thousands_are_those_of_the_library() -> None:
    from scipy.stats import binom

    for voters in (1000, 4999):
        for level in (0.3, 0.1, 1e-6):
            found = significant_votes(voters, level)
            heads = [(voters + net + 1) // 2 for net in (found - 1, found)]
            fewer, enough = (binom.sf(each - 1, voters, 0.5) for each in heads)
            assert enough <= level < fewer


@given(
    data=st.data(),
    tau=TAU,
    voters=st.integers(1, 300),
    level=st.sampled_from([0.0, 1e-6, 0.05, 0.1, 0.25, 0.5]),
)
def test_the_confident_mask_drops_exactly_what_the_sign_test_rejects(
    data: st.DataObject, tau: list[float], voters: int, level: float
) -> None:
    counts = data.draw(st.lists(st.integers(-voters, voters), min_size=len(tau), max_size=len(tau)))
    x, v = torch.tensor(tau), torch.tensor(counts).to(counts_dtype(voters))
    found = mask(vector(w=x), votes(voters, w=v), strategy="confident", level=level)["w"]
    for t, count, kept in zip(x.tolist(), counts, found.tolist(), strict=True):
        against = sign(t) * count < 0 and chance_of(abs(count), voters) <= Fraction(level)
        assert kept == (0.0 if against else t)


@given(data=st.data(), tau=TAU, voters=st.integers(1, 150))
def test_the_confident_mask_lies_between_naive_addition_and_agreement(
    data: st.DataObject, tau: list[float], voters: int
) -> None:
    counts = data.draw(st.lists(st.integers(-voters, voters), min_size=len(tau), max_size=len(tau)))
    x, v = torch.tensor(tau), torch.tensor(counts).to(counts_dtype(voters))
    whole, ballot = vector(w=x), votes(voters, w=v)

    def kept(level: float) -> Tensor:
        return mask(whole, ballot, strategy="confident", level=level)["w"]

    assert torch.equal(kept(0.0), x)
    assert torch.equal(kept(1e-300), x)
    # Half a chance rejects any net vote against; a tie is none.
    assert torch.equal(kept(0.5), torch.where(v == 0, x, mask(whole, ballot)["w"]))


def test_the_confident_mask_keeps_a_parameter_that_nobody_voted_on() -> None:
    tau = vector(seen=torch.ones(3), unseen=torch.ones(3))
    ballot = votes(seen=torch.tensor([N, -N, 0], dtype=torch.int8))
    masked = mask(tau, ballot, strategy="confident", level=0.1)
    assert masked["seen"].tolist() == [1.0, 0.0, 1.0]
    assert masked["unseen"].tolist() == [1.0, 1.0, 1.0]
    assert (masked.origin["uncovered"], masked.origin["level"]) == (["unseen"], 0.1)


def test_the_confident_mask_refuses_single_ballots_and_levels_that_are_none() -> None:
    tau, ones = vector(w=torch.ones(2)), torch.ones(2, dtype=torch.int8)
    with pytest.raises(GradfixError, match=r"a mean vote is one ballot.*--vote majority"):
        mask(tau, votes(vote="mean", w=ones), strategy="confident")
    with pytest.raises(GradfixError, match=r"one ballot.*found TaskVector"):
        mask(tau, tau, strategy="confident")
    with pytest.raises(GradfixError, match=r"expected counted votes.*found NoneType"):
        mask(tau, strategy="confident")
    for level in (-0.1, 0.51, float("nan")):
        with pytest.raises(GradfixError, match=r"from 0 to 0.5"):
            mask(tau, votes(w=ones), strategy="confident", level=level)


def test_a_tie_agrees_with_nothing_and_a_zero_stays_zero() -> None:
    tau, tied = torch.tensor([1.0, -1.0, 0.0]), torch.tensor([0, 0, 3], dtype=torch.int8)
    for strategy in ("agreement", "soft", "force"):
        assert not STRATEGIES[strategy].function(tau, tied, Block(voters=3)).any()


@given(st.integers(0, 700), st.integers(0, 700), st.integers(0, 2**32))
def test_the_random_mask_does_not_depend_on_how_a_tensor_is_cut(cut: int, length: int, seed: int) -> None:
    cut = min(cut, length)
    tau, nothing = torch.ones(length), torch.zeros(length)
    whole = STRATEGIES["random"].function(tau, nothing, Block(name="w", seed=seed))
    parts = [
        STRATEGIES["random"].function(tau[:cut], nothing[:cut], Block(name="w", seed=seed)),
        STRATEGIES["random"].function(tau[cut:], nothing[cut:], Block(name="w", seed=seed, offset=cut)),
    ]
    assert torch.equal(whole, torch.cat(parts))


def test_the_random_mask_is_fair_and_differs_by_name_and_seed() -> None:
    tau = torch.ones(100_000)
    drawn = [
        STRATEGIES["random"].function(tau, tau, Block(name=name, seed=seed))
        for name, seed in [("a", 0), ("b", 0), ("a", 1)]
    ]
    for kept in drawn:
        assert abs(float(kept.mean()) - 0.5) < 0.01
    assert abs(float((drawn[0] * drawn[1]).mean()) - 0.25) < 0.01
    assert abs(float((drawn[0] * drawn[2]).mean()) - 0.25) < 0.01


def test_magnitude_keeps_what_is_within_the_factor_of_the_scaled_reference() -> None:
    tau, reference = torch.tensor([1.0, -1.0, 1.0, 0.0]), torch.tensor([-0.1, 0.21, 0.049, 0.0])
    kept = STRATEGIES["magnitude"].function(tau, reference, Block(scale=10.0), factor=2.0)
    assert torch.equal(kept != 0, torch.tensor([True, False, False, False]))


def test_magnitude_scales_the_reference_to_the_tensors_mean() -> None:
    tau = vector(w=torch.tensor([1.0, 2.0, 3.0]))
    same_up_to_scale = vector(w=torch.tensor([-0.01, 0.02, 0.03]))
    assert torch.equal(mask(tau, same_up_to_scale, strategy="magnitude")["w"], tau["w"])
    with pytest.raises(GradfixError, match="votes have no size"):
        mask(tau, votes(w=torch.tensor([1, 1, 1], dtype=torch.int8)), strategy="magnitude")


def test_the_oracle_is_the_sign_of_a_reference_even_where_a_product_would_underflow() -> None:
    tau, oracle = vector(w=torch.tensor([1e-30, -1e-30])), vector(w=torch.tensor([1e-30, 1e-30]))
    assert mask(tau, oracle)["w"].tolist() == pytest.approx([1e-30, 0.0])


def test_a_parameter_without_votes_keeps_the_targets_value() -> None:
    tau = vector(seen=torch.ones(3), unseen=torch.ones(3))
    ballot = votes(seen=torch.tensor([1, -1, 0], dtype=torch.int8))
    masked = mask(tau, ballot)
    assert masked["seen"].tolist() == [1.0, 0.0, 0.0]
    assert masked["unseen"].tolist() == [0.0, 0.0, 0.0]
    assert masked.origin["uncovered"] == ["unseen"]
    assert mask(tau, None, strategy="none")["unseen"].tolist() == [1.0, 1.0, 1.0]


def test_a_mean_vote_is_one_ballot_however_many_samples() -> None:
    tau = vector(w=torch.ones(2))
    ballot = votes(samples=10, vote="mean", w=torch.tensor([1, -1], dtype=torch.int8))
    assert mask(tau, ballot, strategy="soft")["w"].tolist() == [1.0, 0.0]


def test_names_with_a_known_prefix_are_the_same_parameter() -> None:
    tau = vector(**{"bert.layer.weight": torch.ones(2)})
    assert mask(tau, votes(**{"layer.weight": torch.tensor([1, -1], dtype=torch.int8)}))[
        "bert.layer.weight"
    ].tolist() == [1, 0]


def test_refusals_say_what_to_do() -> None:
    tau = vector(w=torch.ones(2))
    with pytest.raises(GradfixError, match="unknown; choose from agreement"):
        mask(tau, strategy="agree")
    with pytest.raises(GradfixError, match="expected votes"):
        mask(tau)
    with pytest.raises(GradfixError, match="of another model"):
        mask(tau, votes(other=torch.ones(2, dtype=torch.int8)))
    with pytest.raises(GradfixError, match=r"w \[2\] against \[3\].*vocabular"):
        mask(tau, votes(w=torch.ones(3, dtype=torch.int8)))


def test_what_the_mask_kept_is_counted_while_it_is_read() -> None:
    masked = mask(
        vector(w=torch.tensor([3.0, -4.0, 0.0, 1.0])), votes(w=torch.tensor([1, 1, 1, 1], dtype=torch.int8))
    )
    assert masked.tally("w") is None
    list(masked.blocks("w"))
    tally = masked.tally("w")
    assert tally is not None
    assert (tally.coordinates, tally.kept, tally.square, tally.kept_square) == (3, 2, 26.0, 10.0)


def test_the_recipes_name_the_registered_strategies() -> None:
    from typing import get_args

    # Magnitude needs a reference that the command line has no option for.
    assert set(get_args(Mask)) == set(STRATEGIES) - {"magnitude"}
