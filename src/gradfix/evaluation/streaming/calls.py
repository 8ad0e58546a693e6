"""One batch on its way through a model: which units it called, what they were given, and which gradients came back."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from gradfix.errors import GradfixError
from gradfix.evaluation.streaming.kept import Kept, KeptInputs, KeptProducts
from gradfix.evaluation.streaming.lanes import Lane
from gradfix.evaluation.streaming.units import Unit
from gradfix.tasks.batches import map_tensors, tensors_of
from gradfix.votes.fast.outputs import Outputs

_PLACE = torch.empty(0, device="meta")


@dataclass
class Request:
    """One call of a unit.

    Attributes:
        unit: What is called.
        arguments: Its arguments: a tuple, and a dictionary of those with names.
    """

    unit: Unit
    arguments: tuple[tuple[Any, ...], dict[str, Any]]

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors among the arguments, in order."""
        return [tensor for _, tensor in tensors_of(self.arguments)]


class Call:
    """What is kept of one call of a unit for the backward pass.

    Attributes:
        unit: What was called.
        inputs: The tensors among the arguments, in order, wherever they are kept.
        tensors: Their numbers, while the call is being run again.
        samples: N of the batch.
        gradients: By number of the output tensor, as far as they have arrived.
        outputs: What products of the call gave; None of a unit that goes back at once.
    """

    def __init__(self, request: Request, samples: int, kept: KeptInputs, products: KeptProducts) -> None:
        self.unit, self.samples = request.unit, samples
        self.outputs = Outputs(products.keep) if request.unit.block else None
        self.inputs = [kept.keep(tensor) for tensor in request.tensors]
        self.tensors: Sequence[Tensor] = ()
        self.gradients: dict[int, Tensor] = {}
        self._arguments = map_tensors(request.arguments, lambda _: _PLACE)

    def recall(self) -> None:
        """Bring the numbers of its inputs back."""
        values = {kept: kept.value(self.unit.name) for kept in dict.fromkeys(self.inputs)}
        self.tensors = [values[kept] for kept in self.inputs]

    def arguments(self, tensors: Sequence[Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Give the arguments with other tensors in the places of the kept ones."""
        following = iter(tensors)
        found: tuple[tuple[Any, ...], dict[str, Any]] = map_tensors(
            self._arguments, lambda _: next(following)
        )
        return found

    def take(self, number: int, gradient: Tensor) -> None:
        """Add to the gradient of an output."""
        known = self.gradients.get(number)
        self.gradients[number] = gradient if known is None else known + gradient


class Boundary(Function):
    """An output of a unit where the graph of the model's own code begins; its gradient goes to the call."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, value: list[Tensor], call: Call, number: int) -> Tensor:
        """Hand the value through."""
        ctx.call, ctx.number = call, number
        return value[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, ...]:
        """Keep the gradient."""
        ctx.call.take(ctx.number, gradient)
        return (None,) * 4


class Pass(Lane):
    """One batch on its way through the model.

    Attributes:
        point: Where the model stands for it.
        number: Its place among the passes.
        samples: N of the batch.
        calls: What it called, in order, as far as no gradient has gone back through it.
    """

    def __init__(self, function: Callable[[], Any], point: Any, number: int, samples: int = 0) -> None:
        super().__init__(function)
        self.point, self.number, self.samples = point, number, samples
        self.calls: list[Call] = []
        self._first: dict[Kept, int] = {}
        self._pending: dict[Kept, Tensor] = {}

    def add(self, call: Call) -> None:
        """Note a call."""
        for kept in call.inputs:
            self._first.setdefault(kept, len(self.calls))
        self.calls.append(call)

    def go_back(self, gradients: Sequence[Tensor | None]) -> None:
        """Leave the last call, and hand the gradients of its inputs to the model's code before it.

        A tensor that several calls were given (a mask, an encoder's states) waits until all of them have passed: then
        its gradient goes back once, summed in the order in which autograd would have summed it.

        Args:
            gradients: One for each of the call's tensors; None where there is none.
        """
        call = self.calls.pop()
        for kept, gradient in dict(zip(call.inputs, gradients, strict=True)).items():
            if gradient is not None:
                known = self._pending.get(kept)
                self._pending[kept] = gradient if known is None else known + gradient
        ready = [kept for kept in dict.fromkeys(call.inputs) if self._first.get(kept) == len(self.calls)]
        found = [(kept.edge, self._pending.pop(kept)) for kept in ready if kept in self._pending]
        for kept in ready:
            del self._first[kept]
        if found:
            edges, sums = zip(*found, strict=True)
            torch.autograd.backward(edges, sums, retain_graph=True)


def leaves_of(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Copy tensors without their graphs, without copying their numbers.

    Args:
        tensors: Any; one that occurs twice is one leaf.

    Returns:
        Leaves that require a gradient where the tensors do.
    """
    made: dict[int, Tensor] = {}
    for tensor in tensors:
        if id(tensor) not in made:
            made[id(tensor)] = tensor.detach().requires_grad_(tensor.requires_grad)
    return [made[id(tensor)] for tensor in tensors]


def differentiable(outputs: Any) -> list[tuple[int, Tensor]]:
    """Give the tensors among a unit's outputs that have a gradient, with their numbers."""
    return [
        (number, tensor) for number, (_, tensor) in enumerate(tensors_of(outputs)) if tensor.requires_grad
    ]


def cut(outputs: Any, call: Call, anchor: Tensor) -> Any:
    """Take a unit's outputs out of its graph.

    Args:
        outputs: A nesting of tensors.
        call: Gets their gradients.
        anchor: A scalar that requires a gradient.

    Returns:
        The same nesting, with a graph that begins here.

    Raises:
        GradfixError: where an output's samples are not in its first dimension.
    """
    number = -1

    def begun(tensor: Tensor) -> Tensor:
        nonlocal number
        number += 1
        value = tensor.detach()
        if not tensor.requires_grad:
            return value
        if value.shape[:1] != (call.samples,):
            if value.shape[:1] != (1,):
                raise GradfixError(
                    f"{call.unit.name}: an output of shape {list(value.shape)} for {call.samples} samples has not the "
                    "sample as its first dimension, so the block can't be run again for one sample; give --memory a "
                    "size that the model fits in"
                )
            # Made of weights alone, as T5's relative positions: each sample gets a gradient of its own.
            value = value.expand(call.samples, *value.shape[1:])
        begins: Tensor = Boundary.apply(anchor, [value], call, number)  # type: ignore[no-untyped-call]
        return begins

    return map_tensors(outputs, begun)


def refuse_caches(unit: Unit, arguments: tuple[tuple[Any, ...], dict[str, Any]]) -> None:
    """Refuse a block that is handed a cache of keys and values: run again, it would add to it twice."""
    args, kwargs = arguments
    found = [value for value in (*args, *kwargs.values()) if type(value).__name__.endswith("Cache")]
    if found:
        raise GradfixError(
            f"{unit.name}: is given a {type(found[0]).__name__}, and would write to it each time that it is run; set "
            "use_cache to false in the model's config.json"
        )
