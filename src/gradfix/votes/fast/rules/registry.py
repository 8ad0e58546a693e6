"""The table of rules: what stands in for one of torch's calls that a parameter may meet the samples in.

A rule is a function of (recorder, torch's function, args, kwargs), registered by the name of torch's function. It
returns the call's output, or NotImplemented to leave the call to the recorder. Torch's functions that are
written in Python (``F.embedding``, ``F.multi_head_attention_forward``) need none: the recorder looks inside.

Index letters of all rules: ``n`` sample of N, ``t`` position within a sample, ``i`` input and ``o`` output feature,
``l`` position in an image, ``G`` the gradient of the summed losses by a call's output, ``x`` its input. As the losses
are summed, not averaged, the part of G that belongs to sample n is that of its own loss, unscaled.

A rule replaces torch's call by an autograd function of the same output and input gradient, but no summed weight
gradient. Each takes the pass's anchor, so that the backward pass reaches it, and ``deliver`` functions that it calls
with what the per-sample gradients are made of. Under autocast the tensors arrive in the lower precision already.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Rule = Callable[[Any, Any, tuple[Any, ...], dict[str, Any]], Any]


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


def lowered(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Cast as autocast would, which does not look inside the functions that replace torch's."""
    bias = None if bias is None else bias.detach()
    if not torch.is_autocast_enabled(x.device.type):
        return x, weight, bias
    lower = torch.get_autocast_dtype(x.device.type)
    return x.to(lower), weight.to(lower), None if bias is None else bias.to(lower)
