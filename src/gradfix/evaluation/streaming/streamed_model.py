"""The new base where it doesn't fit in memory: the same model, of which no more than a block is there at a time."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from gradfix._version import __version__
from gradfix.checkpoints import Checkpoint, TensorSource, TensorSpec
from gradfix.checkpoints.expressions import Expression
from gradfix.checkpoints.fingerprint import tensor_fingerprint
from gradfix.errors import GradfixError, listed
from gradfix.evaluation.evaluate import EncodedRows, Evaluation, evaluate, measure_batch
from gradfix.evaluation.streaming.allocator import give_memory_back
from gradfix.evaluation.streaming.averaging import GradientVisitor, MeanVisitor
from gradfix.evaluation.streaming.counting import VoteVisitor
from gradfix.evaluation.streaming.device import forked, host_memory, room_for_products
from gradfix.evaluation.streaming.execution import Execution
from gradfix.evaluation.streaming.kept import Room
from gradfix.evaluation.streaming.plan import usable_memory
from gradfix.evaluation.streaming.store import CountStore
from gradfix.evaluation.streaming.visitor import Visitor
from gradfix.evaluation.target_model import TargetModel, mean_product
from gradfix.progress import Progress, silent
from gradfix.ranks import ranks
from gradfix.tasks import ModelTask
from gradfix.tasks.batches import batch_size, sample_fingerprints, to_device
from gradfix.vectors.task_vector import Placement, TaskVector
from gradfix.votes import Votes
from gradfix.votes.fast.verification import Plan, settle
from gradfix.votes.isolation import autocast, number_format, refuse_mixing
from gradfix.votes.metadata import VoteRecord
from gradfix.votes.sharing import summed

TOUCHED = 1 << 18
"""Numbers that are read ahead at a time."""

TOKEN_BY_TOKEN = (
    "answers are generated token by token, and this model is fetched block by block: each token would read the whole "
    "checkpoint"
)
"""Why a streamed model writes no texts."""


@dataclass(frozen=True, eq=False)
class Standing:
    """Where the model stands.

    Attributes:
        changes: δ with the module's names; None at θ_B.
        alpha: θ_B + α·δ.
        origin: What δ was made of.
    """

    changes: TensorSource | None
    alpha: float
    origin: Callable[[], Mapping[str, Any]] = dict


class StreamedModel(TargetModel):
    """θ_B with a task's head, fetched block by block from its checkpoint whenever it runs.

    It answers as :class:`TargetModel` does, and with the same numbers. Moving it costs nothing: weights are computed
    as they are fetched. What trains all weights at once is refused.

    Attributes:
        kept_counts: Where counts are kept while they are made, so that the same count goes on after a kill; None for
            not.
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
        give_memory_back()
        self._compute = next(value for value in model.parameters() if value.is_floating_point()).dtype
        self._device = getattr(model, "gradfix_device", torch.device("cpu"))
        self._at_base = Standing(None, 0.0)
        self._plans: dict[tuple[object, frozenset[str]], Plan] = {}
        self._room = Room()
        self._execution = self._executing(model)
        self.kept_counts: Path | None = None
        self._files = stamps(target.files)
        super().__init__(model, task, target, placement, **options)

    def _executing(self, model: nn.Module) -> Execution:
        execution = Execution(
            model, self._value, self._touch, self._device, self._compute, point=self._at_base
        )
        execution.same = self._same
        execution.check = self._refuse_changed
        execution.room = self._room
        return execution

    def keep_inputs(self, memory: int | None = None, folder: Path | None = None) -> None:
        """Say how much memory what blocks are given may take, and where the rest goes.

        Args:
            memory: Bytes on the device; what was said before if None, and as much as is needed if nothing was.
            folder: Where to make a file for the rest; what was said before if None.
        """
        known = self._room
        self._room = self._execution.room = Room(
            known.device if memory is None else memory,
            usable_memory("cpu") if self._device.type != "cpu" else 0,
            known.folder if folder is None else folder,
            room_for_products(self._device, known.folder if folder is None else folder),
        )

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

    @classmethod
    @override
    def _unfilled(cls, task: ModelTask, location: str | Path, **options: Any) -> nn.Module:
        return cls._module(task, location, **options)

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
                f"{TOKEN_BY_TOKEN}; give the answers to rank with --candidate, or --memory a size that the model "
                "fits in"
            )
        return super().evaluate(rows, task=task, logits=logits, progress=progress)

    @override
    def write(self, rows: Sequence[Any], *, most: int, seed: int | None = None) -> list[str | None]:
        raise GradfixError(
            f"{TOKEN_BY_TOKEN}; leave out --unlabelled and --generate-inputs, or give --memory a size that the model "
            "fits in"
        )

    @override
    def evaluate_each(
        self,
        places: Sequence[tuple[TaskVector, float, EncodedRows]],
        *,
        task: ModelTask | None = None,
        logits: bool = False,
    ) -> Iterator[Evaluation]:
        task = task or self.task
        if task.generates:
            self.evaluate(places[0][2], task=task)  # refuses
        jobs, standings = [], [self._standing(delta, alpha) for delta, alpha, _ in places]
        for standing, (_, alpha, rows) in zip(standings, places, strict=True):
            point = standing if alpha else self._at_base
            jobs += [
                (partial(measure_batch, task, self.model, batch, logits), point) for batch in rows.batches
            ]
        measured = iter(self._forward(jobs))
        for _, _, rows in places:
            yield evaluate(
                self.model,
                task,
                rows,
                logits=logits,
                run=lambda _, batches: [next(measured) for _ in batches],
            )

    @override
    def slope(self, delta: TaskVector, rows: Sequence[Any]) -> float:
        changes = self._in_memory(delta)
        moved = self._moved(changes)
        if not moved:
            return 0.0
        products: list[float] = []
        batches = [batch for number, batch in enumerate(self.encode(rows).batches) if ranks().mine(number)]

        def meet(name: str, gradient: Tensor, samples: str) -> None:
            memory = moved[name]
            for part in changes.specs[memory].row_blocks():
                mine = gradient if part is None else gradient[part]
                theirs = changes.read(memory, part).double().flatten()
                products.append(float(mine.double().flatten().cpu().dot(theirs)))

        visitor = GradientVisitor(self._execution, meet)
        self._go(batches, moved, visitor)
        return mean_product(products, len(rows))

    @override
    def _set(self, delta: TaskVector | None, alpha: float) -> None:
        self._stand(self._at_base if delta is None else self._standing(delta, alpha))

    def _standing(self, delta: TaskVector, alpha: float) -> Standing:
        return Standing(self._in_memory(delta), alpha, lambda: delta.origin)

    def _stand(self, standing: Standing) -> None:
        self._execution.release()
        self._execution.point = standing
        for name in self._execution.division.resident:
            place, _, attribute = name.rpartition(".")
            owner = self.model.get_submodule(place)
            if owner._parameters[attribute].device.type == "meta":  # type: ignore[union-attr]
                self._parameters[name] = owner._parameters[attribute] = nn.Parameter(
                    self._value(name, standing).to(self._device), requires_grad=False
                )
            else:
                with torch.no_grad():
                    self._parameters[name].copy_(self._value(name, standing))

    def _value(self, name: str, standing: Standing) -> Tensor:
        """Compute a parameter where the model stands, in the host's memory."""
        known, home = self._parameters[name], self._stored_as[name]
        if home.theirs and tuple(self._base.specs[home.memory].shape) != tuple(known.shape):
            raise GradfixError(
                f"{self._target.location}: {home.theirs[0]}: {list(self._base.specs[home.memory].shape)} is stored, "
                f"the model that config.json describes has {list(known.shape)}; give a checkpoint that fits its config"
            )
        dtype = self._compute if known.is_floating_point() else known.dtype
        if self._device.type == "cpu" and self._is_stored(name, dtype, standing):
            return self._base.read(home.memory).contiguous()
        value = host_memory(known.shape, dtype, self._device)
        if not home.theirs and name not in self._heads and home.addition is None:
            raise GradfixError(
                f"{self._target.location}: has no weights for {name}, and no tuned model brings them: give a model "
                "fine-tuned for this task as the source, or refit the head with --head probe"
            )
        self._write_head(name, value)
        self._write(name, value, standing.changes, standing.alpha)
        return value

    def _is_stored(self, name: str, dtype: torch.dtype, standing: Standing) -> bool:
        """Tell whether a parameter's value is what is stored, number for number."""
        home = self._stored_as[name]
        if not home.theirs or name in self._heads or self._moves(name, standing.changes):
            return False
        return self._dtype in (None, dtype) and self._base.specs[home.memory].dtype == dtype

    def _same(self, name: str, one: Standing, other: Standing) -> bool:
        """Tell whether a parameter has the same value at two points."""
        return one is other or not any(self._moves(name, each.changes) for each in (one, other))

    def _touch(self, name: str) -> None:
        """See to it that the system has a parameter's stored value."""
        home = self._stored_as[name]
        if not home.theirs or name in self._heads:
            return
        if not all([self._target.expect(theirs) for theirs in home.theirs]):
            for rows in self._base.specs[home.memory].row_blocks(TOUCHED):
                self._base.read(home.memory, rows)

    @override
    def _here(self) -> TensorSource:
        return _Standing(self, self._execution.point)

    @override
    def _run(self, function: Callable[[Any], Any], batches: Sequence[Any]) -> Sequence[Any]:
        return self._forward([(partial(function, batch), self._execution.point) for batch in batches])

    def _forward(self, jobs: Sequence[tuple[Callable[[], Any], Any]]) -> list[Any]:
        """Run passes without gradients, some on each rank, and give what each returned."""
        found = self._execution.forward([job for number, job in enumerate(jobs) if ranks().mine(number)])
        self._execution.release()
        return ranks().in_order("what a model makes of samples", found, len(jobs))

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
        with torch.random.fork_rng(devices=forked(self._device)):
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
        groups: Sequence[tuple[Sequence[Any], Sequence[str]]],
        *,
        vote: str,
        dtype: str | None,
        seed: int | None,
        progress: Progress,
    ) -> Iterator[Votes]:
        options: dict[str, Any] = {"vote": vote, "dtype": dtype, "seed": seed, "progress": progress}
        if vote == "mean":
            for group in groups:
                yield from self._count_together([group], **options)
        else:
            yield from self._count_together(groups, **options)

    def _count_together(
        self,
        groups: Sequence[tuple[Sequence[Any], Sequence[str]]],
        *,
        vote: str,
        dtype: str | None,
        seed: int | None,
        progress: Progress,
    ) -> list[Votes]:
        """Count the votes of several groups of samples while the checkpoint passes once each way."""
        voting = [name for name in self._voting if self._parameters[name].is_floating_point()]
        number, lower = number_format(dtype, [self._parameters[name] for name in voting])
        told = {"vote": vote, "dtype": dtype, "seed": seed, "compute": str(self._compute), "voting": voting}
        passes = [
            (group, first, batch)
            for group, (batches, _) in enumerate(groups)
            for first, batch in zip(accumulate(map(batch_size, batches), initial=0), batches, strict=False)
        ]
        # A sum of gradients depends on their order, so that every rank makes all of it.
        shared = vote != "mean" and ranks().size > 1
        mine = [place for place in range(len(passes)) if not shared or ranks().mine(place)]
        while True:
            stores = []
            for group, (_, samples) in enumerate(groups):
                places = [place for place in mine if passes[place][0] == group]
                own = {
                    **told,
                    **self._identity([passes[place][2] for place in places]),
                    "samples": list(samples),
                }
                stores.append(
                    CountStore(self.kept_counts, {**own, **({"places": places} if shared else {})})
                    if self.kept_counts
                    else CountStore(None, {})
                )
            visitor: Visitor
            if vote == "mean":
                sizes = [batch_size(batch) for _, _, batch in passes]
                visitor = MeanVisitor(self._execution, sizes, stores[0], lower)
            else:
                counted = [(place, *passes[place]) for place in mine]
                visitor = VoteVisitor(self._execution, counted, stores, self._plans, lower)
            try:
                self._go([passes[place][2] for place in mine], voting, visitor, seed)
            finally:  # what was counted stays, whatever ended the count
                for store in stores:
                    store.wait()
            if not shared or settle(self._named_plans()):
                break
            for store in stores:
                store.discard()
        total = sum(len(ids) for _, ids in groups)
        progress("counting votes", total, total, "samples")
        found = []
        for store, (_, ids) in zip(stores, groups, strict=True):
            whole = self._added_up(store, voting, len(ids)) if shared else store
            counts = whole.counts(voting)
            record = VoteRecord(
                vote=vote,
                samples=len(ids),
                sample_ids=tuple(ids),
                dtype=number,
                seed=seed,
                fingerprints={name: whole.fingerprints[name] for name in counts.specs},
                uncovered=tuple(name for name in self._voting if name not in counts.specs),
                plain={name: whole.reasons[name] for name in counts.specs if name in whole.reasons},
            )
            found.append(Votes(counts, record))
        return found

    def _named_plans(self) -> dict[str, Plan]:
        """What was verified, by the name of the first unit of a kind: the same on every rank."""
        first = {unit.kind: unit.name for unit in reversed(self._execution.division.units)}
        return {f"{first[kind]} {sorted(names)}": plan for (kind, names), plan in self._plans.items()}

    def _added_up(self, mine: CountStore, voting: Sequence[str], samples: int) -> CountStore:
        """Add up the counts of all ranks, in files."""
        whole = CountStore(None, {})
        others = ranks().gather("records of votes", (mine.fingerprints, mine.reasons))
        fingerprints = {name: value for found, _ in others for name, value in found.items()}
        reasons: dict[str, str] = {}
        for _, theirs in others:
            reasons |= {name: min(reason, reasons.get(name, reason)) for name, reason in theirs.items()}
        for counts in summed(mine.counts(voting), voting, samples):
            whole.put(counts, fingerprints, reasons)
        return whole

    def _identity(self, batches: Sequence[Any]) -> dict[str, Any]:
        """Tell all that votes depend on beside the options of the count."""
        point = self._execution.point
        return {
            "gradfix": __version__,
            "files": self._files,
            "head": {name: tensor_fingerprint(value) for name, value in self._heads.items()},
            "outputs": str(self._dtype),
            "at": None if point.changes is None else [point.origin(), point.alpha],
            "encoded": [sample_fingerprints(batch) for batch in batches],
        }

    def _refuse_changed(self) -> None:
        """Refuse to go on with files that are not those that the pass began with."""
        for before, now in zip(self._files, stamps(self._target.files), strict=True):
            if before != now:
                raise GradfixError(
                    f"{before[0]}: was changed while it was read (size {before[1]:,}, now {now[1]:,} bytes); let "
                    "whatever writes it finish, then start again"
                )


def stamps(files: Iterable[Path]) -> list[list[Any]]:
    """Tell files' sizes and times of change: -1 for those that are gone.

    Args:
        files: The files.

    Returns:
        Path, bytes and nanoseconds of each.
    """
    found = []
    for path in files:
        try:
            status = path.stat()
        except OSError:
            found.append([str(path), -1, -1])
        else:
            found.append([str(path), status.st_size, status.st_mtime_ns])
    return found


@dataclass(frozen=True)
class _Standing(Expression):
    """The parameters that vote, where a streamed model stands, by the name in the module that is stored."""

    model: StreamedModel
    standing: Standing

    @cached_property
    def specs(self) -> Mapping[str, TensorSpec]:
        """Their shapes."""
        return {
            memory: TensorSpec(self.model._compute, tuple(self.model._parameters[name].shape))
            for memory, name in self._names.items()
        }

    @cached_property
    def _names(self) -> dict[str, str]:
        return {self.model._stored_as[name].memory: name for name in self.model._covered}

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        """Compute a parameter, and show rows of it."""
        value = self.model._value(self._names[name], self.standing).cpu()
        return value if rows is None else value[rows]
