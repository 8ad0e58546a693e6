"""Rows of a table. Index letters as in the registry."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from gradfix.votes.fast.contributions import Contribution, Form, Rows
from gradfix.votes.fast.layouts import Layout, by_sample
from gradfix.votes.fast.recorder import Recorder
from gradfix.votes.fast.rules.registry import bound, rule


@rule("embedding")
def embedding(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """W[ids]: a sample's gradient has the rows it touches. Ids without samples derive a tensor."""
    names = "weight indices padding_idx scale_grad_by_freq sparse"
    weight, ids, padding, by_frequency, _ = bound(names, args, kwargs)
    source = recorder.source(weight)
    if source is None or by_frequency or ids.ndim == 0 or recorder.derived.intersection(source.roots):
        return NotImplemented
    N = recorder.samples
    # one row of ids is the same for all samples (positions), even where it is as long as there are samples
    second = ids.ndim > 1 and ids.shape[0] > 1 and ids.shape[1] == N
    layouts = [Layout.FIRST] * (ids.shape[0] == N) + [Layout.SECOND] * second
    if not layouts:
        return NotImplemented
    deliver = recorder.use(source, "embedding", layouts)
    left_out = None if padding is None or padding < 0 else int(padding)
    return EmbeddingFunction.apply(  # type: ignore[no-untyped-call]
        recorder.anchor, weight.detach(), ids, left_out, deliver, recorder
    )


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
