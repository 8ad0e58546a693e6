"""Arithmetic on blocks of numbers in the processor's memory: where it pays, in one pass, by loops that numba compiled.

A block that is worth it is read and written once where torch would do so for each of several operations. What comes
out is the same bit by bit, but for sums of squares, whose last digits depend on the order.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

COMPILED_FROM = 1 << 16
"""Numbers of a block from which compiled loops are used: a model of small tensors needn't wait for numba to load."""


@cache
def _loops() -> ModuleType | None:
    """Load the compiled loops; None where numba can't be loaded, as it refuses a numpy newer than it knows."""
    try:
        from gradfix import compiled
    except (ImportError, AttributeError):  # or a module on the path has the name of one that it looks for
        return None
    return compiled


def _compiled_for(*blocks: Tensor) -> ModuleType | None:
    """Give the compiled loops where they can take the blocks, and are worth it: they don't look where a block ends."""
    shape = blocks[0].shape
    fits = all(
        block.device.type == "cpu" and block.is_contiguous() and block.shape == shape for block in blocks
    )
    return _loops() if fits and shape.numel() >= COMPILED_FROM else None


def _run(loop: Any, *arguments: Any) -> Any:
    """Call a loop. The first call writes it to numba's cache; without room there, it is used as it is."""
    try:
        return loop(*arguments)
    except OSError:
        return loop(*arguments)


def _flat(block: Tensor) -> NDArray[Any]:
    """View a block as the loops take it."""
    flat = block.detach().view(-1)
    return (flat.view(torch.uint16) if flat.dtype == torch.bfloat16 else flat).numpy()


def is_finite(block: Tensor) -> bool:
    """Whether a floating-point block holds neither NaN nor infinity.

    One sum decides almost always: NaN and infinity survive every addition. Only a sum that overflowed by itself
    needs the slower look at each element.

    Args:
        block: Any shape.

    Returns:
        True for a block of finite numbers, and for an empty one.
    """
    if block.dtype.itemsize == 1:  # formats of eight bits have no sum
        block = block.to(torch.float32)
    return math.isfinite(float(block.sum())) or bool(torch.isfinite(block).all())


def largest(values: Tensor) -> Tensor:
    """Find the largest absolute value, without waiting for the device.

    Args:
        values: Any shape, floating point, on any device.

    Returns:
        A scalar in float32 at least; not a number where one of them is none.
    """
    wide = torch.promote_types(values.dtype, torch.float32)
    if not values.numel():
        return values.new_zeros((), dtype=wide)
    loops = _compiled_for(values)
    if loops is not None and values.dtype in {torch.bfloat16, torch.float32}:
        # Without their signs, numbers are in the order of their bits, and what is no number is beyond infinity.
        integers = torch.int16 if values.dtype == torch.bfloat16 else torch.int32
        bits = values.detach().view(-1).view(integers).numpy()
        found = _run(loops.largest_bits, bits, bits.dtype.type(torch.iinfo(integers).max))
        return torch.tensor(found, dtype=integers).view(values.dtype).to(wide)
    if values.is_contiguous():  # twelve times as fast as the norm there, and half as fast elsewhere
        low, high = torch.aminmax(values)
        return torch.maximum(high, -low).to(wide)
    norm: Tensor = torch.linalg.vector_norm(values, ord=math.inf)
    return norm.to(wide)


def count_nonzero(block: Tensor) -> int:
    """Count what is not 0; numpy compares ten times as fast as torch on a CPU.

    Args:
        block: Any shape, float32, float64 or integer, on the CPU.

    Returns:
        The count.
    """
    return int(np.count_nonzero(np.not_equal(block.numpy(), 0)))


def count_different(one: Tensor, other: Tensor) -> int:
    """Count where two blocks of one dtype differ bit by bit.

    Args:
        one: Any shape, floating point, on the CPU.
        other: The same shape and dtype.

    Returns:
        The count; −0 differs from 0.
    """
    width = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[one.dtype.itemsize]
    return int(np.count_nonzero(np.not_equal(one.view(width).numpy(), other.view(width).numpy())))


def nonzero_and_square(block: Tensor) -> tuple[int, float]:
    """Count what is not 0, and sum the squares.

    Args:
        block: Any shape, float32, on the CPU.

    Returns:
        The two.
    """
    loops = _compiled_for(block)
    if loops is not None and block.dtype == torch.float32:
        nonzero, square = _run(loops.nonzero_and_square, _flat(block))
        return int(nonzero), float(square)
    flat = block.flatten()
    return count_nonzero(block), float(flat.dot(flat))


def decided_and_net(votes: Tensor) -> tuple[int, int]:
    """Count votes that are not 0, and sum their absolute values.

    Args:
        votes: Integers on the CPU; never the lowest number of their type, whose absolute value has no room in it.

    Returns:
        The two.
    """
    loops = _compiled_for(votes)
    if loops is not None and votes.dtype in {torch.int8, torch.int16}:
        decided, net = _run(loops.decided_and_net, _flat(votes))
        return int(decided), int(net)
    counts = votes.numpy()
    # A sum in 32 bits takes half the time where it can't overflow.
    largest = counts.size * np.iinfo(counts.dtype).max
    wide = np.int32 if largest <= np.iinfo(np.int32).max else np.int64
    return int(np.count_nonzero(counts)), int(np.abs(counts).sum(dtype=wide))


