"""The calls that replace torch's: the same output and input gradient, but no summed weight gradient.

Index letters as in :mod:`gradfix.votes.rules`. Each takes the pass's anchor, so that the backward pass reaches
it, and ``deliver`` functions that it calls with what the per-sample gradients are made of. Under autocast the
tensors arrive in the lower precision already.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional

from gradfix.votes.contributions import Contribution, Product, Rows, Summed
from gradfix.votes.layouts import Layout, by_sample
from gradfix.votes.recorder import Form, Recorder

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


class LinearFunction(Function):
    """Wx + b with W of shape (o, i), or (i, o) if transposed."""

    @staticmethod
    def forward(
        ctx: Any,
        anchor: Tensor,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        transposed: bool,
        deliveries: Sequence[Deliver],
        recorder: Recorder,
    ) -> Tensor:
        """Compute the output."""
        ctx.save_for_backward(x, weight)
        ctx.transposed, ctx.deliveries, ctx.recorder = transposed, deliveries, recorder
        if not transposed:
            output = functional.linear(x, weight, bias)
        elif bias is not None and x.ndim == 2:
            output = torch.addmm(bias, x, weight)
        else:
            output = x @ weight if bias is None else x @ weight + bias
        # torch computes many dimensions as two and gives a view of that, which could not be written to
        return torch.ops.aten._unsafe_view(output, output.shape)  # type: ignore[no-any-return]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Compute the input's gradient; hand on the factors of the weight's."""
        x, weight = ctx.saved_tensors
        recorder, N = ctx.recorder, ctx.recorder.samples
        back = None
        if ctx.needs_input_grad[1]:
            back = gradient.matmul(weight.t() if ctx.transposed else weight)
        recorder.watch(x, gradient)

        def product(layout: Layout) -> Contribution:
            factors = by_sample(gradient, layout, N), by_sample(x, layout, N)
            return Product(*(reversed(factors) if ctx.transposed else factors))

        forms = (product, lambda layout: summed_over_positions(by_sample(gradient, layout, N)))
        for deliver, form in zip(ctx.deliveries, forms, strict=True):
            if deliver is not None:
                deliver(form)
        return None, back, None, None, None, None, None


class EmbeddingFunction(Function):
    """Rows of a table."""

    @staticmethod
    def forward(
        ctx: Any,
        anchor: Tensor,
        weight: Tensor,
        ids: Tensor,
        left_out: int | None,
        deliver: Callable[[Form], None],
        recorder: Recorder,
    ) -> Tensor:
        """Compute the output."""
        ctx.save_for_backward(ids)
        ctx.rows, ctx.left_out, ctx.deliver, ctx.recorder = len(weight), left_out, deliver, recorder
        return torch.embedding(weight, ids)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, ...]:
        """Hand on the rows touched."""
        (ids,) = ctx.saved_tensors
        ctx.recorder.watch(gradient)

        def rows(layout: Layout) -> Contribution:
            N = ctx.recorder.samples
            places = by_sample(ids.unsqueeze(-1), layout, N).squeeze(-1)
            return Rows(places, by_sample(gradient, layout, N), ctx.rows, ctx.left_out)

        ctx.deliver(rows)
        return (None,) * 6


class LayerNormFunction(Function):
    """Layer normalisation over the last dimension."""

    @staticmethod
    def forward(
        ctx: Any,
        anchor: Tensor,
        x: Tensor,
        shape: list[int],
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        deliveries: Sequence[Deliver],
        recorder: Recorder,
    ) -> Tensor:
        """Compute the output."""
        output, mean, inverse = torch.native_layer_norm(x, shape, weight, bias, eps)
        ctx.save_for_backward(x, mean, inverse, weight, bias)
        ctx.shape, ctx.deliveries, ctx.recorder = shape, deliveries, recorder
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Compute the input's gradient; hand on Σ_t g x̂ and Σ_t g."""
        x, mean, inverse, weight, bias = ctx.saved_tensors
        N = ctx.recorder.samples
        gradient = gradient.contiguous()
        back = None
        if ctx.needs_input_grad[1]:
            back, _, _ = torch.ops.aten.native_layer_norm_backward(
                gradient, x, ctx.shape, mean, inverse, weight, bias, [True, False, False]
            )
        ctx.recorder.watch(gradient)

        def scale(layout: Layout) -> Contribution:
            return summed_over_positions(by_sample((x - mean).mul_(inverse).mul_(gradient), layout, N))

        forms = (scale, lambda layout: summed_over_positions(by_sample(gradient, layout, N)))
        for deliver, form in zip(ctx.deliveries, forms, strict=True):
            if deliver is not None:
                deliver(form)
        return None, back, None, None, None, None, None, None


