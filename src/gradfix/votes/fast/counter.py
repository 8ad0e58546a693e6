"""The fast path: one forward and one backward pass a batch, and the plain loop for what no rule covers."""

import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from types import MethodType
from typing import ClassVar

import torch
from torch import Tensor, nn

from gradfix.errors import GradfixError
from gradfix.tasks.batches import Batch, batch_size, select
from gradfix.votes.fast.accumulate import Blocks, Tally
from gradfix.votes.fast.contributions import Contribution, Form
from gradfix.votes.fast.derived import SampleGradients
from gradfix.votes.fast.outputs import Outputs
from gradfix.votes.fast.recorder import Recorder, Use, only
from gradfix.votes.fast.threads import Crew
from gradfix.votes.fast.verification import FEWEST, Plan, Verdict, enough, verify
from gradfix.votes.isolation import Loss, autocast, checked_losses
from gradfix.votes.plain import count_plainly, refuse_not_finite

_plans: "weakref.WeakKeyDictionary[nn.Module, tuple[Callable[[], object], frozenset[str], Plan]]" = (
    weakref.WeakKeyDictionary()
)


class FastCounter:
    """Counts one batch after the other.

    Attributes:
        reasons: Parameters that the plain loop counted, for all batches or some, with the reason.
        plan: What was verified.
        sparing: Whether nobody looks at the losses, so that what they alone are made of is not computed.
    """

    sparing: ClassVar[bool] = False

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        parameters: Mapping[str, nn.Parameter],
        tally: Tally,
        dtype: torch.dtype | None,
        *,
        plan: Plan | None = None,
        leaves: Callable[[], Sequence[Tensor]] = tuple,
        known: Outputs | None = None,
    ) -> None:
        """Prepare.

        Args:
            model: Held still.
            loss: One value a sample.
            parameters: Name to parameter, each requiring a gradient.
            tally: The running votes.
            dtype: Autocast's, or None.
            plan: What was verified of models like this one; by default of this very one and its loss.
            leaves: Gives, once the loss was computed, further tensors whose gradients are wanted; they have them after
                :meth:`count` unless the plain loop had to count everything.
            known: What products gave in an earlier pass on the batch that is counted.
        """
        self.reasons: dict[str, str] = {}
        self._model, self._loss, self._parameters = model, loss, parameters
        self._tally, self._dtype = tally, dtype
        self._device = next(iter(parameters.values())).device
        self._blocks, self._crew = Blocks(), Crew(self._device)
        self.plan = plan_for(model, loss, parameters) if plan is None else plan
        self._leaves, self._known = leaves, known

    def count(self, batch: Batch, first: int) -> None:
        """Add the votes of a batch.

        Args:
            batch: On the model's device.
            first: Index of its first sample among all samples.

        Raises:
            GradfixError: Where a loss or a gradient is not finite.
        """
        N = batch_size(batch)
        if N < FEWEST:
            self._count_plainly(batch, N, first, dict.fromkeys(self._parameters, ""))
            return
        if not self.plan.verdicts:
            self._verify(batch, enough(batch), first)
        if self.plan.failure:
            self._count_plainly(batch, N, first, dict.fromkeys(self._parameters, self.plan.failure))
            return
        recorder, losses = self._recorded(batch, N, self.plan.spared or frozenset())
        if recorder.misread:  # it goes another way than what was verified, as others like it may
            self.plan.spared = frozenset()
            recorder.close()
            recorder, losses = self._recorded(batch, N, frozenset())
        with closing(recorder):
            leaves = self._leaves()
            losses = checked_losses(losses, N)
            if not bool(torch.isfinite(losses.detach()).all()):
                for n in range(N):
                    refuse_not_finite(losses[n].detach(), first + n, "the loss")
            verdicts = self._verdicts(recorder, batch, first)
            left = {name: verdict.reason for name, verdict in verdicts.items() if verdict.reason}
            for name, reason in left.items():
                recorder.refuse((name,), reason)

            def take(name: str, arrived: list[tuple[Use, Form]]) -> None:
                self._take(name, arrived, recorder, verdicts[name], left)

            if len(left) < len(self._parameters):
                with self._crew:
                    recorder.aside = lambda job: self._crew.add([job], 0)
                    recorder.backward(losses, take, leaves)
                    self._crew.finish()
        poisoned = recorder.poisoned
        if poisoned or recorder.exceeding:
            # The plain loop names the sample and the parameter. Where it finds nothing, a bound was too careful.
            count_plainly(
                self._model,
                batch,
                N,
                self._loss,
                self._parameters,
                lambda *_: None,
                first=first,
                dtype=self._dtype,
            )
        if poisoned:
            raise GradfixError(
                f"samples {first} to {first + N - 1}: gradients overflow in the batch, but in no sample alone; use "
                "smaller batches, method='plain', or dtype='float32'"
            )
        self._count_plainly(batch, N, first, left)

    def _recorded(self, batch: Batch, samples: int, spared: frozenset[str]) -> tuple[Recorder, Tensor]:
        recorder = Recorder(self._parameters, samples, self.plan.derived, spared, known=self._known)
        with recorder, autocast(self._device, self._dtype):
            return recorder, self._loss(self._model, batch)

    def _verdicts(self, recorder: Recorder, batch: Batch, first: int) -> dict[str, Verdict]:
        known = self.plan.verdicts
        keys = {name: (name, recorder.signature(name)) for name in self._parameters}
        # Two samples prove most; the whole batch, where these two alone take another way through the model
        # (no padding among them). The latter costs what the plain loop would, but only once.
        for few in (enough(batch), batch_size(batch)):
            if any(key not in known for key in keys.values()):
                self._verify(batch, few, first)
        other = Verdict(reason="it is used in another way than in the samples that verify its rule")
        return {name: known.get(key, other) for name, key in keys.items()}

    def _verify(self, batch: Batch, samples: int, first: int) -> None:
        few = select(batch, slice(0, samples))
        verify(self.plan, self._model, few, self._loss, self._parameters, first, sparing=self.sparing)

    def _take(
        self,
        name: str,
        arrived: list[tuple[Use, Form]],
        recorder: Recorder,
        verdict: Verdict,
        left: dict[str, str],
    ) -> None:
        uses = recorder.uses(name)
        layouts = {id(use): layout for use, layout in zip(uses, verdict.layouts, strict=False)}
        if len(verdict.layouts) != len(uses):
            left[name] = "some of its uses got no gradient in the samples that verify its rule"
            return
        parts = [form(layouts[id(use)]) for use, form in arrived]
        recorder.bound(parts)
        if verdict.vacuous:
            if any(part.magnitude() for part in parts):
                left[name] = "its gradient was zero in the samples that verify its rule"
            else:
                self._tally.of(name)  # a gradient of zeros is a gradient
            return
        if all(use.source.whole and not use.per_sample_rows for use, _ in arrived):
            self.vote_together(name, parts, recorder.samples)
            return
        uses = [use for use, _ in arrived]
        for gradient in SampleGradients(name, self._parameters[name], uses, parts, recorder.samples):
            recorder.watch(gradient)
            self.vote(name, gradient)

    def vote_together(self, name: str, parts: Sequence[Contribution], samples: int) -> None:
        """Add the votes of all samples of a batch.

        Args:
            name: The parameter.
            parts: What its per-sample gradients are the sum of.
            samples: N.
        """
        counts = self._tally.of(name)
        jobs = self._blocks.jobs(counts.view(counts.shape[0] if counts.ndim else 1, -1), parts, samples)
        self._crew.add(jobs, sum(part.held for part in parts))

    def vote(self, name: str, gradient: Tensor) -> None:
        """Add one sample's vote; called for the samples in turn.

        Args:
            name: The parameter.
            gradient: The sample's gradient, of the parameter's shape.
        """
        self._tally.vote(name, gradient)

    def _count_plainly(self, batch: Batch, samples: int, first: int, names: Mapping[str, str]) -> None:
        if not names:
            return
        for name, reason in names.items():
            if reason:  # of several, the same one in whatever order the batches come
                self.reasons[name] = min(reason, self.reasons.get(name, reason))
        chosen = {name: self._parameters[name] for name in names}
        with only(self._parameters, set(names)):
            count_plainly(
                self._model,
                batch,
                samples,
                self._loss,
                chosen,
                self.vote,
                first=first,
                dtype=self._dtype,
            )


def plan_for(model: nn.Module, loss: Loss, parameters: Mapping[str, nn.Parameter]) -> Plan:
    """Find what was verified for a model and loss, for as long as both live.

    Args:
        model: The model.
        loss: The very same function or method, or nothing is found.
        parameters: What is to be counted.

    Returns:
        The plan, empty at first.
    """
    names = frozenset(parameters)
    known = _plans.get(model)
    if known is not None and known[0]() == loss and known[1] == names:
        return known[2]
    plan = Plan()
    try:
        reference = weakref.WeakMethod(loss) if isinstance(loss, MethodType) else weakref.ref(loss)
    except TypeError:  # an object without weak references: verified anew for each count
        return plan
    _plans[model] = (reference, names, plan)
    return plan
