"""What one use of a parameter contributes to each sample's gradient, formed only a block of rows at a time.

Index letters: ``n`` sample of N, ``t`` position within a sample (token, pixel, …) of T, ``r`` row of the parameter
(its first dimension) of R, ``c`` the parameter's other dimensions, flattened, of C. A parameter without dimensions
has one row.
"""

import math
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from gradfix.arithmetic import largest
from gradfix.votes.fast.layouts import Layout


class Contribution(Protocol):
    """A part of the per-sample gradients of one parameter, shape (N, R, C).

    Attributes:
        dtype: In which the gradients are formed.
        held: Bytes of what it is formed from.
    """

    dtype: torch.dtype
    held: int

    def block(self, rows: slice, out: Tensor | None = None) -> Tensor:
        """Form the rows' gradients of every sample.

        Args:
            rows: Which rows of the parameter.
            out: Memory to write to where that saves an allocation, shape (N, r, C).

        Returns:
            Shape (N, r, C); the caller may overwrite it.
        """
        ...

    def magnitude(self) -> float:
        """Bound what the terms amounted to before they cancelled: the scale of rounding errors."""
        ...

    def largest(self) -> Tensor:
        """Bound the absolute value of every entry by a scalar, without waiting for the device."""
        ...


class Largest:
    """The largest absolute value of a tensor, found when it is first asked for, by whatever thread."""

    def __init__(self, values: Tensor) -> None:
        """Prepare.

        Args:
            values: Not changed until then.
        """
        self._values: Tensor | None = values
        self._found = torch.empty(0)

    def __call__(self) -> Tensor:
        """Give it: a scalar, on the device of the values."""
        values = self._values
        if values is not None:
            self._found = largest(values)
            self._values = None
        return self._found


class Product:
    """G[n, r, c] = Σ_t left[n, t, r] right[n, t, c]: linear layers and convolutions."""

    def __init__(self, left: Tensor, right: Tensor, bounds: Sequence[Largest] = ()) -> None:
        """Keep the factors.

        Args:
            left: Shape (N, T, R).
            right: Shape (N, T, C).
            bounds: Bounds on the absolute values of the two; their own largest by default.
        """
        left, right = left.detach(), right.detach()  # they may know their graph, and this may outlive it
        self.left, self.right = left, right
        self.dtype = left.dtype
        self.held = left.nbytes + right.nbytes
        self._bounds = bounds or (Largest(left), Largest(right))
        self._across = left.transpose(1, 2)

    def block(self, rows: slice, out: Tensor | None = None) -> Tensor:
        """Form the rows by one batched product."""
        if out is not None and out.dtype != self.dtype:
            return out.copy_(torch.bmm(self._across[:, rows], self.right))
        return torch.bmm(self._across[:, rows], self.right, out=out)

    def magnitude(self) -> float:
        """Bound by the product of norms."""
        return float(self.left.float().norm() * self.right.float().norm())

    def largest(self) -> Tensor:
        """Bound by T times the largest of either factor."""
        first, second = self._bounds
        return first() * second() * self.left.shape[1]


class Summed:
    """Gradients formed whole: biases, norms, and what is broadcast."""

    def __init__(self, values: Tensor, magnitude: Callable[[], Tensor]) -> None:
        """Keep the gradients.

        Args:
            values: Shape (N, R, C), or (N, R).
            magnitude: Computes the norm of the terms that were summed; only a verification asks.
        """
        values = values.detach()
        self.values = values if values.ndim == 3 else values.unsqueeze(-1)
        self._magnitude = magnitude
        self.dtype = values.dtype
        self.held = values.nbytes

    def block(self, rows: slice, out: Tensor | None = None) -> Tensor:
        """Copy the rows."""
        part = self.values[:, rows]
        return part.clone() if out is None else out.copy_(part)

    def magnitude(self) -> float:
        """Give the norm of the terms."""
        return float(self._magnitude())

    def largest(self) -> Tensor:
        """Give the largest."""
        return largest(self.values)


class Rows:
    """G[n, ids[n, t], c] += values[n, t, c]: embeddings, of which a sample touches few rows."""

    def __init__(self, ids: Tensor, values: Tensor, rows: int, left_out: int | None = None) -> None:
        """Sum the values of each row that a sample touches.

        Args:
            ids: Shape (N, T), integers in [0, R).
            values: Shape (N, T, C).
            rows: R.
            left_out: A row without a gradient (``padding_idx``).
        """
        values = values.detach()
        N, T, C = values.shape
        keys = (torch.arange(N, device=ids.device).unsqueeze(1) + ids * N).reshape(-1)
        # sorted by row, then by sample: a block of rows is a contiguous range
        touched, places = torch.unique(keys, return_inverse=True)
        sums = values.new_zeros((len(touched), C), dtype=torch.promote_types(values.dtype, torch.float32))
        sums.index_add_(0, places, values.reshape(N * T, C).to(sums.dtype))
        self.row, self.sample = touched // N, touched % N
        if left_out is not None and left_out >= 0:
            keep = self.row != left_out
            self.row, self.sample, sums = self.row[keep], self.sample[keep], sums[keep]
        self.sums, self.samples, self.dtype = sums, N, sums.dtype
        self.held = sums.nbytes + values.nbytes
        self._values = values

    def block(self, rows: slice, out: Tensor | None = None) -> Tensor:
        """Scatter the touched rows of the range into zeros."""
        shape = (self.samples, rows.stop - rows.start, self.sums.shape[1])
        dense = self.sums.new_zeros(shape) if out is None else out.zero_()
        return self.add_to(dense, rows)

    def add_to(self, dense: Tensor, rows: slice) -> Tensor:
        """Add the touched rows of the range to gradients of other uses, in place.

        Args:
            dense: Shape (N, r, C).
            rows: The range.

        Returns:
            ``dense``.
        """
        ends = torch.searchsorted(self.row, torch.tensor([rows.start, rows.stop], device=self.row.device))
        here = slice(int(ends[0]), int(ends[1]))
        if here.start < here.stop:
            places = (self.sample[here], self.row[here] - rows.start)
            dense[places] += self.sums[here].to(dense.dtype)  # (n, r) pairs are unique: no addend is lost
        return dense

    def magnitude(self) -> float:
        """Give the norm of the terms."""
        return float(self._values.norm())

    def largest(self) -> Tensor:
        """Give the largest."""
        return largest(self.sums)


Form = Callable[[Layout], Contribution]
"""Forms a contribution, once the layout is known."""


Deliver = Callable[[Form], None] | None


def summed_over_positions(values: Tensor) -> Summed:
    """Sum a sample's positions.

    Args:
        values: Shape (N, T, D).

    Returns:
        The contribution of shape (N, D).
    """
    wide = torch.promote_types(values.dtype, torch.float32)
    return Summed(values.sum(1, dtype=wide), lambda: values.norm() * math.sqrt(values.shape[1]))
