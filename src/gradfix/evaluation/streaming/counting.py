"""Votes counted unit by unit on the way back, by the engine that counts a whole model.

A unit's part in the gradients is that of a loss of its own: its outputs, each times the gradient that has arrived for
it. To this loss and the unit's inputs everything applies that applies to a model and a batch: the rules, their
verification, the plain loop.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from gradfix.errors import GradfixError
from gradfix.evaluation.streaming.calls import Call, Pass, differentiable
from gradfix.evaluation.streaming.execution import Execution
from gradfix.evaluation.streaming.store import CountStore
from gradfix.evaluation.streaming.units import Unit
from gradfix.evaluation.streaming.visitor import Visitor
from gradfix.tasks.batches import batch_size, tensors_of
from gradfix.votes.fast.accumulate import Blocks, Tally
from gradfix.votes.fast.attention import WideAttention
from gradfix.votes.fast.contributions import Contribution, Summed
from gradfix.votes.fast.counter import FastCounter
from gradfix.votes.fast.recorder import Recorder
from gradfix.votes.fast.verification import FEWEST, Plan
from gradfix.votes.isolation import autocast


class VoteVisitor(Visitor):
    """Counts the votes of several groups of samples.

    Attributes:
        reasons: Parameters that the plain loop counted, with the reason.
    """

    def __init__(
        self,
        execution: Execution,
        counted: Sequence[tuple[int, int, int, Any]],
        stores: Sequence[CountStore],
        plans: dict[tuple[object, frozenset[str]], Plan],
        lower: torch.dtype | None = None,
    ) -> None:
        """Prepare to count at the execution's ``wanted`` parameters.

        Args:
            execution: Runs the model.
            counted: Of each pass: its place among those of all ranks, its group, the number of its first sample in that
                group, and its batch.
            stores: One a group: gets each parameter's counts once they are complete. What it has is not counted again.
            plans: What was verified, by kind of unit; added to.
            lower: Autocast's dtype, or None.
        """
        super().__init__(execution.device, lower)
        self.reasons: dict[str, str] = {}
        self._execution, self._stores, self._plans = execution, stores, plans
        self._places, self._groups, self._first = ([each[i] for each in counted] for i in range(3))
        self._samples = Counter[int]()
        for _, group, _, batch in counted:
            self._samples[group] += batch_size(batch)
        self._owners = Counter(
            name for unit in execution.division.units for name in unit.names if name in execution.wanted
        )
        self._tallies: dict[tuple[int, object], Tally] = {}
        self._held: dict[tuple[int, str], list[tuple[Sequence[Contribution], int]]] = {}

    @contextmanager
    def running(self, call: Call) -> Iterator[None]:
        """Run the forward pass by the same rules as the backward pass will: to the same bits."""
        parameters = self._parameters(call.unit)
        with autocast(self.device, self.lower):
            if not parameters or call.samples < FEWEST:
                yield
                return
            plan = self._plan(call.unit)
            if call.outputs is not None:
                call.outputs.unread = plan.spared or frozenset()
            recorder = Recorder(parameters, call.samples, plan.derived, keeping=call.outputs)
            with closing(recorder), recorder:
                yield

    def go_back(self, item: Pass, call: Call, run: Callable[[Sequence[Tensor]], Any]) -> list[Tensor | None]:
        """Count the votes of one batch at one unit, and compute the gradients of its inputs."""
        parameters = self._parameters(call.unit)
        if not parameters:
            # As in units that vote, where the plain loop runs a sample that is alone.
            with WideAttention() if call.samples >= FEWEST else nullcontext():
                return self.gradients(call, run)
        group = self._groups[item.number]
        loss = UnitLoss(call, run)
        plan = self._plan(call.unit)
        plan.batch = self._places[item.number]
        if call.samples >= FEWEST and not plan.verdicts:
            check_alone(call, loss, run)
        leaves: list[Tensor] = []

        def wanted() -> list[Tensor]:
            leaves[:] = loss.leaves
            return [leaf for leaf in dict.fromkeys(leaves) if leaf.requires_grad]

        counter = UnitCounter(
            call.unit.module,
            loss,
            parameters,
            self._tally(group, call.unit, call.unit.names),
            self.lower,
            plan=plan,
            leaves=wanted,
            known=call.outputs,
            counted={
                relative for relative in parameters if _named(call.unit, relative) in self._stores[group]
            },
            shared={
                relative
                for relative in parameters
                if self._is_shared(item, call.unit, _named(call.unit, relative))
            },
        )
        try:
            counter.count(loss.batch, self._first[item.number])
        except GradfixError as error:
            raise GradfixError(f"{call.unit.name}: {error}") from error
        for relative, reason in counter.reasons.items():
            name = _named(call.unit, relative)
            self.reasons[name] = min(reason, self.reasons.get(name, reason))
        for relative, parts in counter.parts().items():
            self._held.setdefault((item.number, _named(call.unit, relative)), []).append(
                (parts, call.samples)
            )
        if call.samples < FEWEST:  # the plain loop ran the batch as it is
            leaves[:] = loss.leaves
        if not leaves or any(leaf.grad is None for leaf in leaves if leaf.requires_grad):
            return self.gradients(call, run)
        return [leaf.grad for leaf in leaves]

    def settle(self, passes: Sequence[Pass]) -> None:
        """Hand on the counts that no pass will add to any more."""
        ended = {
            group
            for group in self._samples
            if all(item.done for item in passes if self._groups[item.number] == group)
        }
        left: dict[int, Counter[str]] = {group: Counter() for group in ended}
        for item in passes:
            group = self._groups[item.number]
            if group in ended:
                names = Counter(name for call in item.calls for name in call.unit.names)
                left[group].update(names)
                for held in [held for held in self._held if held[0] == item.number and not names[held[1]]]:
                    self._vote_held(group, held[1], self._held.pop(held))
        for group, key in list(self._tallies):
            counted = [key] if isinstance(key, str) else key.names  # type: ignore[attr-defined]
            if group in ended and not any(left[group][name] for name in counted):
                counts = self._tallies.pop((group, key)).counts()
                named = (
                    counts
                    if isinstance(key, str)
                    else {_named(key, relative): value for relative, value in counts.items()}  # type: ignore[arg-type]
                )
                if named:
                    self._stores[group].put(named, self._execution.fingerprints, self.reasons)

    def ended(self, passes: Sequence[Pass]) -> bool:
        """Tell whether all that passes have yet to go back through was counted before."""
        return all(
            name in self._stores[self._groups[item.number]]
            for item in passes
            for call in item.calls
            for name in call.unit.names
            if name in self._execution.wanted
        )

    def first_sample(self, item: Pass) -> int:
        """Give the index of a pass's first sample among those of its group."""
        return self._first[item.number]

    def _parameters(self, unit: Unit) -> dict[str, nn.Parameter]:
        """The unit's parameters that vote, by their names in it, each once."""
        found: dict[str, nn.Parameter] = {}
        seen: set[str] = set()
        for slot in unit.slots:
            if slot.name in self._execution.wanted and slot.name not in seen:
                seen.add(slot.name)
                parameter = slot.owner._parameters[slot.attribute]
                assert parameter is not None
                found[slot.relative] = parameter
        return found

    def _plan(self, unit: Unit) -> Plan:
        key = unit.kind, frozenset(self._parameters(unit))
        return self._plans.setdefault(key, Plan())

    def _tally(self, group: int, key: Any, names: Sequence[str]) -> Tally:
        """The counts of a unit's parameters by their names in it, or of one that several units share."""
        if (group, key) not in self._tallies:
            placeholders = self._execution.placeholders
            shapes = (
                {key: placeholders[key]}
                if isinstance(key, str)
                else {slot.relative: placeholders[slot.name] for slot in key.slots}
            )
            tally = self._tallies[group, key] = Tally(shapes)
            tally.expect(self._samples[group])
        return self._tallies[group, key]

    def _is_shared(self, item: Pass, unit: Unit, name: str) -> bool:
        """Whether a parameter is used by several calls of one pass, so that its gradient is their sum."""
        if (item.number, name) in self._held:
            return True
        if self._owners[name] == 1 and sum(call.unit is unit for call in item.calls) == 1:
            return False
        return sum(name in call.unit.names for call in item.calls) > 1

    @torch.no_grad()
    def _vote_held(self, group: int, name: str, held: list[tuple[Sequence[Contribution], int]]) -> None:
        parts = [part for parts, _ in reversed(held) for part in parts]
        samples = held[0][1]
        for part in parts:
            if not float(part.largest()) <= torch.finfo(part.dtype).max / len(parts):
                raise GradfixError(
                    f"the gradient of {name} may leave the range of {part.dtype}; use --compute-dtype float32"
                )
        counts = self._tally(group, name, [name]).of(name)
        for job in Blocks().jobs(counts.view(counts.shape[0] if counts.ndim else 1, -1), parts, samples):
            job()