def subtract(first: Tensor, second: Tensor) -> tuple[Tensor, bool]:
    """Compute first − second in float32.

    Args:
        first: Any shape, floating point, on the CPU.
        second: The same shape.

    Returns:
        The difference, and whether all of it is finite.
    """
    loops = _compiled_for(first, second)
    if loops is not None and first.dtype == second.dtype and first.dtype in {torch.bfloat16, torch.float32}:
        loop = loops.subtract if first.dtype == torch.float32 else loops.subtract_bfloat16
        difference = torch.empty(first.shape)
        return difference, bool(_run(loop, _flat(first), _flat(second), _flat(difference)))
    difference = first.to(torch.float32, copy=True).sub_(second.to(torch.float32))
    return difference, is_finite(difference)


def keep_agreeing(tau: Tensor, signal: Tensor) -> Tensor:
    """Keep what has the sign of the signal, which is not 0; the rest becomes 0.

    Args:
        tau: Float32, any shape.
        signal: Numbers of the same shape.

    Returns:
        A new block.
    """
    loops = _compiled_for(tau, signal)
    if loops is not None and _is_voted(tau, signal):
        kept = torch.empty_like(tau)
        _run(loops.keep_agreeing, _flat(tau), _flat(signal), _flat(kept))
        return kept
    # Arithmetic, because a branch on random signs is 30 times as slow.
    sign = signal.sign().to(tau.dtype)
    return (tau * sign).relu_().mul_(sign)


def keep_unopposed(tau: Tensor, votes: Tensor, against: int) -> Tensor:
    """Keep what fewer net votes oppose than so many; the rest becomes 0.

    Args:
        tau: Float32, any shape.
        votes: Integers of the same shape.
        against: At least 1.

    Returns:
        A new block.
    """
    loops = _compiled_for(tau, votes)
    if loops is not None and _is_voted(tau, votes):
        kept = torch.empty_like(tau)
        _run(loops.keep_unopposed, _flat(tau), _flat(votes), np.float32(against), _flat(kept))
        return kept
    # sign(τ_i) v_i + a is at most 0 where τ_i is dropped and at least 1 elsewhere: a float without a branch.
    return tau.sign().mul_(votes).add_(against).clamp_(0, 1).mul_(tau)


def _is_voted(tau: Tensor, signal: Tensor) -> bool:
    return tau.dtype == torch.float32 and signal.dtype in {torch.int8, torch.int16}


def add_scaled(base: Tensor, delta: Tensor, alpha: float) -> Tensor:
    """Compute base + α·delta in float32, or in float64 for a float64 base.

    Args:
        base: θ_B, any floating dtype.
        delta: m ⊙ τ, float32, of the same shape.
        alpha: Scaling coefficient.

    Returns:
        The sum, not rounded to the base's dtype yet.
    """
    wide = torch.promote_types(base.dtype, torch.float32)
    # Not torch.add(…, alpha=…): it fuses product and sum in its vector loop but not in the loop's tail, so the
    # last bit would depend on how a tensor is cut into blocks.
    scaled = delta.to(wide) if alpha == 1 else delta.to(wide).mul(alpha)
    return base.to(wide, copy=True).add_(scaled)


@dataclass(frozen=True)
class Added:
    """A block of a sum.

    Attributes:
        values: The numbers.
        wanted: How many should differ from the base.
        changed: How many do, bit by bit.
        finite: Whether all are finite.
    """

    values: Tensor
    wanted: int
    changed: int
    finite: bool


def add_rounded(base: Tensor, delta: Tensor, alpha: float, dtype: torch.dtype) -> Added:
    """Compute base + α·delta as :func:`add_scaled`, and round it to the nearest number of a format.

    Args:
        base: θ_B, any floating dtype, on the CPU.
        delta: m ⊙ τ, float32, of the same shape.
        alpha: Scaling coefficient.
        dtype: Of the result.

    Returns:
        The sum, and what became of the base.
    """
    loops = _compiled_for(base, delta)
    formats = base.dtype, delta.dtype
    if loops is not None and formats == (dtype, torch.float32) and dtype in {torch.bfloat16, torch.float32}:
        loop = loops.add if dtype == torch.float32 else loops.add_bfloat16
        values = torch.empty_like(base)
        wanted, changed, finite = _run(loop, _flat(base), _flat(delta), np.float32(alpha), _flat(values))
        return Added(values, int(wanted) if alpha else 0, int(changed), bool(finite))
    exact = add_scaled(base, delta, alpha)
    values = exact.to(dtype)
    wanted = count_nonzero(delta) if alpha else 0
    # What is not finite stays so when it is rounded.
    return Added(values, wanted, count_different(values, base.to(dtype)) if wanted else 0, is_finite(values))


def sign_adder(net: Tensor, numbers: Tensor) -> Callable[[bool], None]:
    """Prepare to add signs again and again.

    Args:
        net: Memory for counts of the shape of the numbers, integers, changed in place.
        numbers: Float32 or 16-bit integers.

    Returns:
        Adds the sign of each number that is there then to its count, or where told False begins to count with it; what
        is left of the numbers has no meaning.
    """
    loops = _compiled_for(net, numbers)
    floating = numbers.is_floating_point()
    if loops is not None and numbers.dtype in {torch.float32, torch.int16}:
        loop, counts, block = (
            loops.add_signs if floating else loops.add_integer_signs,
            _flat(net),
            _flat(numbers),
        )
        # As wide as the counts: wider ones would be computed with one by one.
        masks = [counts.dtype.type(0), counts.dtype.type(-1)]
        return lambda kept: _run(loop, counts, block, masks[kept])

    def add(kept: bool) -> None:
        # The two are made alike first: torch adds numbers of two formats one by one.
        signs = (numbers.sign_() if floating else numbers.clamp_(-1, 1)).to(net.dtype)
        net.add_(signs) if kept else net.copy_(signs)

    return add
