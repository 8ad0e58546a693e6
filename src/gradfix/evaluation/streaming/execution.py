"""Run a model block by block: forward for many passes at once, and backward through what each block was given.

Between the blocks runs the model's own code, with its own autograd graph. At a block that graph is cut: the block's
inputs are kept, and in the backward pass the block is run again on them. So no more than one block's weights, and one
block's graph for one batch, are ever there.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from gradfix.checkpoints.fingerprint import tensor_fingerprint
from gradfix.errors import GradfixError
from gradfix.evaluation.streaming.lanes import Lane, current_lane
from gradfix.evaluation.streaming.placeholders import placeholder
from gradfix.evaluation.streaming.units import Unit, divide
from gradfix.tasks.batches import map_tensors, tensors_of
from gradfix.votes.isolation import autocast, checked_losses
from gradfix.votes.plain import refuse_not_finite

Fetch = Callable[[str, Any], Tensor]
"""Gives a parameter's value at a point: ``fetch(name, point)``, in the format and on the device of the computation."""


@dataclass
class Request:
    """One call of a unit.

    Attributes:
        unit: What is called.
        arguments: Its arguments: a tuple, and a dictionary of those with names.
    """

    unit: Unit
    arguments: tuple[tuple[Any, ...], dict[str, Any]]


