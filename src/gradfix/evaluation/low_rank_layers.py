"""A low-rank change beside a layer that stays as it is: what the layer gives, plus B A of its input.

The layer's weight needs no gradient and may be of any number format: only its input and output are touched.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from gradfix.checkpoints.lora.factors import LowRank
from gradfix.checkpoints.lora.layout import LayerKind, LayerShape, kind_of
from gradfix.errors import GradfixError
from gradfix.vectors.task_vector import Granularity

PARAMETER = "lora_B"
"""Name of the parameter that a layer is given."""

COORDINATES: dict[Granularity, str] = {
    "coordinate": "lora_B.weight",
    "row": "lora_B.rows",
    "component": "lora_B.components",
}
"""What the coordinates of a layer are called, in place of its weight."""

_CONVOLVE = (functional.conv1d, functional.conv2d, functional.conv3d)


class LowRankLayer:
    """One layer with a low-rank change beside it.

    The parameter that votes and moves is 0 at θ_B. It is B itself, [o, r]; or, with B as it is, a factor for each of
    its rows, [o], or for each of its columns, [r]: the singular directions of the change.

    Attributes:
        module: The layer.
        kind: How it stores its weight.
        parameter: What votes and moves.
        whole: Where the parameter stands when the whole change is added.
        down: A, [r, i], fixed.
        calls: How often the layer was called.
    """

    def __init__(
        self,
        name: str,
        module: nn.Module,
        factors: LowRank,
        dtype: torch.dtype,
        granularity: Granularity = "coordinate",
    ) -> None:
        """Put the change beside the layer.

        Args:
            name: Of the layer, for messages.
            module: The layer.
            factors: The change.
            dtype: To which the factors are rounded, as they will be written.
            granularity: What votes: each coordinate of B, each row, or each singular direction.

        Raises:
            GradfixError: if nothing is known of how such a layer computes.
        """
        self.module, self.calls, self._dtype, self._granularity = module, 0, dtype, granularity
        kind = kind_of(module)
        self._thin, self._back = _ways(name, module, kind)
        self.kind: LayerKind = kind or "linear"
        device = next(module.parameters()).device
        self.down = factors.down.to(dtype).float().to(device)
        self._up = factors.up.to(dtype).float().to(device)
        self.whole = {
            "coordinate": factors.up,
            "row": torch.ones(factors.up.shape[0]),
            "component": torch.ones(factors.up.shape[1]),
        }[granularity]
        self.parameter = nn.Parameter(torch.zeros(self.whole.shape, device=device))
        module.register_parameter(PARAMETER, self.parameter)
        # Not a hook: whoever runs the layer's own forward, with its weights fetched for it, runs this with it.
        self._forward: Callable[..., Tensor] = module.forward
        module.forward = self._changed

    @property
    def shape(self) -> LayerShape:
        """How the layer stores its weight, and the rank."""
        weight: Tensor = self.module.get_parameter("weight")
        return LayerShape(self.kind, tuple(weight.shape), self._up.shape[1])

    @property
    def factors(self) -> tuple[Tensor, Tensor]:
        """A and B as they are written."""
        return self.down, self._up

    def move(self, change: Tensor | None, alpha: float) -> None:
        """Set the parameter, rounded as what is written will be.

        Args:
            change: Of the parameter's shape; None for θ_B.
            alpha: Scaling coefficient.
        """
        with torch.no_grad():
            self.parameter.copy_(self.value(change, alpha))

    def value(self, change: Tensor | None, alpha: float) -> Tensor:
        """Give the parameter as it is when moved.

        Args:
            change: Of the parameter's shape; None for θ_B.
            alpha: Scaling coefficient.

        Returns:
            Float32, on the layer's device.
        """
        if change is None:
            return torch.zeros(self.whole.shape, device=self.down.device)
        moved = self.written(change, alpha) if self._granularity == "coordinate" else change.mul(alpha)
        return moved.to(self.down.device, torch.float32)

    def written(self, change: Tensor, alpha: float) -> Tensor:
        """Give B as it is written.

        Args:
            change: Of the parameter's shape.
            alpha: Scaling coefficient.

        Returns:
            [o, r], rounded to the adapter's format.
        """
        scaled = change.mul(alpha)
        if self._granularity != "coordinate":
            factor = scaled.unsqueeze(1) if self._granularity == "row" else scaled
            scaled = self._up.cpu() * factor
        return scaled.to(self._dtype)

    def remove(self) -> None:
        """Leave the layer as it was found."""
        del self.module.forward
        del self.module._parameters[PARAMETER]

    def _changed(self, *arguments: Any, **named: Any) -> Tensor:
        """What the layer gives, with the change."""
        self.calls += 1
        output = self._forward(*arguments, **named)
        thin = self._thin(next(iter((*arguments, *named.values()))), self.down)
        parameter = self.module.get_parameter(
            PARAMETER
        )  # another one where weights are fetched block by block
        if self._granularity == "coordinate":
            change = functional.linear(thin, parameter)
        elif self._granularity == "row":
            change = functional.linear(thin, self._up) * parameter
        else:
            change = functional.linear(thin * parameter, self._up)
        return output + self._back(change).to(output.dtype)


_Thin = Callable[[Tensor, Tensor], Tensor]
_Back = Callable[[Tensor], Tensor]


def _ways(name: str, module: Any, kind: LayerKind | None) -> tuple[_Thin, _Back]:
    """How A meets the input of a layer, to [..., r], and where the layer has its outputs, given as [..., o]."""
    if kind in ("linear", "transposed"):
        return lambda x, down: functional.linear(x.to(down.dtype), down), lambda change: change
    if kind == "embedding":
        return lambda tokens, down: functional.embedding(tokens, down.T), lambda change: change
    if kind == "convolution" and module.padding_mode == "zeros":
        convolve = _CONVOLVE[len(module.kernel_size) - 1]

        def thin(x: Tensor, down: Tensor) -> Tensor:
            kernel = down.view(len(down), *module.weight.shape[1:])
            found = convolve(x.to(down.dtype), kernel, None, module.stride, module.padding, module.dilation)
            return found.movedim(1, -1)

        return thin, lambda change: change.movedim(-1, 1)
    raise GradfixError(
        f"{name}: a {type(module).__name__} computes in a way of its own, so an adapter can't stand beside it; give "
        "--space weights"
    )
