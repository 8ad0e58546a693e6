"""Linear layers and matrix products. Index letters as in the registry."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional

from gradfix.votes.fast.contributions import Contribution, Deliver, Product, summed_over_positions
from gradfix.votes.fast.layouts import Layout, by_sample, possible
from gradfix.votes.fast.recorder import Recorder
from gradfix.votes.fast.rules.broadcast import meet
from gradfix.votes.fast.rules.registry import bound, lowered, rule


@rule("linear")
def linear(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Wx + b: G_n = Σ_t g[n,t,o] x[n,t,i]."""
    x, weight, bias = bound("input weight bias", args, kwargs)
    return _linear(recorder, "linear", x, weight, bias, transposed=False)


@rule("addmm")
def addmm(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Transformers' Conv1D: the weight is stored transposed, (i, o)."""
    bias, x, weight, beta, alpha = bound("input mat1 mat2 beta alpha", args, kwargs)
    if (1 if beta is None else beta) != 1 or (1 if alpha is None else alpha) != 1:
        return NotImplemented
    return _linear(recorder, "addmm", x, weight, bias, transposed=True)


@rule("matmul", "mm", "__matmul__")
def matmul(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """XW with a matrix on the right."""
    if len(args) != 2 or kwargs:
        return NotImplemented
    x, weight = args
    if not isinstance(weight, Tensor) or weight.ndim != 2 or recorder.source(weight) is None:
        return NotImplemented
    return _linear(recorder, "matmul", x, weight, None, transposed=True)


def _linear(
    recorder: Recorder, operation: str, x: Tensor, weight: Tensor, bias: Tensor | None, *, transposed: bool
) -> Any:
    own = [recorder.source(weight), recorder.source(bias)]
    for value, source in zip((weight, bias), own, strict=True):
        if value is not None and source is None and value.requires_grad:
            return NotImplemented
    if recorder.source(x) is not None:
        if x.shape[0] != recorder.samples:
            return NotImplemented  # of parameters alone: derived, whatever it is
        x = meet(recorder, x, tuple(x.shape), operation)
    if x.ndim < 2 or weight.ndim != 2 or (bias is not None and bias.ndim != 1):
        return NotImplemented
    layouts = possible(tuple(x.shape), recorder.samples)
    if not layouts and not x.requires_grad:
        return NotImplemented  # a constant: the output depends on parameters alone
    deliveries = [
        source and recorder.use(source, f"{operation} {what}", layouts)
        for what, source in zip(("weight", "bias"), own, strict=True)
    ]
    x, weight, bias = lowered(x, weight, bias)
    name = own[0].roots[0] if own[0] is not None and own[0].whole else None
    arguments = (x, weight.detach(), bias, transposed, deliveries, recorder, name)
    output = LinearFunction.apply(recorder.anchor, *arguments)  # type: ignore[no-untyped-call]
    if name in recorder.spared:
        recorder.stand_in(output)
    return output


def _product(x: Tensor, weight: Tensor, bias: Tensor | None, transposed: bool) -> Tensor:
    if not transposed:
        output = functional.linear(x, weight, bias)
    elif bias is not None and x.ndim == 2:
        output = torch.addmm(bias, x, weight)
    else:
        output = x @ weight if bias is None else x @ weight + bias
    # torch computes many dimensions as two and gives a view of that, which could not be written to
    return torch.ops.aten._unsafe_view(output, output.shape)  # type: ignore[no-any-return]


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
        name: str | None,
    ) -> Tensor:
        """Compute the output, unless it is known that nobody reads it."""
        ctx.save_for_backward(x, weight)
        ctx.transposed, ctx.deliveries, ctx.recorder = transposed, deliveries, recorder
        ctx.weight_name = name
        shape = (*x.shape[:-1], weight.shape[1 if transposed else 0])
        if name in recorder.spared:
            return x.new_zeros(shape)
        return recorder.product(name, shape, partial(_product, x, weight, bias, transposed))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Compute the input's gradient; hand on the factors of the weight's."""
        x, weight = ctx.saved_tensors
        recorder, N = ctx.recorder, ctx.recorder.samples
        bounds = recorder.watch(x, gradient, later=True)

        def product(layout: Layout) -> Contribution:
            left, right = by_sample(gradient, layout, N), by_sample(x, layout, N)
            if ctx.transposed:
                left, right = right, left
            return Product(left, right, bounds)

        forms = (product, lambda layout: summed_over_positions(by_sample(gradient, layout, N)))
        for deliver, form in zip(ctx.deliveries, forms, strict=True):
            if deliver is not None:  # first, so that other threads count while this one goes on
                deliver(form)
        back = None
        if ctx.needs_input_grad[1]:
            back = gradient.matmul(weight.t() if ctx.transposed else weight)
        return None, back, *[None] * 6
