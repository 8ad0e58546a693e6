"""One rule for each of torch's calls that a parameter may meet the samples in.

Index letters: ``n`` sample of N, ``t`` position within a sample, ``i`` input and ``o`` output feature, ``l``
position in an image, ``G`` the gradient of the summed losses by a call's output, ``x`` its input. As the losses
are summed, not averaged, the part of G that belongs to sample n is that of its own loss, unscaled.

A rule is a function of (recorder, torch's function, args, kwargs), registered by the name of torch's function. It
returns the call's output, or NotImplemented to leave the call to the recorder. Torch's functions that are
written in Python (``F.embedding``, ``F.multi_head_attention_forward``) need none: the recorder looks inside.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gradfix.votes.functions import (
    ConvolutionFunction,
    CutFunction,
    EmbeddingFunction,
    LayerNormFunction,
    LinearFunction,
)
from gradfix.votes.layouts import Layout, possible
from gradfix.votes.recorder import Recorder, Source

Rule = Callable[[Recorder, Any, tuple[Any, ...], dict[str, Any]], Any]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule under the names of torch's functions.

    Args:
        *names: The names.

    Returns:
        A decorator that leaves the rule as it is.
    """

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


def bound(names: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """Order a call's arguments by name; what is not given is None."""
    values = dict(zip(names.split(), args, strict=False)) | kwargs
    return [values.get(name) for name in names.split()]


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
    x, weight, bias = _lowered(x, weight, bias)
    arguments = (x, weight.detach(), bias, transposed, deliveries, recorder)
    return LinearFunction.apply(recorder.anchor, *arguments)  # type: ignore[no-untyped-call]


def _lowered(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Cast as autocast would, which does not look inside the functions that replace torch's."""
    bias = None if bias is None else bias.detach()
    if not torch.is_autocast_enabled(x.device.type):
        return x, weight, bias
    lower = torch.get_autocast_dtype(x.device.type)
    return x.to(lower), weight.to(lower), None if bias is None else bias.to(lower)


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
    x, weight, bias = _lowered(x, weight, bias)
    arguments = (x, weight.detach(), bias, (*settings, groups or 1), deliveries, recorder)
    return ConvolutionFunction.apply(recorder.anchor, *arguments)  # type: ignore[no-untyped-call]


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
