"""What compiled loops give is what torch gives, bit by bit, whatever the numbers."""

import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from gradfix import arithmetic, compiled
from gradfix.arithmetic import (
    add_rounded,
    decided_and_net,
    keep_agreeing,
    keep_unopposed,
    largest,
    nonzero_and_square,
    sign_adder,
    subtract,
)

SIZES = [1, 511, 512, 513, 3000]  # parts of a chunk, whole ones, and their tails
FORMATS = [torch.bfloat16, torch.float32]
VOTES = [torch.int8, torch.int16]


def both(monkeypatch: pytest.MonkeyPatch, function: Callable[[], object]) -> tuple[object, object]:
    """Compute by loops, then by torch."""
    monkeypatch.setattr(arithmetic, "COMPILED_FROM", 0)
    assert arithmetic._compiled_for(torch.zeros(1)) is compiled
    looped = function()
    monkeypatch.setattr(arithmetic, "COMPILED_FROM", 1 << 60)
    return looped, function()


def numbers(size: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Of all magnitudes and both signs, zeros, numbers too small for a normal one, and the largest among them."""
    generator = torch.Generator().manual_seed(seed)
    some = torch.randn(size, generator=generator) * 10.0 ** torch.randint(
        -40, 38, (size,), generator=generator
    )
    some[torch.randint(0, 5, (size,), generator=generator) == 0] = 0.0
    some[:1] = torch.finfo(torch.bfloat16).max
    return some.to(dtype)


def votes(size: int, dtype: torch.dtype) -> Tensor:
    largest = torch.iinfo(dtype).max
    found = torch.randint(-3, 4, (size,), generator=torch.Generator().manual_seed(7))
    found[:2] = torch.tensor([largest, -largest])[:size]
    return found.to(dtype)


def same(one: Tensor, other: Tensor) -> bool:
    """Alike in every bit; of zeros the sign is not asked."""
    return one.dtype == other.dtype and torch.equal(one + 0.0, other + 0.0)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", FORMATS)
def test_differences(size, dtype, monkeypatch):
    first, second = numbers(size, 0, dtype), numbers(size, 1, dtype)
    (looped, fine), (plain, expected) = both(monkeypatch, lambda: subtract(first, second))
    assert same(looped, plain)
    assert fine == expected


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", FORMATS)
def test_what_is_not_finite_is_noticed_wherever_it_stands(wrong, dtype, monkeypatch):
    for place in (0, 511, 600, 999):
        bad, good = torch.ones(1000, dtype=dtype), torch.ones(1000, dtype=dtype)
        bad[place] = wrong
        for one, other in ((bad, good), (good, bad)):
            assert [fine for _, fine in both(monkeypatch, lambda a=one, b=other: subtract(a, b))] == [
                False
            ] * 2
        added = both(monkeypatch, lambda b=bad: add_rounded(b, torch.zeros(1000), 1.0, dtype))
        assert [each.finite for each in added] == [False, False]


@pytest.mark.parametrize("bits", [0x7FFFFFFF, -1, 0x7F800001])
def test_no_kind_of_what_is_no_number_is_rounded_to_one(bits, monkeypatch):
    delta = torch.zeros(600)
    delta.view(torch.int32)[511] = bits
    added = both(monkeypatch, lambda: add_rounded(torch.ones(600).bfloat16(), delta, 1.0, torch.bfloat16))
    assert [each.finite for each in added] == [False, False]


@pytest.mark.parametrize("dtype", FORMATS)
def test_a_sum_that_leaves_the_range_is_not_finite(dtype, monkeypatch):
    base = torch.full((600,), torch.finfo(dtype).max, dtype=dtype)
    added = both(monkeypatch, lambda: add_rounded(base, base.float(), 1.0, dtype))
    assert [each.finite for each in added] == [False, False]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", VOTES)
def test_masks(size, dtype, monkeypatch):
    tau, signal = numbers(size, 2), votes(size, dtype)
    for mask in (keep_agreeing, lambda t, v: keep_unopposed(t, v, 1), lambda t, v: keep_unopposed(t, v, 3)):
        looped, plain = both(monkeypatch, lambda m=mask: m(tau, signal))
        assert same(looped, plain)
        assert looped.any() or size == 1


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("alpha", [1.0, 0.7, 0.0, -3.0])
def test_sums(size, dtype, alpha, monkeypatch):
    base = numbers(size, 3, dtype)
    delta = numbers(size, 4) * 1e-3
    delta[: size // 2] = (
        base[: size // 2].float() / 300
    )  # about half of what the format tells apart: ties and near them
    looped, plain = both(monkeypatch, lambda: add_rounded(base, delta, alpha, dtype))
    assert same(looped.values, plain.values)
    assert (looped.wanted, looped.finite) == (plain.wanted, plain.finite)
    assert looped.changed == plain.changed or not alpha


def test_sums_are_rounded_to_the_nearest_and_of_two_to_the_even_one(monkeypatch):
    bits = torch.arange(
        2**16 - 2**8, dtype=torch.int32
    )  # every bfloat16 but the last ones, as the upper half
    base = (bits << 16).view(torch.float32)
    base = base[base.isfinite()]
    for half in (0x7FFF, 0x8000, 0x8001):
        exact = (base.view(torch.int32) + half).view(torch.float32)
        exact = exact[exact.isfinite()]
        looped, plain = both(
            monkeypatch, lambda e=exact: add_rounded(torch.zeros_like(e).bfloat16(), e, 1.0, torch.bfloat16)
        )
        assert same(looped.values, plain.values)


@pytest.mark.parametrize("size", SIZES)
def test_counts(size, monkeypatch):
    block = numbers(size, 5).clamp(-1e3, 1e3)
    (some, square), (expected, about) = both(monkeypatch, lambda: nonzero_and_square(block))
    assert some == expected
    assert square == pytest.approx(about, rel=1e-5)
    for dtype in VOTES:
        for signal in (votes(size, dtype), torch.full((size,), torch.iinfo(dtype).max, dtype=dtype)):
            looped, plain = both(monkeypatch, lambda v=signal: decided_and_net(v))
            assert looped == plain


@pytest.mark.parametrize("dtype", [torch.float32, torch.int16])
@pytest.mark.parametrize("counts", [torch.int8, torch.int16, torch.int32])
def test_signs(dtype, counts, monkeypatch):
    def added() -> Tensor:
        net = torch.full((40, 50), 7, dtype=counts)
        block = torch.empty(40, 50, dtype=dtype)
        add_signs = sign_adder(net, block)
        for seed in range(3):
            block.copy_(numbers(2000, seed).clamp(-3e4, 3e4).view(40, 50))
            add_signs(seed > 0)
        return net

    looped, plain = both(monkeypatch, added)
    assert torch.equal(looped, plain)
    assert plain.unique().numel() > 3


@pytest.mark.parametrize("special", [None, -torch.inf, torch.nan, -torch.nan])
@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("size", SIZES)
def test_the_largest_absolute_value(size, dtype, special, monkeypatch):
    block = numbers(size, 4, dtype)
    block[0] = -block[0]
    if special is not None:
        block[size // 2] = special
    expected = block.float().abs().max()
    for found in both(monkeypatch, lambda: largest(block)):
        assert torch.equal(found.nan_to_num(-1.0), expected.nan_to_num(-1.0))
        assert found.dtype == torch.float32


def test_blocks_that_loops_cannot_take_are_left_to_torch(monkeypatch):
    monkeypatch.setattr(arithmetic, "COMPILED_FROM", 0)
    half = torch.ones(4, 6).half()
    assert same(subtract(half, half)[0], torch.zeros(4, 6))
    turned = torch.randn(4, 6).t()
    assert same(subtract(turned, torch.ones(6, 4))[0], turned - 1)
    assert same(subtract(torch.ones(4, 6), torch.ones(1, 6))[0], torch.zeros(4, 6))  # of another shape, too
    assert add_rounded(torch.ones(3), torch.ones(3, dtype=torch.float64), 1.0, torch.float32).changed == 3
    assert add_rounded(torch.ones(3, dtype=torch.float64), torch.ones(3), 0.5, torch.float32).changed == 3
    assert same(keep_agreeing(torch.tensor([1.0, -2.0]), torch.tensor([0.5, 0.5])), torch.tensor([1.0, 0.0]))


def test_without_numba_torch_computes(monkeypatch):
    monkeypatch.setattr(arithmetic, "COMPILED_FROM", 0)
    monkeypatch.setitem(sys.modules, "gradfix.compiled", None)
    monkeypatch.delattr("gradfix.compiled")
    arithmetic._loops.cache_clear()
    try:
        assert arithmetic._compiled_for(torch.ones(1)) is None
        assert subtract(torch.ones(2), torch.ones(2))[1]
    finally:
        arithmetic._loops.cache_clear()


def test_a_cache_that_cannot_be_written_stops_nothing(monkeypatch):
    calls = []

    def loop(*arguments: object) -> str:
        calls.append(arguments)
        if len(calls) == 1:
            raise OSError(122, "Disk quota exceeded")
        return "done"

    assert arithmetic._run(loop, 1) == "done"
    assert calls == [(1,), (1,)]


def test_small_models_do_not_wait_for_numba():
    program = (
        "import torch, sys; from gradfix import arithmetic as a; a.subtract(torch.ones(99), torch.ones(99))"
    )
    found = subprocess.run(
        [sys.executable, "-c", f"{program}; print('numba' in sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.split() == ["False"]
