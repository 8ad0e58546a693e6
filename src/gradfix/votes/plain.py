"""Per-sample gradients the plain way, one sample at a time, and the mean gradient."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from gradfix.errors import GradfixError
from gradfix.progress import Progress, silent
from gradfix.tasks.batches import Batch, batch_size, select, to_device
from gradfix.votes.isolation import (
    Loss,
    autocast,
    checked_losses,
    counted_parameters,
    held_still,
    number_format,
)


@contextmanager
def arriving(parameters: Mapping[str, nn.Parameter], take: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Hand each parameter's gradient on as soon as it is complete, and free it at once.

    A parameter used several times (tied weights) has one gradient, the sum of its uses: autograd completes
    that sum before it hands it on.

    Args:
        parameters: Name to parameter; each requires a gradient and has none.
        take: Called with name and gradient, once a parameter and backward pass.

    Yields:
        Nothing; backward passes inside the block are watched.
    """

    def watch(name: str) -> Callable[[Tensor], None]:
        def hook(parameter: Tensor) -> None:
            gradient, parameter.grad = parameter.grad, None
            if gradient is not None:
                take(name, gradient.to_dense() if gradient.is_sparse else gradient)

        return hook

    handles = [
        parameter.register_post_accumulate_grad_hook(watch(name))  # type: ignore[no-untyped-call]
        for name, parameter in parameters.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for parameter in parameters.values():
            parameter.grad = None


def count_plainly(
    model: nn.Module,
    batch: Batch,
    samples: int,
    loss: Loss,
    parameters: Mapping[str, nn.Parameter],
    take: Callable[[str, Tensor], None],
    *,
    first: int = 0,
    dtype: torch.dtype | None = None,
) -> None:
    """Run one backward pass for each sample of a batch.

    Args:
        model: In eval mode.
        batch: N samples on the model's device.
        samples: N.
        loss: One value a sample.
        parameters: Name to parameter, each requiring a gradient.
        take: Called with name and gradient of one sample's loss as each arrives.
        first: Index of the batch's first sample among all samples, for messages.
        dtype: Autocast's; None for the model's own precision.

    Raises:
        GradfixError: Where a loss or gradient is not finite, with the sample and the parameter.
    """
    device = next(iter(parameters.values())).device
    current = first

    def checked(name: str, gradient: Tensor) -> None:
        refuse_not_finite(gradient, current, f"the gradient of {name}")
        take(name, gradient)

    with arriving(parameters, checked):
        for n in range(samples):
            current = first + n
            with autocast(device, dtype):
                losses = loss(model, select(batch, slice(n, n + 1)))
            value = checked_losses(losses, 1)
            refuse_not_finite(value.detach(), current, "the loss")
            torch.autograd.backward(value.sum())


def refuse_not_finite(values: Tensor, sample: int, what: str) -> None:
    """Stop at a value that would cast no vote: sign(nan) is 0.

    Args:
        values: A loss or a gradient.
        sample: The sample's index.
        what: What the values are.

    Raises:
        GradfixError: Where a value is infinite or not a number.
    """
    # a finite sum proves finite terms; an infinite one may be an overflow of the sum alone
    if bool(torch.isfinite(values.sum())):
        return
    wrong = int(values.numel() - torch.isfinite(values).sum())
    if wrong:
        raise GradfixError(
            f"sample {sample}: {what} is not finite in {wrong} of {values.numel()} values; look at this sample's "
            "data, or count in float32 if dtype is lower"
        )


def mean_gradient(
    model: nn.Module,
    batches: Iterable[Batch],
    loss: Loss,
    *,
    parameters: Iterable[str] | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    seed: int | None = None,
    progress: Progress = silent,
) -> dict[str, Tensor]:
    """Compute g = (1/N) Σ_n ∇ℓ_n over all samples of all batches.

    Each sample weighs the same whatever the size of its batch: this is no mean of batch means.

    Args:
        model: Any module; it is run in eval mode and left as it was.
        batches: Nestings of tensors whose first dimension is the sample.
        loss: ``loss(model, batch)`` gives one value a sample.
        parameters: Names to compute; by default those that require a gradient.
        device: Where to compute; the model's own by default.
        dtype: ``"bfloat16"`` runs the forward pass under autocast; the model's own precision by default.
        seed: Seed for losses that draw random numbers.
        progress: Told of each batch.

    Returns:
        Parameter name to float32 gradient on the CPU, without parameters that no sample's loss depends on.

    Raises:
        GradfixError: For losses that are not one a sample, and for values that are not finite.
    """
    named, _ = counted_parameters(model, parameters)
    _, lower = number_format(dtype, named.values())
    with held_still(
        model, named.values(), device=None if device is None else torch.device(device), seed=seed
    ) as there:
        sums, samples = summed_gradient(model, batches, loss, named, there, lower, progress)
    return {name: (total / max(samples, 1)).cpu() for name, total in sums.items()}


def summed_gradient(
    model: nn.Module,
    batches: Iterable[Batch],
    loss: Loss,
    parameters: Mapping[str, nn.Parameter],
    device: torch.device,
    dtype: torch.dtype | None,
    progress: Progress,
) -> tuple[dict[str, Tensor], int]:
    """Sum the gradients of all samples in float32.

    Args:
        model: Held still.
        batches: The samples.
        loss: One value a sample.
        parameters: Name to parameter, each requiring a gradient.
        device: The model's.
        dtype: Autocast's, or None.
        progress: Told of each batch.

    Returns:
        Name to sum, for parameters that got a gradient; and N.
    """
    sums: dict[str, Tensor] = {}
    done = 0
    not_finite: list[str] = []

    def add(name: str, gradient: Tensor) -> None:
        if not bool(torch.isfinite(gradient.sum())) and not bool(torch.isfinite(gradient).all()):
            not_finite.append(name)
        elif name in sums:
            sums[name].add_(gradient)
        else:
            sums[name] = gradient.to(torch.float32)  # ours alone: its parameter let go of it

    for batch in batches:
        samples = batch_size(batch)
        if not samples:
            continue
        batch = to_device(batch, device)
        with autocast(device, dtype):
            losses = checked_losses(loss(model, batch), samples)
        for n in range(samples):
            refuse_not_finite(losses[n].detach(), done + n, "the loss")
        with arriving(parameters, add):
            torch.autograd.backward(losses.sum())
        if not_finite:
            # the sum over the batch does not tell whose gradient it was: the plain loop names the sample
            count_plainly(
                model, batch, samples, loss, parameters, lambda name, gradient: None, first=done, dtype=dtype
            )
        done += samples
        progress("computing the mean gradient", done, done, "samples")
    return sums, done
