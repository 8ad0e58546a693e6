"""The new base where it doesn't fit in memory: the same model, of which no more than a block is there at a time."""

import math
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from gradfix.checkpoints import Checkpoint, TensorSource, TensorSpec
from gradfix.checkpoints.expressions import Expression
from gradfix.errors import GradfixError, listed
from gradfix.evaluation.evaluate import EncodedRows, Evaluation
from gradfix.evaluation.streaming.averaging import GradientVisitor, MeanVisitor
from gradfix.evaluation.streaming.counting import VoteVisitor
from gradfix.evaluation.streaming.execution import Execution, Visitor
from gradfix.evaluation.streaming.store import CountStore
from gradfix.evaluation.target_model import TargetModel
from gradfix.progress import Progress, silent
from gradfix.tasks import ModelTask
from gradfix.tasks.batches import batch_size, to_device
from gradfix.vectors.task_vector import Placement, TaskVector
from gradfix.votes import Votes
from gradfix.votes.fast.verification import Plan
from gradfix.votes.isolation import autocast, number_format, refuse_mixing
from gradfix.votes.metadata import VoteRecord


@dataclass(frozen=True, eq=False)
class Standing:
    """Where the model stands.

    Attributes:
        changes: δ with the module's names; None at θ_B.
        alpha: θ_B + α·δ.
    """

    changes: TensorSource | None
    alpha: float


