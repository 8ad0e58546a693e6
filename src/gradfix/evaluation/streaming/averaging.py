"""The gradient of all samples together, unit by unit: for the mean's signs, and for its product with a direction."""

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from gradfix.errors import GradfixError
from gradfix.evaluation.streaming.calls import Call, Pass
from gradfix.evaluation.streaming.execution import Execution
from gradfix.evaluation.streaming.store import CountStore
from gradfix.evaluation.streaming.visitor import Visitor


class GradientVisitor(Visitor):
    """Hands each wanted parameter's gradient on, as each batch's arrives from each of its uses."""

    def __init__(
        self,
        execution: Execution,
        take: Callable[[str, Tensor, str], None],
        lower: torch.dtype | None = None,
    ) -> None:
        """Prepare.

        Args:
            execution: Runs the model, and knows the wanted parameters.
            take: Called with a parameter's name, a batch's gradient by one of its uses, and words for the samples.
            lower: Autocast's dtype, or None.
        """
        super().__init__(execution.device, lower)
        self._execution, self._take = execution, take

    def go_back(self, item: Pass, call: Call, run: Callable[[Sequence[Tensor]], Any]) -> list[Tensor | None]:
        """Compute the gradients of inputs and weights."""
        weights = self._execution.values_of(call.unit)
        found = self.gradients(call, run, list(weights.values()))
        for name, parameter in weights.items():
            gradient, parameter.grad = parameter.grad, None
            if gradient is not None:
                first = self.first_sample(item)
                self._take(name, gradient, f"samples {first} to {first + item.samples - 1}")
        return found


class MeanVisitor(GradientVisitor):
    """Takes the sign of −g of the mean gradient g."""

    def __init__(
        self,
        execution: Execution,
        sizes: Sequence[int],
        store: CountStore,
        lower: torch.dtype | None = None,
    ) -> None:
        """Prepare.

        Args:
            execution: Runs the model.
            sizes: N of each pass.
            store: Gets each parameter's signs, int8, once they are complete.
            lower: Autocast's dtype, or None.
        """
        super().__init__(execution, self._add, lower)
        self._store = store
        self._sums: dict[str, Tensor] = {}
        self._first = [0, *accumulate(sizes)]

    def first_sample(self, item: Pass) -> int:
        """Give the index of a pass's first sample."""
        return self._first[item.number]

    def settle(self, passes: Sequence[Pass]) -> None:
        """Hand on the signs of sums that no pass will add to any more."""
        if not all(item.done for item in passes):
            return
        left = Counter(name for item in passes for call in item.calls for name in call.unit.names)
        complete = [name for name in self._sums if not left[name]]
        if complete:
            signs = {name: (-self._sums.pop(name)).sign().to("cpu", torch.int8) for name in complete}
            self._store.put(signs, self._execution.fingerprints, {})

    def _add(self, name: str, gradient: Tensor, samples: str) -> None:
        if not bool(torch.isfinite(gradient.sum())) and not bool(torch.isfinite(gradient).all()):
            raise GradfixError(
                f"{samples}: the gradient of {name} is not finite; look at these samples' data, or count in float32 if "
                "the number format is lower"
            )
        if name in self._sums:
            self._sums[name] += gradient
        else:
            self._sums[name] = gradient.to(torch.float32)