class Call:
    """What is kept of one call of a unit for the backward pass.

    Attributes:
        unit: What was called.
        tensors: The tensors among the arguments, in order, as the model's code handed them over.
        samples: N of the batch.
        gradients: By number of the output tensor, as far as they have arrived.
    """

    def __init__(self, request: Request, samples: int) -> None:
        self.unit, self.samples = request.unit, samples
        self.tensors = [tensor for _, tensor in tensors_of(request.arguments)]
        self.gradients: dict[int, Tensor] = {}
        self._arguments = request.arguments
        self._versions = [tensor._version for tensor in self.tensors]

    def arguments(self, tensors: Sequence[Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Give the arguments with other tensors in the places of the kept ones."""
        for tensor, version in zip(self.tensors, self._versions, strict=True):
            if tensor._version != version:
                raise GradfixError(
                    f"{self.unit.name}: the model writes into an input of this block after it has run, so it can't be "
                    "run again; give --memory a size that the model fits in"
                )
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
        self._first: dict[int, int] = {}
        self._pending: dict[int, Tensor] = {}

    def add(self, call: Call) -> None:
        """Note a call."""
        for tensor in call.tensors:
            self._first.setdefault(id(tensor), len(self.calls))
        self.calls.append(call)

    def remaining(self, name: str) -> int:
        """Count the calls left of units with a parameter."""
        return sum(name in call.unit.names for call in self.calls)

    def go_back(self, gradients: Sequence[Tensor | None]) -> None:
        """Leave the last call, and hand the gradients of its inputs to the model's code before it.

        A tensor that several calls were given (a mask, an encoder's states) waits until all of them have passed: then
        its gradient goes back once, summed in the order in which autograd would have summed it.

        Args:
            gradients: One for each of the call's tensors; None where there is none.
        """
        call = self.calls.pop()
        for tensor, gradient in dict(zip(call.tensors, gradients, strict=True)).items():
            if gradient is not None:
                known = self._pending.get(id(tensor))
                self._pending[id(tensor)] = gradient if known is None else known + gradient
        ready = {
            id(tensor): tensor for tensor in call.tensors if self._first.get(id(tensor)) == len(self.calls)
        }
        found = [(tensor, self._pending.pop(key)) for key, tensor in ready.items() if key in self._pending]
        if found:
            tensors, sums = zip(*found, strict=True)
            torch.autograd.backward(tensors, sums, retain_graph=True)
        for key in ready:
            del self._first[key]


class Visitor:
    """What is done with the units while gradients are computed; this one only hands gradients on."""

    def __init__(self, device: torch.device, lower: torch.dtype | None = None) -> None:
        """Prepare.

        Args:
            device: Where the model computes.
            lower: Autocast's dtype; None for the model's own precision.
        """
        self.device, self.lower = device, lower

    def running(self, unit: Unit, samples: int) -> AbstractContextManager[Any]:
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


@dataclass
class Execution:
    """A model whose weights are fetched unit by unit.

    Attributes:
        model: The module; all of its parameters but a few small ones become placeholders.
        fetch: Gives a parameter's value.
        device: Where to compute.
        dtype: Number format of the computation.
        point: Where the model stands when it is called as it is, outside of :meth:`forward` and :meth:`gradients`.
        check: Called before weights are fetched.
        wanted: Parameters that require a gradient while gradients are computed.
        division: The model in units.
        placeholders: By the parameters' names.
        fingerprints: Of the wanted parameters where gradients were computed last.
    """

    model: nn.Module
    fetch: Fetch
    device: torch.device
    dtype: torch.dtype
    point: Any = None
    wanted: frozenset[str] = frozenset()
    check: Callable[[], None] = lambda: None
    fingerprints: dict[str, str] = field(default_factory=dict, init=False)
    _values: dict[str, nn.Parameter] = field(default_factory=dict, init=False, repr=False)
    _present: dict[Unit, Any] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        self.division = divide(self.model)
        self._forwards: dict[Unit, Callable[..., Any]] = {}
        self.placeholders: dict[str, nn.Parameter] = {}
        shared: dict[int, nn.Parameter] = {}
        for unit in self.division.units:
            for slot in unit.slots:
                stored = slot.owner._parameters[slot.attribute]
                assert stored is not None
                made = self.placeholders.get(slot.name)
                if made is None:
                    made = placeholder(slot.name, stored, self.dtype, self.device)
                    self.placeholders[slot.name] = shared[id(stored)] = made
            self._forwards[unit] = unit.module.forward
            unit.module.forward = partial(self._called, unit)
        for module in self.model.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None and id(parameter) in shared:
                    module._parameters[name] = shared[id(parameter)]

    def forward(self, jobs: Sequence[tuple[Callable[[], Any], Any]]) -> list[Any]:
        """Run passes without gradients, all of them through each block while its weights are there.

        Args:
            jobs: What to run, and at which point.

        Returns:
            What each returned, in order.
        """
        passes = [
            Pass(partial(_inferring, function), point, number)
            for number, (function, point) in enumerate(jobs)
        ]

        def run(item: Pass, request: Request) -> Any:
            with torch.inference_mode():
                args, kwargs = request.arguments
                return self._forwards[request.unit](*args, **kwargs)

        with self._ending(passes):
            self._advance(passes, run, lambda item: None)
        return [item.result for item in passes]

    def gradients(self, jobs: Sequence[tuple[Callable[[], Tensor], Any, int]], visitor: Visitor) -> None:
        """Run passes to their losses, and back.

        Args:
            jobs: What computes the losses of a batch, one a sample; at which point; and N.
            visitor: What to do with each unit on the way back.
        """
        anchor = torch.zeros((), device=self.device, requires_grad=True)
        self.fingerprints = {}
        passes = [Pass(function, point, number, size) for number, (function, point, size) in enumerate(jobs)]

        def run(item: Pass, request: Request) -> Any:
            call = Call(request, item.samples)
            refuse_caches(call.unit, request.arguments)
            with torch.enable_grad(), visitor.running(call.unit, item.samples):
                outputs = self._run(call, leaves_of(call.tensors))
            item.add(call)
            return cut(outputs, call, anchor)

        def finished(item: Pass) -> None:
            visitor.finished(item)
            torch.autograd.backward(item.result.sum())
            item.result = None
            # What comes after the last block goes back at once: its scores are the largest tensors of the pass.
            while item.calls and not item.calls[-1].unit.block:
                self._go_back(item, visitor)

        with torch.inference_mode(False), torch.enable_grad(), self._ending(passes):
            self._advance(passes, run, finished, settle=lambda: visitor.settle(passes))
            visitor.settle(passes)
            while left := [item for item in passes if item.calls]:
                unit = left[0].calls[-1].unit
                for item in left:
                    while item.calls and item.calls[-1].unit is unit:
                        self._go_back(item, visitor)
                visitor.settle(passes)
        self.release()

    def values_of(self, unit: Unit) -> dict[str, nn.Parameter]:
        """Give a unit's wanted parameters by their names in the model; its weights are there."""
        return {name: self._values[name] for name in unit.names if name in self.wanted}

    def release(self) -> None:
        """Let go of all weights that are there."""
        for unit in list(self._present):
            self._unload(unit)

    def close(self) -> None:
        """Give the modules their own ``forward`` again. What was a weight stays a placeholder."""
        self.release()
        for unit in self._forwards:
            del unit.module.forward
        self._forwards.clear()

    def _go_back(self, item: Pass, visitor: Visitor) -> None:
        call = item.calls[-1]
        found: Sequence[Tensor | None] = [None] * len(call.tensors)
        if call.gradients:
            self._load(call.unit, item.point)
            with torch.enable_grad():
                found = visitor.go_back(item, call, partial(self._run, call))
        item.go_back(found)

    def _run(self, call: Call, tensors: Sequence[Tensor]) -> Any:
        args, kwargs = call.arguments(tensors)
        return self._forwards[call.unit](*args, **kwargs)

    def _advance(
        self,
        passes: Sequence[Pass],
        run: Callable[[Pass, Request], Any],
        finished: Callable[[Pass], None],
        settle: Callable[[], None] = lambda: None,
    ) -> None:
        """Bring all passes to their end: those at one block together, and each by itself between the blocks."""

        def resume(item: Pass, answer: Any = None) -> None:
            item.resume(answer)
            while item.request is not None and not item.request.unit.block:
                self._load(item.request.unit, item.point)
                item.resume(run(item, item.request))
            if item.done:
                finished(item)
                settle()

        for item in passes:
            resume(item)
        while waiting := [item for item in passes if item.request is not None]:
            unit = waiting[0].request.unit
            here = [item for item in waiting if item.request.unit is unit]
            answers = []
            for point in {id(item.point): item.point for item in here}.values():
                for item in here:
                    if item.point is point:
                        self._load(unit, point)
                        answers.append((item, run(item, item.request)))
            while answers:
                resume(*answers.pop(0))

    @contextmanager
    def _ending(self, passes: Sequence[Pass]) -> Iterator[None]:
        try:
            yield
        finally:
            for item in passes:
                item.cancel()
                item.calls.clear()

    def _called(self, unit: Unit, *args: Any, **kwargs: Any) -> Any:
        """Stand in for a unit's ``forward``."""
        lane = current_lane()
        if lane is not None:
            return lane.wait_for(Request(unit, (args, kwargs)))
        self._load(unit, self.point)
        return self._forwards[unit](*args, **kwargs)

    def _load(self, unit: Unit, point: Any) -> None:
        """Fetch a unit's weights, unless they are there. A block is there alone, what is outside of blocks together."""
        if unit in self._present and self._present[unit] is point:
            return
        self.check()
        for other, there in list(self._present.items()):
            if unit.block or other.block or there is not point:
                self._unload(other)
        # Weights that were made while inference was on could not enter a graph later.
        with torch.inference_mode(False), torch.no_grad():
            for slot in unit.slots:
                if slot.name not in self._values:
                    value = self.fetch(slot.name, point)
                    if slot.name in self.wanted and slot.name not in self.fingerprints:
                        self.fingerprints[slot.name] = tensor_fingerprint(value)
                    self._values[slot.name] = nn.Parameter(value, requires_grad=slot.name in self.wanted)
                slot.owner._parameters[slot.attribute] = self._values[slot.name]
        self._present[unit] = point

    def _unload(self, unit: Unit) -> None:
        del self._present[unit]
        for slot in unit.slots:
            slot.owner._parameters[slot.attribute] = self.placeholders[slot.name]
        still = {slot.name for other in self._present for slot in other.slots}
        for slot in unit.slots:
            if slot.name not in still:
                self._values.pop(slot.name, None)


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


def _inferring(function: Callable[[], Any]) -> Any:
    with torch.inference_mode():
        return function()