class Arrived(Function):
    """Stands for ⟨output, gradient⟩ of each sample, and sends the gradient back: nobody looks at its value."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, gradient: Tensor) -> Tensor:
        """Give a zero a sample: those of a head over the vocabulary would take long."""
        ctx.gradient, ctx.reads_nothing = gradient, True
        return output.new_zeros(len(output), dtype=torch.promote_types(output.dtype, torch.float32))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, weights: Tensor) -> tuple[Tensor, None]:
        """Hand the gradient on: of the sum of the losses as it is."""
        gradient: Tensor = ctx.gradient
        if bool((weights == 1).all()):
            return gradient, None
        return gradient * weights.view(-1, *[1] * (gradient.ndim - 1)).to(gradient.dtype), None


class UnitLoss:
    """The part of the losses that goes through one call of a unit: its outputs times their gradients.

    Attributes:
        batch: The unit's inputs that have a row for each sample, and the gradients.
        leaves: The inputs of the last run, one for each of the call's tensors, whether they are in the batch or shared
            by all samples.
    """

    def __init__(self, call: Call, run: Callable[[Sequence[Tensor]], Any]) -> None:
        """Prepare.

        Args:
            call: Has the inputs and gradients.
            run: Runs the unit on other tensors in the place of the call's.
        """
        self._call, self._run = call, run
        unique = {id(tensor): tensor for tensor in call.tensors}
        self._own = [key for key, tensor in unique.items() if tensor.ndim > 1 and len(tensor) == call.samples]
        self._numbers = list(call.gradients)
        self.batch: dict[str, list[Tensor]] = {
            "inputs": [unique[key].detach() for key in self._own],
            "gradients": list(call.gradients.values()),
        }
        self.leaves: list[Tensor] = []

    def __call__(self, module: nn.Module, batch: Mapping[str, list[Tensor]]) -> Tensor:
        """Compute one value a sample, of any samples of the batch."""
        gradients = dict(zip(self._numbers, batch["gradients"], strict=True))
        losses: Tensor | None = None
        for number, output in differentiable(self._run(self.inputs(batch["inputs"]))):
            if number in gradients:
                gradient, wide = gradients[number], torch.promote_types(output.dtype, torch.float32)
                # What has no dimension of samples is made of weights alone: the rules must see it meet them.
                part: Tensor = (
                    Arrived.apply(output, gradient)  # type: ignore[no-untyped-call]
                    if output.shape == gradient.shape
                    else (output.to(wide) * gradient.to(wide)).flatten(1).sum(1)
                )
                losses = part if losses is None else losses + part
        assert losses is not None
        return losses

    def inputs(self, own: Sequence[Tensor]) -> list[Tensor]:
        """Make leaves for all of the call's tensors, of which those with a row a sample are given."""
        given = dict(zip(self._own, own, strict=True))
        made: dict[int, Tensor] = {}
        for tensor in self._call.tensors:
            if id(tensor) not in made:
                value = given.get(id(tensor), tensor)
                made[id(tensor)] = value.detach().requires_grad_(tensor.requires_grad)
        self.leaves = [made[id(tensor)] for tensor in self._call.tensors]
        return self.leaves


