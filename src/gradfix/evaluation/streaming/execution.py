"""Run a model block by block: forward for many passes at once, and backward through what each block was given.

Between the blocks runs the model's own code, with its own autograd graph. At a block that graph is cut: the block's
inputs are kept, and in the backward pass the block is run again on them. So no more than one block's weights, and one
block's graph for one batch, are ever there.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from gradfix.checkpoints.fingerprint import tensor_fingerprint
from gradfix.checkpoints.reading.reuse import Reuse, reusing
from gradfix.evaluation.streaming.allocator import give_back_what_is_free
from gradfix.evaluation.streaming.calls import (
    Call,
    Pass,
    Request,
    cut,
    differentiable,
    leaves_of,
    refuse_caches,
)
from gradfix.evaluation.streaming.device import Fetch, Supply, Touch
from gradfix.evaluation.streaming.kept import KeptInputs, KeptProducts, Room
from gradfix.evaluation.streaming.lanes import current_lane
from gradfix.evaluation.streaming.placeholders import placeholder
from gradfix.evaluation.streaming.units import Unit, divide
from gradfix.evaluation.streaming.visitor import Visitor


@dataclass
class Execution:
    """A model whose weights are fetched unit by unit.

    Attributes:
        model: The module; all of its parameters but a few small ones become placeholders.
        fetch: Gives a parameter's value.
        touch: Reads a parameter's stored value ahead.
        device: Where to compute.
        dtype: Number format of the computation.
        point: Where the model stands when it is called as it is, outside of :meth:`forward` and :meth:`gradients`.
        same: Whether a parameter has the same value at two points.
        check: Called before weights are fetched.
        wanted: Parameters that require a gradient while gradients are computed.
        room: How much of what blocks are given may be kept where.
        division: The model in units.
        placeholders: By the parameters' names.
        fingerprints: Of the wanted parameters where gradients were computed last.
    """

    model: nn.Module
    fetch: Fetch
    touch: Touch
    device: torch.device
    dtype: torch.dtype
    point: Any = None
    same: Callable[[str, Any, Any], bool] = lambda name, one, other: one is other
    wanted: frozenset[str] = frozenset()
    check: Callable[[], None] = lambda: None
    room: Room = field(default_factory=Room)
    fingerprints: dict[str, str] = field(default_factory=dict, init=False)
    _values: dict[str, nn.Parameter] = field(default_factory=dict, init=False, repr=False)
    _made: dict[str, Any] = field(default_factory=dict, init=False, repr=False)
    _present: dict[Unit, Any] = field(default_factory=dict, init=False, repr=False)
    _memory: Reuse = field(default_factory=Reuse, init=False, repr=False)

    def __post_init__(self) -> None:
        self.division = divide(self.model)
        self._supply = Supply(self.device, lambda name, point: self.fetch(name, point), self.touch)
        self._following = dict(pairwise(self.division.units))
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
        """Run passes without gradients, as many as there is room for through each block while its weights are there.

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
            left: Sequence[Pass] = passes
            while left:
                left = self._advance(left, run, lambda item: None, room=self.room.device)
        return [item.result for item in passes]

    def gradients(self, jobs: Sequence[tuple[Callable[[], Tensor], Any, int]], visitor: Visitor) -> None:
        """Run passes to their losses, and back.

        Args:
            jobs: What computes the losses of a batch, one a sample; at which point; and N.
            visitor: What to do with each unit on the way back.
        """
        anchor = torch.zeros((), device=self.device, requires_grad=True)
        kept, products = KeptInputs(self.room), KeptProducts(self.room)
        self.fingerprints = {}
        passes = [Pass(function, point, number, size) for number, (function, point, size) in enumerate(jobs)]

        def run(item: Pass, request: Request) -> Any:
            call = Call(request, item.samples, kept, products)
            refuse_caches(call.unit, request.arguments)
            with torch.enable_grad(), visitor.running(call):
                outputs = self._run(call, leaves_of(request.tensors))
            if differentiable(
                outputs
            ):  # otherwise nothing comes back to it: all below the first weight that is wanted
                item.add(call)
            return cut(outputs, call, anchor)

        def finished(item: Pass) -> None:
            visitor.finished(item)
            torch.autograd.backward(item.result.sum())
            item.result = None
            # What comes after the last block goes back at once: its scores are the largest tensors of the pass.
            while item.calls and not item.calls[-1].unit.block:
                self._go_back(item, visitor)

        with (
            closing(kept),
            closing(products),
            torch.inference_mode(False),
            torch.enable_grad(),
            self._ending(passes),
        ):
            self._advance(passes, run, finished, settle=lambda: visitor.settle(passes))
            visitor.settle(passes)
            while (left := [item for item in passes if item.calls]) and not visitor.ended(left):
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
        self._supply.close()
        for unit in list(self._present):
            self._unload(unit)
        self._give_back()

    def close(self) -> None:
        """Give the modules their own ``forward`` again. What was a weight stays a placeholder."""
        self.release()
        for unit in self._forwards:
            del unit.module.forward
        self._forwards.clear()

    def _go_back(self, item: Pass, visitor: Visitor) -> None:
        call = item.calls[-1]
        found: Sequence[Tensor | None] = [None] * len(call.inputs)
        if call.gradients:
            before = (other.unit for other in reversed(item.calls) if other.unit is not call.unit)
            self._load(call.unit, item.point, before=next(before, None))
            call.recall()
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
        room: int | None = None,
    ) -> Sequence[Pass]:
        """Bring passes to their end: those at one block together, and each by itself between the blocks.

        Args:
            passes: Which; at least the first is brought to its end.
            run: Runs a unit.
            finished: Called with each that has ended.
            settle: Called after that.
            room: Bytes that the tensors on their way may take together; None for any number.

        Returns:
            Those for which there was no room, not begun yet.
        """

        def resume(item: Pass, answer: Any = None) -> None:
            item.resume(answer)
            while item.request is not None and not item.request.unit.block:
                unit = item.request.unit
                self._load(unit, item.point, before=self._following.get(unit))
                item.resume(run(item, item.request))
            if item.done:
                finished(item)
                settle()

        begun, held = 0, 0
        while begun < len(passes) and (not begun or room is None or held < room):
            resume(passes[begun])
            if (request := passes[begun].request) is not None:
                held += sum(tensor.nbytes for tensor in request.tensors)
            begun += 1
        while waiting := [item for item in passes[:begun] if item.request is not None]:
            unit = waiting[0].request.unit
            here = [item for item in waiting if item.request.unit is unit]
            answers = []
            for point in {id(item.point): item.point for item in here}.values():
                for item in here:
                    if item.point is point:
                        self._load(unit, point, before=self._following.get(unit))
                        answers.append((item, run(item, item.request)))
            while answers:
                resume(*answers.pop(0))
        return passes[begun:]

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

    def _load(self, unit: Unit, point: Any, before: Unit | None = None) -> None:
        """Fetch a unit's weights, unless they are there. A block is there alone, what is outside of blocks together.

        Args:
            unit: Which.
            point: Where the model stands.
            before: The unit that this one most likely stands before: its weights are brought meanwhile.
        """
        if unit in self._present and self._present[unit] is point:
            return
        self.check()
        arriving = unit not in self._present
        changed = {slot.name for slot in unit.slots if not self._stays(slot.name, point)}
        like_before = all(each.block for each in (unit, *self._present))
        for other in list(self._present):
            shared = any(slot.name in changed for slot in other.slots)
            if other is not unit and (unit.block or other.block or shared):
                self._unload(other)
        for slot in unit.slots:  # the old value goes before the new one comes
            if slot.name in changed:
                slot.owner._parameters[slot.attribute] = self.placeholders[slot.name]
                self._values.pop(slot.name, None)
        # A block takes what the one before it left free; all others have other sizes.
        if arriving and not like_before:
            self._give_back()
        # Weights that were made while inference was on could not enter a graph later.
        with torch.inference_mode(False), torch.no_grad(), reusing(self._memory):
            for slot in unit.slots:
                if slot.name not in self._values:
                    value = self._supply.take(slot.name, point)
                    if slot.name in self.wanted and slot.name not in self.fingerprints:
                        self.fingerprints[slot.name] = tensor_fingerprint(value)
                    self._values[slot.name] = nn.Parameter(value, requires_grad=slot.name in self.wanted)
                    self._made[slot.name] = point  # at once: the next one may fail
                slot.owner._parameters[slot.attribute] = self._values[slot.name]
        self._present[unit] = point
        if before is not None and arriving:  # at other points, it stays expected where it is needed first
            self._supply.expect([name for name in before.names if name not in self._values], point)

    def _give_back(self) -> None:
        self._memory.clear()
        give_back_what_is_free()

    def _stays(self, name: str, point: Any) -> bool:
        """Whether a parameter's value is there as it is at a point."""
        return name in self._values and (
            self._made[name] is point or self.same(name, self._made[name], point)
        )

    def _unload(self, unit: Unit) -> None:
        del self._present[unit]
        for slot in unit.slots:
            slot.owner._parameters[slot.attribute] = self.placeholders[slot.name]
        still = {slot.name for other in self._present for slot in other.slots}
        for slot in unit.slots:
            if slot.name not in still:
                self._values.pop(slot.name, None)
                self._made.pop(slot.name, None)  # a point holds on to its δ


def _inferring(function: Callable[[], Any]) -> Any:
    with torch.inference_mode():
        return function()
