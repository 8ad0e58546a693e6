"""Parameters that are added, multiplied or joined: repeated for each sample. Index letters as in the registry."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from gradfix.votes.fast.contributions import Contribution, Form, Summed
from gradfix.votes.fast.layouts import Layout
from gradfix.votes.fast.recorder import Recorder, Source
from gradfix.votes.fast.rules.registry import rule


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


_BROADCASTING = "add sub mul div true_divide divide multiply subtract where maximum minimum pow addcmul lerp"


_OPERATORS = "__add__ __radd__ __sub__ __rsub__ __mul__ __rmul__ __truediv__ __rtruediv__ __pow__"


_IN_PLACE = "add_ sub_ mul_ div_ __iadd__ __isub__ __imul__ __itruediv__"


@rule(*_BROADCASTING.split(), *_OPERATORS.split(), *_IN_PLACE.split())
def broadcast(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Scales, position embeddings: repeated for each sample, and autograd does the rest."""
    tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
    shape = tuple(torch.broadcast_shapes(*(value.shape for value in tensors)))  # type: ignore[no-untyped-call]
    others = [value for value in tensors if recorder.source(value) is None]
    with_samples = any(value.requires_grad for value in others) or any(
        value.ndim == len(shape) > 0 and value.shape[0] == shape[0] == recorder.samples for value in others
    )
    if not with_samples or (func.__name__ in _IN_PLACE.split() and recorder.source(args[0]) is not None):
        return NotImplemented
    return _with_met(recorder, func, args, kwargs, shape)


@rule("cat", "concat", "concatenate", "stack")
def concatenate(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A class token before the patches: it has been expanded to a row for each sample."""
    parts = args[0] if args else kwargs["tensors"]
    if not any(part.requires_grad for part in parts if recorder.source(part) is None):
        return NotImplemented
    met = [
        part if recorder.source(part) is None else meet(recorder, part, tuple(part.shape), func.__name__)
        for part in parts
    ]
    return func(met, *args[1:], **{key: value for key, value in kwargs.items() if key != "tensors"})


@rule("scaled_dot_product_attention")
def attention(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A bias that is added to the scores, as T5's relative positions."""
    query, mask = args[0], kwargs.get("attn_mask", args[3] if len(args) > 3 else None)
    if not isinstance(mask, Tensor) or recorder.source(mask) is None or query.ndim != mask.ndim:
        return NotImplemented
    return _with_met(recorder, func, args, kwargs, (query.shape[0], *mask.shape[1:]), only=mask)


def _with_met(
    recorder: Recorder,
    func: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    shape: tuple[int, ...],
    only: Tensor | None = None,
) -> Any:
    def replaced(value: Any) -> Any:
        known = isinstance(value, Tensor) and recorder.source(value) is not None
        return (
            meet(recorder, value, shape, func.__name__)
            if known and (only is None or value is only)
            else value
        )

    return func(*map(replaced, args), **{key: replaced(value) for key, value in kwargs.items()})


def meet(recorder: Recorder, value: Tensor, shape: tuple[int, ...], operation: str) -> Tensor:
    """Repeat a source for each sample, and cut it off its graph: its gradient then arrives sample by sample.

    Args:
        recorder: The pass.
        value: A source.
        shape: To which the operation broadcasts it.
        operation: The operation's name.

    Returns:
        The same values with a dimension of samples; or ``value`` itself where no dimension is one.
    """
    source = recorder.source(value)
    assert isinstance(source, Source)
    N = recorder.samples
    aligned = (1,) * (len(shape) - value.ndim) + tuple(value.shape)
    axis = next((d for d, length in enumerate(shape[:2]) if length == N and aligned[d] in (1, N)), None)
    if axis is None:
        flattened = bool(shape) and shape[0] % N == 0 and aligned[0] in (1, shape[0])
        axis = 0 if flattened else None
    if axis is None or (aligned[axis] != 1 and axis != 0):
        recorder.refuse(source.roots, f"used by {operation} where no dimension is that of the samples")
        return value
    by_row = aligned[axis] != 1
    deliver = recorder.use(source, f"{operation} {axis}", [Layout.FIRST], per_sample_rows=by_row)
    lengths = (*aligned[:axis], shape[axis], *aligned[axis + 1 :])
    repeated = value.detach().reshape(aligned).expand(lengths)
    met: Tensor = CutFunction.apply(  # type: ignore[no-untyped-call]
        recorder.anchor, repeated, axis, None if by_row else tuple(value.shape), deliver, recorder
    )
    return met
