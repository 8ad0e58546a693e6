"""The ordinary mean gradient over all samples."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from gradfix.batches import Batch, batch_size, to_device
from gradfix.progress import Progress, silent
from gradfix.votes.guard import Loss, autocast, checked_losses, counted_parameters, held_still, number_format
from gradfix.votes.plain import arriving, count_plainly, refuse_not_finite


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
