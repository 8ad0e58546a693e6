"""The canonical form of a low-rank product depends on the product alone."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradfix.checkpoints.lora.factors import canonical
from gradfix.checkpoints.lora.layout import targets

SIZES = st.integers(1, 9)


@settings(deadline=None)
@given(SIZES, SIZES, SIZES, st.integers(0, 2**32 - 1))
def test_the_product_stays_and_is_split_evenly(outputs: int, inputs: int, rank: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    up, down = torch.randn(outputs, rank, generator=generator), torch.randn(rank, inputs, generator=generator)
    new_up, new_down = canonical(up, down)
    assert new_up.shape == up.shape
    assert new_down.shape == down.shape
    torch.testing.assert_close(new_up @ new_down, up @ down, rtol=1e-4, atol=1e-4)
    # both Gram matrices are the singular values
    torch.testing.assert_close(new_up.T @ new_up, new_down @ new_down.T, rtol=1e-3, atol=1e-3)


def test_another_split_of_the_same_product_gives_the_same_factors() -> None:
    generator = torch.Generator().manual_seed(0)
    up, down = torch.randn(7, 3, generator=generator), torch.randn(3, 5, generator=generator)
    mix = torch.randn(3, 3, generator=generator)
    first, second = canonical(up, down), canonical(up @ mix, torch.linalg.inv(mix) @ down)
    for ours, theirs in zip(first, second, strict=True):
        signs = 1 if ours.shape[0] == 7 else 0
        agreement = (ours * theirs).sum(dim=0 if signs else 1).sign()
        torch.testing.assert_close(
            ours, theirs * (agreement if signs else agreement.unsqueeze(1)), rtol=1e-3, atol=1e-4
        )


def test_a_product_of_nothing_stays_nothing() -> None:
    up, down = canonical(torch.zeros(4, 2), torch.randn(2, 3))
    assert not up.any()
    assert not down.any()


def test_layers_are_named_by_their_last_part_only_where_that_means_no_other() -> None:
    modules = ["a.0.q", "a.0.v", "a.1.q", "a.1.v", "head"]
    assert targets(["a.0.q", "a.1.q"], modules) == ["q"]
    assert targets(["a.0.q"], modules) == ["a.0.q"]
