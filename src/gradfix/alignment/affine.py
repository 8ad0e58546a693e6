"""Affine maps that a regression can fit: linear layers and convolutions, seen as matrices over what they read.

A convolution is a linear map of patches: one row a place, ``inputs · kernel`` columns. Whatever passes a module is seen
as ``[samples, tokens, width]``, where the tokens of a convolution are its places.
"""

from collections.abc import Callable
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a linear map of the last axis.

    Args:
        module: Any module.

    Returns:
        True for ``nn.Linear`` and for transformers' ``Conv1D``.
    """
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def is_convolution(module: nn.Module) -> bool:
    """Whether a module is a convolution of all channels.

    Args:
        module: Any module.

    Returns:
        True for convolutions of one to three dimensions; False for transposed and grouped ones.
    """
    return isinstance(module, _ConvNd) and not module.transposed and module.groups == 1


def is_affine(module: nn.Module) -> bool:
    """Whether a module is a map that a regression can fit.

    Args:
        module: Any module.

    Returns:
        True for linear maps and convolutions.
    """
    return is_linear(module) or is_convolution(module)


def width(module: nn.Module) -> int:
    """Count what an affine map gives.

    Args:
        module: An affine map.

    Returns:
        Its outputs: features or channels.
    """
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight.shape[1] if type(module).__name__ == "Conv1D" else weight.shape[0]


def as_tokens(module: nn.Module, values: Tensor) -> Tensor:
    """See what passes a module as tokens.

    Args:
        module: The module.
        values: Its input or output: channels come last in a linear map, first in a convolution, and first wherever
            there are four axes or more.

    Returns:
        ``[samples, tokens, width]``; values of fewer than three axes, or of three in no convolution, as they are.
    """
    if is_linear(module):
        return values.flatten(1, -2) if values.dim() > 3 else values
    if isinstance(module, _ConvNd) or values.dim() > 3:
        return values.flatten(2).transpose(1, 2)
    return values


def input_rows(module: nn.Module, inputs: Tensor, take: Callable[[Tensor], Tensor]) -> Tensor:
    """Lay out what an affine map reads.

    Args:
        module: The map.
        inputs: What it is given.
        take: Takes rows out of tokens.

    Returns:
        ``[rows, columns]``, a column for each of the map's coefficients of one output.
    """
    if not isinstance(module, _ConvNd):
        return take(as_tokens(module, inputs))
    padded = _padded(module, inputs)
    counts = [
        (size - (kernel - 1) * dilation - 1) // stride + 1
        for size, kernel, dilation, stride in zip(
            padded.shape[2:], module.kernel_size, module.dilation, module.stride, strict=True
        )
    ]
    columns = []
    for offset in product(*map(range, module.kernel_size)):
        begins = [place * dilation for place, dilation in zip(offset, module.dilation, strict=True)]
        window = tuple(
            slice(begin, begin + (count - 1) * stride + 1, stride)
            for begin, count, stride in zip(begins, counts, module.stride, strict=True)
        )
        columns.append(take(as_tokens(module, padded[(slice(None), slice(None), *window)])))
    return torch.stack(columns, dim=2).flatten(1)


def output_of(module: nn.Module, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Apply a map of other coefficients in the place of a module.

    Args:
        module: An affine map.
        inputs: What it is given.
        weight: ``[outputs, columns]``.
        bias: ``[outputs]``, or None.

    Returns:
        What it would give, laid out as the module's output.
    """
    weight = weight.to(inputs)
    bias = None if bias is None else bias.to(inputs)
    if not isinstance(module, _ConvNd):
        return nn.functional.linear(inputs, weight, bias)
    convolve: Any = (nn.functional.conv1d, nn.functional.conv2d, nn.functional.conv3d)[inputs.dim() - 3]
    kernel = weight.view(module.weight.shape)
    found: Tensor = convolve(_padded(module, inputs), kernel, bias, module.stride, 0, module.dilation)
    return found


def stored(module: nn.Module, weight: Tensor) -> Tensor:
    """Lay coefficients out as a module stores them.

    Args:
        module: An affine map.
        weight: ``[outputs, columns]``.

    Returns:
        A tensor of the shape of its weight.
    """
    if type(module).__name__ == "Conv1D":
        return weight.T
    found: Tensor = weight.view(module.weight.shape)  # type: ignore[arg-type]
    return found


def _padded(module: _ConvNd, inputs: Tensor) -> Tensor:
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    return nn.functional.pad(inputs, module._reversed_padding_repeated_twice, mode=mode)
