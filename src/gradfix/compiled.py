"""Loops over blocks of numbers, compiled to machine code when they are first called, and kept by numba after that.

Each does in one pass over memory what torch does in several, with the same result. They take flat, contiguous numpy
arrays; bfloat16 comes as the uint16 of its bits. :mod:`gradfix.arithmetic` chooses between them and torch.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numba import njit
from numpy.typing import NDArray

Loop = TypeVar("Loop", bound=Callable[..., Any])
Floats = NDArray[np.float32]
Bits = NDArray[np.uint16]
Counts = NDArray[np.signedinteger[Any]]

CHUNK = 512
"""Numbers that are summed in float32: so few counts of 16 bits are exact there."""


def _loop(function: Loop, **options: Any) -> Loop:
    """Have a function compiled at its first call; where there is no place to keep the result, in each process."""
    compile_it = partial(njit, nogil=True, error_model="numpy", **options)
    compiled: Loop
    try:
        compiled = compile_it(cache=True)(function)
    except RuntimeError:
        compiled = compile_it()(function)
    return compiled


def _summing(function: Loop) -> Loop:
    """Do so, and let sums of floats be made in any order, as many lanes at a time as the processor has."""
    return _loop(function, fastmath={"reassoc"})


@_loop
def _wide(bits: np.uint16) -> np.float32:
    """Widen a bfloat16."""
    wide: np.float32 = np.uint32(bits << 16).view(np.float32)
    return wide


@_loop
def add_signs(net: Counts, numbers: Floats, kept: int) -> None:
    """Add the sign of each number to a count, of which the bits of ``kept`` count: -1 for all, 0 for none."""
    nothing = np.float32(0)
    for i in range(net.size):
        sign = (1 if numbers[i] > nothing else 0) - (1 if numbers[i] < nothing else 0)
        net[i] = (net[i] & kept) + sign


@_loop
def add_integer_signs(net: Counts, numbers: NDArray[np.int16], kept: int) -> None:
    """Do the same with integers."""
    for i in range(net.size):
        net[i] = (net[i] & kept) + ((numbers[i] >> 15) | (numbers[i] != 0))


@_summing
def subtract(first: Floats, second: Floats, difference: Floats) -> bool:
    """Subtract; tell whether every difference is finite."""
    nothing = np.float32(0)
    total = nothing
    for i in range(difference.size):
        value = first[i] - second[i]
        difference[i] = value
        total += value * nothing  # not a number, unless the value is finite
    return bool(total == nothing)


@_summing
def subtract_bfloat16(first: Bits, second: Bits, difference: Floats) -> bool:
    """Do the same with numbers of 16 bits."""
    nothing = np.float32(0)
    total = nothing
    for i in range(difference.size):
        value = _wide(first[i]) - _wide(second[i])
        difference[i] = value
        total += value * nothing
    return bool(total == nothing)


@_loop
def keep_agreeing(tau: Floats, votes: Counts, kept: Floats) -> None:
    """Copy what has the sign of its vote; the rest becomes 0."""
    nothing, one = np.float32(0), np.float32(1)
    for i in range(kept.size):
        sign = (one if votes[i] > 0 else nothing) - (one if votes[i] < 0 else nothing)
        agreeing = tau[i] * sign
        kept[i] = (nothing if agreeing < nothing else agreeing) * sign


@_loop
def keep_unopposed(tau: Floats, votes: Counts, against: np.float32, kept: Floats) -> None:
    """Copy what fewer net votes oppose than ``against``; the rest becomes 0."""
    nothing, one = np.float32(0), np.float32(1)
    for i in range(kept.size):
        sign = (one if tau[i] > nothing else nothing) - (one if tau[i] < nothing else nothing)
        share = sign * np.float32(votes[i]) + against
        kept[i] = min(max(share, nothing), one) * tau[i]


@_summing
def nonzero_and_square(numbers: Floats) -> tuple[int, float]:
    """Count what is not 0, and sum the squares."""
    nonzero, square = 0, 0.0
    for start in range(0, numbers.size, CHUNK):
        part = numbers[start : start + CHUNK]
        found = squares = np.float32(0)
        for i in range(part.size):
            found += np.float32(1) if part[i] != np.float32(0) else np.float32(0)
            squares += part[i] * part[i]
        nonzero += int(found)
        square += float(squares)
    return nonzero, square


@_summing
def decided_and_net(votes: Counts) -> tuple[int, int]:
    """Count votes that are not 0, and sum their absolute values; of at most 16 bits."""
    decided = net = 0
    for start in range(0, votes.size, CHUNK):
        part = votes[start : start + CHUNK]
        found = sizes = np.float32(0)
        for i in range(part.size):
            found += np.float32(1) if part[i] != 0 else np.float32(0)
            sizes += abs(np.float32(part[i]))
        decided += int(found)
        net += int(sizes)
    return decided, net


@_summing
def add(base: Floats, delta: Floats, alpha: np.float32, result: Floats) -> tuple[int, int, bool]:
    """Compute base + α delta; count what is not 0 of delta, and what differs from the base; tell if all is finite."""
    nothing = np.float32(0)
    wanted = changed = 0
    total = nothing
    before, after = base.view(np.uint32), result.view(np.uint32)
    for start in range(0, result.size, CHUNK):
        stop = min(start + CHUNK, result.size)
        moving = moved = nothing
        for i in range(start, stop):
            result[i] = base[i] + alpha * delta[i]
            moving += np.float32(1) if delta[i] != nothing else nothing
        for i in range(start, stop):
            moved += np.float32(1) if after[i] != before[i] else nothing
            total += result[i] * nothing
        wanted += int(moving)
        changed += int(moved)
    return wanted, changed, bool(total == nothing)


@_summing
def add_bfloat16(base: Bits, delta: Floats, alpha: np.float32, result: Bits) -> tuple[int, int, bool]:
    """Do the same with a base of 16 bits, to the nearest of which the sum is rounded, and of two the even one."""
    nothing = np.float32(0)
    wanted = changed = 0
    total = nothing
    exact = np.empty(CHUNK, np.float32)
    bits = exact.view(np.uint32)
    for start in range(0, result.size, CHUNK):
        stop = start + CHUNK
        before, change, after = base[start:stop], delta[start:stop], result[start:stop]
        moving = moved = nothing
        for i in range(after.size):
            exact[i] = _wide(before[i]) + alpha * change[i]
            moving += np.float32(1) if change[i] != nothing else nothing
            total += exact[i] * nothing  # before it is rounded: that may make a number of what is none
        for i in range(after.size):
            odd = (bits[i] >> np.uint32(16)) & np.uint32(1)
            bits[i] = (bits[i] + np.uint32(0x7FFF) + odd) >> np.uint32(16)
        for i in range(after.size):
            after[i] = bits[i]
        for i in range(after.size):
            moved += np.float32(1) if after[i] != before[i] else nothing
            total += _wide(after[i]) * nothing
        wanted += int(moving)
        changed += int(moved)
    return wanted, changed, bool(total == nothing)


@_loop
def largest_bits(bits: Counts, magnitude: np.signedinteger[Any]) -> int:
    """Find the largest of ``bits & magnitude``; both are integers of one width."""
    found = bits.dtype.type(0)
    for i in range(bits.size):
        # As wide as they are: wider ones would be compared one by one.
        size = bits.dtype.type(bits[i] & magnitude)
        found = size if size > found else found
    return int(found)
