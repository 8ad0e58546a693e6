"""A low-rank change beside a layer that stays as it is: what the layer gives, plus B A of its input.

The layer's weight needs no gradient and may be of any number format: only its input and output are touched.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from gradfix.checkpoints.lora.factors import LowRank
from gradfix.checkpoints.lora.layout import LayerKind, LayerShape, kind_of
from gradfix.errors import GradfixError

PARAMETER = "lora_B"
"""Name of the parameter that a layer is given."""

_CONVOLVE = (functional.conv1d, functional.conv2d, functional.conv3d)


class LowRankLayer:
    """One layer with a low-rank change beside it.

    Attributes:
        module: The layer.
        up: B, [o, r]: the parameter that votes and moves; 0 at θ_B.
        down: A, [r, i], fixed.
        kind: How the layer stores its weight.
        calls: How often the layer was called.
    """

    def __init__(self, name: str, module: nn.Module, factors: LowRank, dtype: torch.dtype) -> None:
        """Put the change beside the layer.

        Args:
            name: Of the layer, for messages.
            module: The layer.
            factors: The change; of its B only the shape counts here.
            dtype: To which A is rounded, as it will be written.

        Raises:
            GradfixError: if nothing is known of how such a layer computes.
        """
        self.module, self.calls = module, 0
        kind = kind_of(module)
        self._branch = _branch(name, module, kind)
        self.kind: LayerKind = kind or "linear"
        device = next(module.parameters()).device
        self.down = factors.down.to(dtype).float().to(device)
        self.up = nn.Parameter(torch.zeros(factors.up.shape, device=device))
        module.register_parameter(PARAMETER, self.up)
        self._handle: RemovableHandle = module.register_forward_hook(self._add, with_kwargs=True)

    @property
    def shape(self) -> LayerShape:
        """How the layer stores its weight, and the rank."""
        weight: Tensor = self.module.get_parameter("weight")
        return LayerShape(self.kind, tuple(weight.shape), self.up.shape[1])

    def remove(self) -> None:
        """Leave the layer as it was found."""
        self._handle.remove()
        del self.module._parameters[PARAMETER]

    def _add(
        self, module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any], output: Tensor
    ) -> Tensor:
        self.calls += 1
        given = next(iter((*arguments, *named.values())))
        return output + self._branch(given, self.down, self.up).to(output.dtype)


_Branch = Callable[[Tensor, Tensor, Tensor], Tensor]


def _branch(name: str, module: Any, kind: LayerKind | None) -> _Branch:
    """Find how B A meets the input of a layer; only layers that compute as their class says are known."""
    if kind in ("linear", "transposed"):
        return _linear
    if kind == "embedding":
        return _looked_up
    if kind == "convolution" and module.padding_mode == "zeros":
        return _convolution(module, _CONVOLVE[len(module.kernel_size) - 1])
    raise GradfixError(
        f"{name}: a {type(module).__name__} computes in a way of its own, so an adapter can't stand beside it; give "
        "--space weights"
    )


def _linear(x: Tensor, down: Tensor, up: Tensor) -> Tensor:
    return functional.linear(functional.linear(x.to(up.dtype), down), up)


def _looked_up(tokens: Tensor, down: Tensor, up: Tensor) -> Tensor:
    return functional.linear(functional.embedding(tokens, down.T), up)


def _convolution(module: Any, convolve: Callable[..., Tensor]) -> _Branch:
    """A convolution of the layer's own kernel to r channels, then B at each place."""

    def branch(x: Tensor, down: Tensor, up: Tensor) -> Tensor:
        kernel = down.view(len(down), *module.weight.shape[1:])
        thin = convolve(x.to(up.dtype), kernel, None, module.stride, module.padding, module.dilation)
        return functional.linear(thin.movedim(1, -1), up).movedim(-1, 1)

    return branch
