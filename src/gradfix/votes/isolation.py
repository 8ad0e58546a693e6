"""Hold a model still while votes are counted, and leave it as it was found."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from gradfix.errors import GradfixError, listed
from gradfix.tasks.batches import Batch

Loss: TypeAlias = Callable[[nn.Module, Batch], Tensor]
"""``loss(model, batch)`` gives one value a sample: shape (N,)."""

_FORMATS = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def counted_parameters(
    model: nn.Module, names: Iterable[str] | None
) -> tuple[dict[str, nn.Parameter], list[str]]:
    """Find the parameters whose votes are to be counted.

    Args:
        model: The model.
        names: Names as in ``model.named_parameters(remove_duplicate=False)``. By default every floating-point
            parameter that requires a gradient: a frozen tower casts no votes unless it is named.

    Returns:
        Name to parameter, each parameter once, under the first of its names asked for; and the names asked
        for that are buffers, which get no gradient.

    Raises:
        GradfixError: Where a name belongs to nothing in the model, or nothing is left to count.
    """
    refuse_spread(model)
    everything = dict(model.named_parameters(remove_duplicate=False))
    buffers = dict(model.named_buffers(remove_duplicate=False))
    if names is None:
        wanted = [name for name, parameter in everything.items() if parameter.requires_grad]
    else:
        wanted = list(dict.fromkeys(names))
    unknown = [name for name in wanted if name not in everything and name not in buffers]
    if unknown:
        raise GradfixError(
            f"{type(model).__name__} has no parameter {', '.join(unknown[:3])} ({len(unknown)} unknown names of "
            f"{len(wanted)}); expected names as in model.named_parameters(), such as "
            f"{next(iter(everything), 'none')}"
        )
    found: dict[str, nn.Parameter] = {}
    seen: set[int] = set()
    for name in wanted:
        parameter = everything.get(name)
        if parameter is not None and parameter.is_floating_point() and id(parameter) not in seen:
            seen.add(id(parameter))
            found[name] = parameter
    if not found:
        raise GradfixError(
            f"no parameter of {type(model).__name__} is to be counted: none requires a gradient or is named; pass "
            "parameters=[names]"
        )
    return found, [name for name in wanted if name not in everything]


def refuse_spread(model: nn.Module) -> None:
    """Refuse a model that is spread over processes or devices: no place has its whole parameters.

    Args:
        model: The model.

    Raises:
        GradfixError: naming by what it is spread, and what to do instead.
    """
    kind = type(model).__name__
    streamed = "give its files, to be fetched block by block: --memory 4GB (memory='4GB')"
    if kind in ("DistributedDataParallel", "DataParallel"):
        raise GradfixError(
            f"{kind}: give the model that it wraps (model.module); to share samples, start gradfix by the launcher"
        )
    sharded = [name for name, value in model.named_parameters() if type(value.data).__name__ == "DTensor"]
    sharded += [
        name for name, part in model.named_modules() if type(part).__name__ == "FullyShardedDataParallel"
    ]
    if sharded:
        raise GradfixError(
            f"{kind}: sharded over processes (FSDP, DTensor), so that none has a whole gradient: "
            f"{listed(name or kind for name in sharded)}; {streamed}"
        )
    homes = {str(home) for home in getattr(model, "hf_device_map", {}).values()}
    devices = {str(value.device) for value in model.parameters() if value.device.type != "meta"}
    if len(homes) > 1 or len(devices) > 1 or "disk" in homes:
        raise GradfixError(
            f"{kind}: spread over {listed(sorted(homes or devices))} by a device_map; load it on one device, or "
            f"{streamed}"
        )


def refuse_mixing(model: nn.Module) -> None:
    """Refuse layers in which a sample's output depends on the other samples of its batch.

    Args:
        model: The model, in eval mode.

    Raises:
        GradfixError: Naming the layers: batch normalisation without running statistics.
    """
    mixing = [
        name or type(module).__name__
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and (module.training or module.running_mean is None)
    ]
    if mixing:
        raise GradfixError(
            f"{len(mixing)} layers normalise over the batch and so mix samples: {', '.join(mixing[:5])}; a sample "
            "has no gradient of its own there: give them running statistics (track_running_stats=True)"
        )


@contextmanager
def held_still(
    model: nn.Module,
    parameters: Iterable[nn.Parameter],
    *,
    device: torch.device | None = None,
    seed: int | None = None,
) -> Iterator[torch.device]:
    """Put a model into eval mode with gradients for the given parameters alone; undo everything afterwards.

    Training flags, ``requires_grad``, ``.grad``, the device and the state of the random generators are
    restored when the block ends, also by an exception.

    Args:
        model: The model.
        parameters: What is to be counted.
        device: Where to compute; the model's own by default.
        seed: Seed of the random generators inside the block; their present state by default.

    Yields:
        The device on which the model computes.
    """
    everything = list(model.parameters())
    modes = [(module, module.training) for module in model.modules()]
    gradients = [(parameter, parameter.requires_grad, parameter.grad) for parameter in everything]
    home = everything[0].device
    there = home if device is None else device
    forked = [there] if there.type == "cuda" else []
    with torch.random.fork_rng(devices=forked), torch.inference_mode(False), torch.enable_grad():
        try:
            model.eval()
            refuse_mixing(model)
            if there != home:
                for parameter in everything:
                    parameter.grad = None
                model.to(there)
            chosen = {id(parameter) for parameter in parameters}
            for parameter in everything:
                parameter.grad = None
                parameter.requires_grad_(id(parameter) in chosen)
            if seed is not None:
                torch.manual_seed(seed)
            yield there
        finally:
            if there != home:
                for parameter in everything:
                    parameter.grad = None
                model.to(home)
            for parameter, required, gradient in gradients:
                parameter.requires_grad_(required)
                parameter.grad = gradient
            for module, mode in modes:
                module.training = mode


def number_format(
    dtype: str | torch.dtype | None, parameters: Iterable[nn.Parameter]
) -> tuple[str, torch.dtype | None]:
    """Read the ``dtype`` argument.

    Args:
        dtype: ``"bfloat16"`` or ``"float16"`` for autocast, ``"float32"`` for none, or a torch dtype; the
            parameters' own by default.
        parameters: What is to be counted.

    Returns:
        The name under which the votes record the format, and the dtype for autocast or None.

    Raises:
        GradfixError: For any other name.
    """
    if dtype is None:
        return str(next(iter(parameters)).dtype).removeprefix("torch."), None
    name = str(dtype).removeprefix("torch.")
    if name not in _FORMATS:
        raise GradfixError(
            f"dtype {dtype!r} is not one to count votes in; expected one of {', '.join(_FORMATS)}"
        )
    lower = _FORMATS[name] in (torch.bfloat16, torch.float16)
    return name, _FORMATS[name] if lower else None


def autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[object]:
    """Run a forward pass in a lower precision.

    Args:
        device: Where the model computes.
        dtype: bfloat16 or float16; None for the model's own precision.

    Returns:
        The context for the forward pass; the backward pass stays outside of it.
    """
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)


def checked_losses(losses: object, samples: int) -> Tensor:
    """Refuse what is not one loss a sample.

    Args:
        losses: What the loss function returned.
        samples: N, the samples it was given.

    Returns:
        The losses, shape (N,).

    Raises:
        GradfixError: For a scalar, another length, integers, or a loss without a gradient.
    """
    if not isinstance(losses, Tensor):
        raise GradfixError(
            f"the loss returned {type(losses).__name__}; expected a tensor with one value a sample"
        )
    if losses.shape != (samples,):
        what = "a scalar" if losses.ndim == 0 else f"shape {tuple(losses.shape)}"
        raise GradfixError(
            f"the loss returned {what} for a batch of {samples} samples; expected shape ({samples},), one value a "
            "sample: a reduced loss would turn majority voting into one vote a batch (use reduction='none', and a "
            "mean over tokens for each sample)"
        )
    if not losses.is_floating_point():
        raise GradfixError(f"the loss returned {losses.dtype}; expected floating-point values, one a sample")
    if not losses.requires_grad:
        raise GradfixError(
            "the loss does not depend on any parameter to be counted: no gradient reaches it; check for detach(), "
            "no_grad(), and the names in parameters="
        )
    return losses