class ConvolutionFunction(Function):
    """A convolution over one or two dimensions, by torch; its weight's factors by unfolding the input.

    G[n, o, (i, k)] = Σ_l g[n, o, l] x[n, i, l's position moved by offset k of the kernel], for each group of channels.
    """

    @staticmethod
    def forward(
        ctx: Any,
        anchor: Tensor,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        settings: tuple[list[int], list[int], list[int], int],
        deliveries: Sequence[Deliver],
        recorder: Recorder,
    ) -> Tensor:
        """Compute the output."""
        stride, padding, dilation, groups = settings
        ctx.save_for_backward(x, weight)
        ctx.settings, ctx.deliveries, ctx.recorder = settings, deliveries, recorder
        zeros = [0] * len(stride)
        return torch.convolution(x, weight, bias, stride, padding, dilation, False, zeros, groups)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Compute the input's gradient; hand on the factors of the weight's."""
        x, weight = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.settings
        N, back = ctx.recorder.samples, None
        if ctx.needs_input_grad[1]:
            zeros, mask = [0] * len(stride), [True, False, False]
            back, _, _ = torch.ops.aten.convolution_backward(
                gradient, x, weight, None, stride, padding, dilation, False, zeros, groups, mask
            )
        ctx.recorder.watch(x, gradient)
        channels = gradient.flatten(2).transpose(1, 2)

        def product(layout: Layout) -> Contribution:
            flat = (1,) * (2 - len(stride))  # one dimension is unfolded as an image of height 1
            image = x if len(stride) == 2 else x.unsqueeze(2)
            kernel = (*flat, *weight.shape[2:])
            edges = (0,) * len(flat) + tuple(padding)
            patches = functional.unfold(image, kernel, (*flat, *dilation), edges, (*flat, *stride))
            left = by_sample(channels, layout, N)
            right = by_sample(patches.transpose(1, 2), layout, N)
            if groups == 1:
                return Product(left, right)
            T = left.shape[1]
            parts = torch.einsum("ntgo,ntgi->ngoi", left.view(N, T, groups, -1), right.view(N, T, groups, -1))
            return Summed(parts.reshape(N, len(weight), -1), lambda: left.norm() * right.norm())

        forms = (product, lambda layout: summed_over_positions(by_sample(channels, layout, N)))
        for deliver, form in zip(ctx.deliveries, forms, strict=True):
            if deliver is not None:
                deliver(form)
        return None, back, None, None, None, None, None


class CutFunction(Function):
    """A parameter's values repeated for each sample."""

    @staticmethod
    def forward(
        ctx: Any,
        anchor: Tensor,
        repeated: Tensor,
        axis: int,
        shape: tuple[int, ...] | None,
        deliver: Callable[[Form], None],
        recorder: Recorder,
    ) -> Tensor:
        """Hand the values through."""
        ctx.axis, ctx.shape, ctx.deliver, ctx.recorder = axis, shape, deliver, recorder
        return repeated.view_as(repeated)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, ...]:
        """Hand on each sample's gradient, of ``shape``, or of its own rows if that is None."""
        N = ctx.recorder.samples
        ctx.recorder.watch(gradient)
        values = gradient.movedim(ctx.axis, 0)

        def gradients(layout: Layout) -> Contribution:
            if ctx.shape is None:
                rows = values.reshape(N, len(values) // N, -1)
            else:
                positions = values.reshape(N, len(values) // N, -1).sum(1)
                rows = positions.reshape(N, ctx.shape[0] if ctx.shape else 1, -1)
            return Summed(rows, values.norm)

        ctx.deliver(gradients)
        return (None,) * 6
