"""Normalisation layers with scale and shift. Index letters as in the registry."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from gradfix.votes.fast.contributions import Contribution, Deliver, summed_over_positions
from gradfix.votes.fast.layouts import Layout, by_sample, possible
from gradfix.votes.fast.recorder import Recorder
from gradfix.votes.fast.rules.registry import bound, rule


@rule("layer_norm")
def layer_norm(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Normalise, scale and shift: G_n = Σ_t g x̂ and Σ_t g."""
    x, shape, weight, bias, eps, _ = bound(
        "input normalized_shape weight bias eps cudnn_enable", args, kwargs
    )
    own = [recorder.source(weight), recorder.source(bias)]
    plain = any(
        value is not None and source is None and value.requires_grad
        for value, source in zip((weight, bias), own, strict=True)
    )
    layouts = possible(tuple(x.shape), recorder.samples)
    if plain or recorder.source(x) is not None or len(shape) != 1 or not layouts:
        return NotImplemented
    deliveries = [
        source and recorder.use(source, f"layer_norm {what}", layouts)
        for what, source in zip(("weight", "bias"), own, strict=True)
    ]
    if torch.is_autocast_enabled(x.device.type):
        x = x.float()  # as autocast would
    weight, bias = (None if value is None else value.detach() for value in (weight, bias))
    arguments = (x, list(shape), weight, bias, 1e-5 if eps is None else eps, deliveries, recorder)
    return LayerNormFunction.apply(recorder.anchor, *arguments)  # type: ignore[no-untyped-call]


@rule("group_norm")
def group_norm(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Normalise by torch, scale and shift as calls of their own."""
    x, groups, weight, bias, eps, _ = bound("input num_groups weight bias eps cudnn_enabled", args, kwargs)
    normal = func(x, groups, None, None, 1e-5 if eps is None else eps)
    return _scale_and_shift(recorder, normal, weight, bias)


@rule("batch_norm")
def batch_norm(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Normalise by running statistics, scale and shift as calls of their own."""
    names = "input weight bias running_mean running_var training momentum eps cudnn_enabled"
    x, weight, bias, mean, variance, training, momentum, eps, _ = bound(names, args, kwargs)
    if training:
        return NotImplemented
    normal = func(x, None, None, mean, variance, False, momentum, eps, False)
    return _scale_and_shift(recorder, normal, weight, bias)


@rule("rms_norm")
def rms_norm(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Normalise by torch, scale as a call of its own."""
    x, shape, weight, eps = bound("input normalized_shape weight eps", args, kwargs)
    with recorder:
        return func(x, shape, None, eps) * weight


def _scale_and_shift(
    recorder: Recorder, normal: Tensor, weight: Tensor | None, bias: Tensor | None
) -> Tensor:
    channels = (1, -1) + (1,) * (normal.ndim - 2)
    with recorder:
        if weight is not None:
            normal = normal * weight.view(channels)
        return normal if bias is None else normal + bias.view(channels)


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
