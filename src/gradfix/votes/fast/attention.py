"""The backward pass of attention over short sequences, in float32 where a processor takes longer in bfloat16.

Torch's own converts each head's small products one by one. In float32 it takes half the time for up to some 256
positions, and its gradients are nearer to the true ones.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

LONGEST = 256
"""Positions up to which float32 is faster."""

_NODE = "ScaledDotProductFlashAttentionForCpuBackward0"


class Attention(Function):
    """What attention gave, with another backward pass."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, given: tuple[Any, ...]) -> Tensor:
        """Hand on the output, which is there already.

        Args:
            ctx: Of the call.
            query: ``[N, heads, T, D]``.
            key: ``[N, heads or fewer, S, D]``.
            value: As the key.
            given: Output, logarithms of the sums of exponents ``[N, heads, T]``, mask or None, dropout, whether it is
                causal, and scale.

        Returns:
            The output, ``[N, heads, T, D]``.
        """
        output, logarithms, mask, ctx.dropout, ctx.causal, ctx.scale = given
        ctx.save_for_backward(query, key, value, output, logarithms, mask)
        return output  # type: ignore[no-any-return]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Compute the gradients of query, key and value."""
        *factors, logarithms, mask = ctx.saved_tensors
        found = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            *(each.float() for each in (gradient, *factors)),
            logarithms,
            ctx.dropout,
            ctx.causal,
            attn_mask=None if mask is None else mask.float(),
            scale=ctx.scale,
        )
        return *(each.to(gradient.dtype) for each in found), None


def widened(func: Any, output: Any) -> Any:
    """Give what attention returned a backward pass in float32, where that is faster.

    Args:
        func: One of torch's functions.
        output: What it returned; of ``scaled_dot_product_attention``, shape ``[N, heads, T, D]``.

    Returns:
        The same numbers, of attention with another graph.
    """
    if func.__name__ != "scaled_dot_product_attention":
        return output
    node: Any = output.grad_fn
    if node is None or node.name() != _NODE or output.dtype != torch.bfloat16:
        return output
    query, key = node._saved_query, node._saved_key
    if query.shape[-2] * key.shape[-2] > LONGEST**2:
        return output
    given = (
        output.detach(),
        node._saved_logsumexp,
        node._saved_attn_mask,
        node._saved_dropout_p,
        node._saved_is_causal,
        node._saved_scale,
    )
    return Attention.apply(query, key, node._saved_value, given)  # type: ignore[no-untyped-call]


class WideAttention(TorchFunctionMode):
    """Widens attention in a pass that nothing else watches, so that it has the gradients of one that is recorded."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """See one call of torch's."""
        return widened(func, func(*args, **kwargs or {}))
