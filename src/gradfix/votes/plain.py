"""The plain loop: one sample, one backward pass. Exact for every model; what the fast path must equal."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from gradfix.batches import Batch, select
from gradfix.errors import GradfixError
from gradfix.votes.guard import Loss, autocast, checked_losses


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
            f"sample {sample}: {what} is not finite in {wrong} of {values.numel()} values; look at this "
            f"sample's "
            "data, or count in float32 if dtype is lower"
        )
