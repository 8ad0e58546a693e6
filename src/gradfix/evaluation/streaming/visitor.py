"""What is done with the units of a model while gradients are computed."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from gradfix.evaluation.streaming.calls import Call, Pass, differentiable, leaves_of
from gradfix.votes.isolation import autocast, checked_losses
from gradfix.votes.plain import refuse_not_finite


class Visitor:
    """What is done with the units while gradients are computed; this one only hands gradients on."""

    def __init__(self, device: torch.device, lower: torch.dtype | None = None) -> None:
        """Prepare.

        Args:
            device: Where the model computes.
            lower: Autocast's dtype; None for the model's own precision.
        """
        self.device, self.lower = device, lower

    def running(self, call: Call) -> AbstractContextManager[Any]:
        """Surround a unit's run in the forward pass."""
        return autocast(self.device, self.lower)

    def finished(self, item: Pass) -> None:
        """Refuse losses of a pass that are not one finite number a sample."""
        losses = checked_losses(item.result, item.samples)
        for n in range(item.samples):
            refuse_not_finite(losses[n].detach(), self.first_sample(item) + n, "the loss")

    def first_sample(self, item: Pass) -> int:
        """Give the index of a pass's first sample, for messages."""
        return 0

    def go_back(self, item: Pass, call: Call, run: Callable[[Sequence[Tensor]], Any]) -> list[Tensor | None]:
        """Compute the gradients of a call's inputs, the last one of a pass.

        Args:
            item: The pass.
            call: The call; at least one output has a gradient. Its unit's weights are there.
            run: Runs the unit on other tensors in the place of the call's.

        Returns:
            A gradient for each of the call's tensors that requires one.
        """
        return self.gradients(call, run)

    def settle(self, passes: Sequence[Pass]) -> None:
        """Put away what is complete: no pass will come to it any more."""

    def ended(self, passes: Sequence[Pass]) -> bool:
        """Tell whether nothing is wanted of all that passes have yet to go back through."""
        return False

    def gradients(
        self, call: Call, run: Callable[[Sequence[Tensor]], Any], weights: Sequence[Tensor] = ()
    ) -> list[Tensor | None]:
        """Run a unit again and send the gradients of its outputs back, of all samples together.

        Args:
            call: Has the gradients.
            run: Runs the unit on other tensors in the place of the call's.
            weights: Parameters whose gradients are wanted, too.

        Returns:
            A gradient for each of the call's tensors that requires one.
        """
        leaves = leaves_of(call.tensors)
        wanted = [leaf for leaf in dict.fromkeys(leaves) if leaf.requires_grad]
        if not wanted and not weights:
            return [None] * len(leaves)
        with autocast(self.device, self.lower):
            outputs = differentiable(run(leaves))
        pairs = [(output, call.gradients[number]) for number, output in outputs if number in call.gradients]
        # An output of weights alone has one row for all samples.
        gradients = [
            gradient if gradient.shape == output.shape else gradient.sum(0, keepdim=True)
            for output, gradient in pairs
        ]
        torch.autograd.backward([output for output, _ in pairs], gradients, inputs=[*wanted, *weights])
        return [leaf.grad for leaf in leaves]