class StreamedModel(TargetModel):
    """θ_B with a task's head, fetched block by block from its checkpoint whenever it runs.

    It answers as :class:`TargetModel` does, and with the same numbers. Moving it costs nothing: weights are computed
    as they are fetched. What trains all weights at once is refused.
    """

    streams = True

    def __init__(
        self, model: nn.Module, task: ModelTask, target: Checkpoint, placement: Placement, **options: Any
    ) -> None:
        """Take over a model without weights; :meth:`load` also builds it.

        Args:
            model: Its parameters on the meta device.
            task: Bound to the target.
            target: θ_B's checkpoint.
            placement: τ laid onto it.
            **options: Of :class:`TargetModel`.

        Raises:
            GradfixError: if the model has no blocks, or another shape than is stored.
        """
        refuse_mixing(model)
        self._compute = next(value for value in model.parameters() if value.is_floating_point()).dtype
        self._device = getattr(model, "gradfix_device", torch.device("cpu"))
        self._at_base = Standing(None, 0.0)
        self._plans: dict[object, Plan] = {}
        self._execution = Execution(model, self._value, self._device, self._compute, point=self._at_base)
        super().__init__(model, task, target, placement, **options)

    @staticmethod
    @override
    def _module(task: ModelTask, location: str | Path, **options: Any) -> nn.Module:
        device = torch.device(options.pop("device"))
        model = task.empty_model(location, **options)
        for module in model.modules():
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = buffer.to(device)
        model.gradfix_device = device  # type: ignore[assignment]
        return model

    @override
    def restore(self) -> None:
        self._restore_buffers()
        self._stand(self._at_base)

    @override
    def use_head(self, values: Mapping[str, Tensor]) -> None:
        self._execution.release()
        super().use_head(values)

    @override
    def trainable(self, *, head: bool = True) -> list[nn.Parameter]:
        raise GradfixError(
            "training needs all weights at once, and this model is fetched block by block: leave training out "
            "(--no-training, no --finetune-steps), or give --memory a size that the model fits in"
        )

    @override
    def evaluate(
        self,
        rows: Sequence[Any] | EncodedRows,
        *,
        task: ModelTask | None = None,
        logits: bool = False,
        progress: Progress = silent,
    ) -> Evaluation:
        if (task or self.task).generates:
            raise GradfixError(
                "answers are generated token by token, and this model is fetched block by block: each token would read "
                "the whole checkpoint; give the answers to rank with --candidate, or --memory a size that the model "
                "fits in"
            )
        return super().evaluate(rows, task=task, logits=logits, progress=progress)

    @override
    def slope(self, delta: TaskVector, rows: Sequence[Any]) -> float:
        changes = self._in_memory(delta)
        moved = {name: self._stored_as[name].memory for name in self._covered}
        moved = {name: memory for name, memory in moved.items() if memory in changes.specs}
        if not moved:
            return 0.0
        products: list[float] = []

        def meet(name: str, gradient: Tensor, samples: str) -> None:
            memory = moved[name]
            for part in changes.specs[memory].row_blocks():
                mine = gradient if part is None else gradient[part]
                theirs = changes.read(memory, part).double().flatten()
                products.append(float(mine.double().flatten().cpu().dot(theirs)))

        visitor = GradientVisitor(self._execution, meet)
        self._go(self.encode(rows).batches, moved, visitor)
        return math.fsum(products) / len(rows)

    @override
    def _set(self, delta: TaskVector | None, alpha: float) -> None:
        self._stand(Standing(None if delta is None else self._in_memory(delta), alpha))

    def _stand(self, standing: Standing) -> None:
        self._execution.release()
        self._execution.point = standing
        for name in self._execution.division.resident:
            place, _, attribute = name.rpartition(".")
            owner = self.model.get_submodule(place)
            if owner._parameters[attribute].device.type == "meta":  # type: ignore[union-attr]
                self._parameters[name] = owner._parameters[attribute] = nn.Parameter(
                    self._value(name, standing), requires_grad=False
                )
            else:
                with torch.no_grad():
                    self._parameters[name].copy_(self._value(name, standing))

    def _value(self, name: str, standing: Standing) -> Tensor:
        """Compute a parameter where the model stands."""
        known, home = self._parameters[name], self._stored_as[name]
        if home.theirs and tuple(self._base.specs[home.memory].shape) != tuple(known.shape):
            raise GradfixError(
                f"{self._target.location}: {home.theirs[0]}: {list(self._base.specs[home.memory].shape)} is stored, "
                f"the model that config.json describes has {list(known.shape)}; give a checkpoint that fits its config"
            )
        dtype = self._compute if known.is_floating_point() else known.dtype
        value = torch.empty(known.shape, dtype=dtype, device=self._device)
        if not home.theirs and name not in self._heads and home.addition is None:
            raise GradfixError(
                f"{self._target.location}: has no weights for {name}, and no tuned model brings them: give a model "
                "fine-tuned for this task as the source, or refit the head with --head probe"
            )
        self._write_head(name, value)
        self._write(name, value, standing.changes, standing.alpha)
        return value

    @override
    def _here(self) -> TensorSource:
        return _Standing(self, self._execution.point)

    @override
    def _run(self, function: Callable[[Any], Any], batches: Iterable[Any]) -> Iterator[Any]:
        jobs = [(partial(function, batch), self._execution.point) for batch in batches]
        yield from self._execution.forward(jobs)
        self._execution.release()

    def _go(
        self, batches: Sequence[Any], wanted: Iterable[str], visitor: Visitor, seed: int | None = None
    ) -> None:
        """Compute gradients where the model stands.

        Args:
            batches: Encoded samples.
            wanted: The parameters whose gradients are wanted.
            visitor: Meets them.
            seed: Of losses that draw random numbers.

        Raises:
            GradfixError: where a parameter can't be fetched by itself.
        """
        execution, point = self._execution, self._execution.point
        outside = sorted(set(wanted) & set(execution.division.resident))
        if outside:
            raise GradfixError(
                f"{listed(outside)}: stand outside of all blocks and of every module that could be fetched by itself, "
                "so their gradients can't be computed block by block; give --memory a size that the model fits in"
            )

        def losses(batch: Any) -> Tensor:
            with autocast(self._device, visitor.lower):
                return self.task.loss(self.model, batch)

        jobs = [
            (partial(losses, to_device(batch, self._device)), point, batch_size(batch)) for batch in batches
        ]
        execution.wanted = frozenset(wanted)
        with torch.random.fork_rng(devices=[self._device] if self._device.type == "cuda" else []):
            if seed is not None:
                torch.manual_seed(seed)
            try:
                execution.gradients(jobs, visitor)
            finally:
                execution.wanted = frozenset()
                execution.release()

    @override
    def _count(
        self,
        batches: Sequence[Any],
        *,
        vote: str,
        dtype: str | None,
        seed: int | None,
        samples: Sequence[str],
        progress: Progress,
    ) -> Votes:
        voting = [name for name in self._voting if self._parameters[name].is_floating_point()]
        number, lower = number_format(dtype, [self._parameters[name] for name in voting])
        batches = [batch for batch in batches if batch_size(batch)]
        sizes = [batch_size(batch) for batch in batches]
        store = CountStore(Path(tempfile.mkdtemp(prefix="gradfix-votes-")))
        visitor: VoteVisitor | MeanVisitor
        if vote == "mean":
            visitor = MeanVisitor(self._execution, sizes, store.put, lower)
        else:
            groups = [0] * len(batches)
            visitor = VoteVisitor(
                self._execution, groups, sizes, lambda _, counts: store.put(counts), self._plans, lower
            )
        self._go(batches, voting, visitor, seed)
        progress("counting votes", sum(sizes), sum(sizes), "samples")
        counts = store.counts(voting)
        record = VoteRecord(
            vote=vote,
            samples=sum(sizes),
            sample_ids=tuple(samples),
            dtype=number,
            seed=seed,
            fingerprints={name: self._execution.fingerprints[name] for name in counts.specs},
            uncovered=tuple(name for name in self._voting if name not in counts.specs),
            plain={name: reason for name, reason in visitor.reasons.items() if name in counts.specs},
        )
        return Votes(counts, record)


@dataclass(frozen=True)
class _Standing(Expression):
    """The parameters that vote, where a streamed model stands, by the name in the module that is stored."""

    model: StreamedModel
    standing: Standing

    @property
    def specs(self) -> Mapping[str, TensorSpec]:
        """Their shapes."""
        return {
            memory: TensorSpec(self.model._compute, tuple(self.model._parameters[name].shape))
            for memory, name in self._names.items()
        }

    @property
    def _names(self) -> dict[str, str]:
        return {self.model._stored_as[name].memory: name for name in self.model._covered}

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        """Compute a parameter, and show rows of it."""
        value = self.model._value(self._names[name], self.standing).cpu()
        return value if rows is None else value[rows]
