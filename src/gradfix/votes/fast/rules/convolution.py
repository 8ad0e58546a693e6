"""Convolutions over one or two dimensions, by unfolding. Index letters as in the registry."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional

from gradfix.votes.fast.contributions import Contribution, Deliver, Product, Summed, summed_over_positions
from gradfix.votes.fast.layouts import Layout, by_sample
from gradfix.votes.fast.recorder import Recorder
from gradfix.votes.fast.rules.registry import bound, lowered, rule


@rule("conv1d", "conv2d")
def convolution(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A linear layer on patches: G_n = Σ_l g[n,o,l] patch[n,i,l]."""
    names = "input weight bias stride padding dilation groups"
    x, weight, bias, stride, padding, dilation, groups = bound(names, args, kwargs)
    dims = 1 if func.__name__ == "conv1d" else 2
    own = [recorder.source(weight), recorder.source(bias)]
    layouts = [Layout.FIRST] if x.ndim == dims + 2 and x.shape[0] % recorder.samples == 0 else []
    other_graph = any(
        value is not None and source is None and value.requires_grad
        for value, source in zip((weight, bias), own, strict=True)
    )
    if other_graph or recorder.source(x) is not None or not layouts or isinstance(padding, str):
        return NotImplemented
    settings = [
        [default] * dims
        if given is None
        else [given] * dims
        if isinstance(given, int)
        else list(given) * (dims // len(given))
        for given, default in ((stride, 1), (padding, 0), (dilation, 1))
    ]
    deliveries = [
        source and recorder.use(source, f"{func.__name__} {what}", layouts)
        for what, source in zip(("weight", "bias"), own, strict=True)
    ]
    x, weight, bias = lowered(x, weight, bias)
    arguments = (x, weight.detach(), bias, (*settings, groups or 1), deliveries, recorder)
    return ConvolutionFunction.apply(recorder.anchor, *arguments)  # type: ignore[no-untyped-call]


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
        N = ctx.recorder.samples
        bounds = ctx.recorder.watch(x, gradient, later=True)
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
                return Product(left, right, bounds)
            T = left.shape[1]
            parts = torch.einsum("ntgo,ntgi->ngoi", left.view(N, T, groups, -1), right.view(N, T, groups, -1))
            return Summed(parts.reshape(N, len(weight), -1), lambda: left.norm() * right.norm())

        forms = (product, lambda layout: summed_over_positions(by_sample(channels, layout, N)))
        for deliver, form in zip(ctx.deliveries, forms, strict=True):
            if deliver is not None:
                deliver(form)
        back = None
        if ctx.needs_input_grad[1]:
            zeros, mask = [0] * len(stride), [True, False, False]
            back, _, _ = torch.ops.aten.convolution_backward(
                gradient, x, weight, None, stride, padding, dilation, False, zeros, groups, mask
            )
        return None, back, None, None, None, None, None
