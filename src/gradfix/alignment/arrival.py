"""How what a layer gives arrives where a sum is complete: as it is, scaled by channel, or not in proportion.

A model is run once. At each layer in question the graph begins anew, and the gradient from where its output arrives
tells by how much each channel is multiplied on the way (LayerScale, a norm that does not depend on its input). Where
this differs from row to row, the way isn't linear.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gradfix.alignment.activations import Point, first_input, first_output
from gradfix.alignment.affine import as_tokens
from gradfix.tasks.forward import evaluating

TOLERANCE = 1e-3
"""How much a channel's gain may differ from row to row, of the largest gain."""


class Arrival(NamedTuple):
    """How a layer's output arrives.

    Attributes:
        gain: What each channel is multiplied by, ``[width]`` float32.
        alone: Nothing is added to it on the way: the sum comes later.
    """

    gain: Tensor
    alone: bool


def arrivals(
    model: nn.Module, run: Callable[[Any], Any], batch: Any, ways: Mapping[str, Point]
) -> dict[str, Arrival]:
    """Run a model once and measure the ways from some layers' outputs.

    Args:
        model: The model, in any mode; it is run in eval mode.
        run: Runs it on a batch.
        batch: Any batch.
        ways: By the name of a layer, where its output arrives. No way may begin inside another one.

    Returns:
        By the name of a layer, how; ways that aren't linear are left out.
    """
    modules = dict(model.named_modules())
    begun: dict[str, Tensor] = {}
    found: dict[str, Arrival] = {}
    handles = []

    def begin(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            begun[name] = first_output(output).detach().requires_grad_()
            torch.set_grad_enabled(True)
            return begun[name] if isinstance(output, Tensor) else (begun[name], *output[1:])

        return hook

    def end(name: str, value: Tensor) -> None:
        torch.set_grad_enabled(False)
        if name not in begun:
            return
        arrival = _measure(modules[name], begun.pop(name), modules[ways[name].module], value)
        if arrival is not None:
            found[name] = arrival

    def end_before(name: str) -> Any:
        return lambda module, args, kwargs: end(name, first_input(args, kwargs))

    def end_after(name: str) -> Any:
        return lambda module, args, output: end(name, first_output(output))

    try:
        with evaluating(model), torch.inference_mode(False), torch.no_grad():
            for name, point in ways.items():
                place = modules[point.module]
                if point.side == "in":
                    handles.append(place.register_forward_pre_hook(end_before(name), with_kwargs=True))
                else:
                    handles.append(place.register_forward_hook(end_after(name)))
            for name in ways:
                handles.append(modules[name].register_forward_hook(begin(name)))
            run(batch)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _measure(layer: nn.Module, start: Tensor, place: nn.Module, value: Tensor) -> Arrival | None:
    if not value.requires_grad:
        return None
    generator = torch.Generator().manual_seed(0)
    asked = (torch.rand(value.shape, generator=generator) + 0.5).to(value)
    (gradient,) = torch.autograd.grad(value, start, asked, allow_unused=True)
    if gradient is None:
        return None
    ours, theirs = as_tokens(layer, gradient), as_tokens(place, asked)
    if ours.shape != theirs.shape:
        return None
    ratio = (ours / theirs).float().flatten(0, -2).cpu()
    gain = ratio.mean(0)
    largest = float(gain.abs().max())
    if not largest or not float((ratio - gain).abs().max()) <= TOLERANCE * largest:
        return None
    alone = torch.equal(as_tokens(place, value.detach()), as_tokens(layer, start.detach()))
    return Arrival(gain, alone)