class UnitCounter(FastCounter):
    """Counts at one unit; what other calls of the pass contribute to as well is held back until all have."""

    sparing = True

    def __init__(self, *arguments: Any, shared: set[str], counted: set[str], **options: Any) -> None:
        """Prepare; see :class:`FastCounter`.

        Args:
            *arguments: Its arguments.
            counted: Parameters whose votes are known: gradients pass through the same rules, to the same bits.
            shared: Parameters whose gradients are not complete yet.
            **options: Its options.
        """
        super().__init__(*arguments, **options)
        self._shared, self._counted = shared - counted, counted
        self._parts: dict[str, Sequence[Contribution]] = {}
        self._single: dict[str, list[Tensor]] = {}

    def vote_together(self, name: str, parts: Sequence[Contribution], samples: int) -> None:
        """Count, or hold back."""
        if name in self._shared:
            self._parts[name] = parts
        elif name not in self._counted:
            super().vote_together(name, parts, samples)

    def vote(self, name: str, gradient: Tensor) -> None:
        """Count, or hold back."""
        if name in self._shared:
            self._single.setdefault(name, []).append(gradient.clone())
        elif name not in self._counted:
            super().vote(name, gradient)

    def parts(self) -> dict[str, Sequence[Contribution]]:
        """Give what was held back."""
        found = dict(self._parts)
        for name, gradients in self._single.items():
            values = torch.stack(gradients)
            rows = values.reshape(len(values), values.shape[1] if values.ndim > 1 else 1, -1)
            found[name] = [Summed(rows, values.norm)]
        return found


def check_alone(call: Call, loss: UnitLoss, run: Callable[[Sequence[Tensor]], Any]) -> None:
    """Refuse a unit that does something else to a sample alone than among others.

    Args:
        call: With two samples or more.
        loss: Knows which inputs have a row for each.
        run: Runs the unit.

    Raises:
        GradfixError: naming the unit.
    """
    last = slice(call.samples - 1, call.samples)
    with torch.no_grad():
        together = _outputs(run(call.tensors))
        try:
            alone = _outputs(run(loss.inputs([tensor[last] for tensor in loss.batch["inputs"]])))
        except (RuntimeError, IndexError):
            alone = []
    if not alone or not all(
        _alike(together[number], alone[number], last, call.samples) for number in call.gradients
    ):
        raise GradfixError(
            f"{call.unit.name}: gives another output for a sample alone than for the same sample among "
            f"{call.samples}: it mixes samples, or has them in another dimension than the first; give --memory a size "
            "that the model fits in"
        )


def _alike(together: Tensor, alone: Tensor, last: slice, samples: int) -> bool:
    """Compare the last sample's output within rounding."""
    expected = together[last] if len(together) == samples else together
    tolerance = 1e-3 if torch.finfo(expected.dtype).eps < 1e-4 else 0.2
    if expected.shape != alone.shape:
        return False
    return float((expected - alone).float().norm()) <= tolerance * float(expected.float().norm())


def _outputs(outputs: Any) -> list[Tensor]:
    return [tensor for _, tensor in tensors_of(outputs)]


def _named(unit: Unit, relative: str) -> str:
    return next(slot.name for slot in unit.slots if slot.relative == relative)
