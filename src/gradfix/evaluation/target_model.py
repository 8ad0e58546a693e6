"""The new base, loaded once: it votes, it is moved along a task vector in place, and it comes back exactly.

There is never a second model in memory. θ_B is read from its checkpoint whenever it is needed again, so moving to
α and back leaves no rounding behind, and what is evaluated is what would be written.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Self

from gradfix.arithmetic import add_scaled
from gradfix.checkpoints import Checkpoint, TensorSource
from gradfix.checkpoints.architecture import untied_config
from gradfix.checkpoints.expressions import Difference, Given, Remembered, Selection, require_finite
from gradfix.checkpoints.fingerprint import stored_fingerprint
from gradfix.checkpoints.tensors import known_zero
from gradfix.errors import GradfixError, listed
from gradfix.evaluation.evaluate import EncodedRows, Evaluation, encode_rows, evaluate, in_order, row_encoder
from gradfix.evaluation.stored_weights import (
    NOT_STORED,
    StoredAs,
    StoredWeights,
    is_computed,
    stored_buffers,
)
from gradfix.progress import Progress, silent
from gradfix.ranks import ranks
from gradfix.tasks import Generative, ModelTask, PreferencePairs
from gradfix.tasks.data import row_hash
from gradfix.tasks.forward import evaluating
from gradfix.tasks.loading import explained, require_device, with_memory
from gradfix.vectors.model_files import merged_config
from gradfix.vectors.task_vector import Placement, TaskVector
from gradfix.votes import Votes
from gradfix.votes.counting import Count
from gradfix.votes.isolation import refuse_spread

_REMEMBERED = 64 * 2**20
"""Bytes of θ_B's tensors that stay in memory beside the model's."""


class TargetModel:
    """θ_B with a task's head, in memory.

    Attributes:
        model: The module, in eval mode.
        task: The task it is used for, prepared.
        vector: τ restricted to what the task's gradients reach, with the target checkpoint's names.
        silent_parameters: What τ covers but the task has no gradient for (a frozen tower, running statistics): it
            keeps θ_B's value.
    """

    streams = False
    """Whether weights are fetched when they are needed: then nothing can train them all."""

    def __init__(
        self,
        model: nn.Module,
        task: ModelTask,
        target: Checkpoint,
        placement: Placement,
        *,
        dtype: torch.dtype | None = None,
        batch_size: int = 32,
        strict: bool = False,
    ) -> None:
        """Take over a loaded model; :meth:`load` also loads it.

        Args:
            model: θ_B as the task loads it, or empty if the task builds it. Parameters and buffers are filled from the
                target, those it lacks from the tuned model.
            task: Bound to the target.
            target: θ_B's checkpoint.
            placement: τ laid onto it.
            dtype: Of the output; the target's if None. Weights are rounded to it before they are evaluated.
            batch_size: Samples a forward pass.
            strict: Refuse samples that would be truncated.

        Raises:
            GradfixError: if τ covers no parameter that the task's gradients reach, or a model that the task builds
                is not of the architecture that is stored.
        """
        refuse_spread(model)
        self.model, self.task = model, task
        self._target, self._dtype = target, dtype
        self._batch_size, self._strict = batch_size, strict
        self._heads: dict[str, Tensor] = {}
        self._placement = placement
        self._parameters: dict[str, nn.Parameter] = dict(model.named_parameters())
        self._buffers = stored_buffers(model)
        self._stored = StoredWeights(model, target, placement)
        stored = self._stored.in_memory(placement.base)
        # A model that is fetched block by block reads each of them once a pass, and has no memory for it.
        self._base = stored if self.streams else Remembered(stored, _REMEMBERED)
        self._stored_as = self._find_stored()
        self._missing = {
            name
            for name, home in self._stored_as.items()
            if home == NOT_STORED and not is_computed(model, name)
        }
        if task.builds_model:
            self._missing -= set(task.brought(model))
            self.require_weights()
            self._require_shapes()
        else:
            # What transformers loads it has checked: a buffer that no file holds was computed.
            self._missing -= self._buffers.keys()
        self.restore()
        task.prepare(model)
        voting = set(task.voters(model))
        self._covered = {
            name: home.theirs
            for name, home in self._stored_as.items()
            if name in voting and any(theirs in placement.vector.specs for theirs in home.theirs)
        }
        self._voting = list(self._covered)
        if not self._covered:
            raise GradfixError(
                f"{target.location}: the task vector covers none of the parameters that {task.name} uses; "
                "check that the models belong to this task"
            )
        self.vector = self.restricted(placement.vector)
        self.silent_parameters = [name for name in placement.vector.specs if name not in self.vector.specs]

    @classmethod
    def load(
        cls,
        task: ModelTask,
        target: Checkpoint,
        placement: Placement,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
        compute_dtype: torch.dtype = torch.float32,
        batch_size: int = 32,
        strict: bool = False,
        trust_remote_code: bool = False,
    ) -> Self:
        """Load θ_B with the architecture and labels of the tuned model's head.

        Args:
            task: Bound to the target or not yet.
            target: θ_B's checkpoint, in a directory unless the task builds its model.
            placement: τ laid onto it.
            device: Where to compute.
            dtype: Of the output; the target's if None.
            compute_dtype: Number format in which the model computes.
            batch_size: Samples a forward pass.
            strict: Refuse samples that would be truncated.
            trust_remote_code: Allow the code that a repository brings.

        Returns:
            The model at θ_B.

        Raises:
            GradfixError: if the target has no directory to load a model from, or there is no such device.
        """
        require_device(device)
        if target.model_directory is None and not task.builds_model:
            raise GradfixError(
                f"{target.location}: a model can't be built from weights alone; "
                "give the directory with its config.json"
            )
        config = merged_config(placement.vector, target.config)
        overrides: dict[str, Any] = {
            key: config[key]
            for key in ("id2label", "label2id")
            if key in config and placement.vector.additions.specs
        }
        if placement.untied:
            overrides |= {
                key: value
                for key, value in untied_config(target.config).items()
                if value != target.config.get(key)
            }
        if "id2label" in overrides:
            overrides["id2label"] = {int(key): name for key, name in overrides["id2label"].items()}
        target.fetch()  # what the task loads must be in the directory
        # transformers would load codes with the library that made them; decoded they are filled in like any weights.
        load = cls._module if target.quantised is None else cls._unfilled
        model = load(
            task,
            target.model_directory or target.location,
            dtype=compute_dtype,
            device=device,
            trust_remote_code=trust_remote_code,
            **overrides,
        )
        return cls(model, task, target, placement, dtype=dtype, batch_size=batch_size, strict=strict)

    @staticmethod
    def _module(task: ModelTask, location: str | Path, **options: Any) -> nn.Module:
        """Make the module that stands for θ_B."""
        return task.load_model(location, **options)

    @classmethod
    def _unfilled(cls, task: ModelTask, location: str | Path, **options: Any) -> nn.Module:
        """Make the module with memory for its weights, and nothing in it yet."""
        device = options.pop("device")
        return with_memory(task.empty_model(location, **options), device)

    @property
    def apart(self) -> bool:
        """Whether the target has other shapes than τ, so that τ itself can't be added to it."""
        return self._placement.apart

    @property
    def names(self) -> Mapping[str, str]:
        """The parameters that τ covers and the task's gradients reach: module name to the target checkpoint's.

        Those that the target stores in another form are left out.
        """
        return {
            name: theirs[0]
            for name, theirs in self._covered.items()
            if name not in self._stored.layout.parts_of_memory
        }

    @property
    def reached(self) -> Sequence[str]:
        """The tensors of the target checkpoint that τ covers and the task's gradients reach."""
        return [theirs for names in self._covered.values() for theirs in names]

    @property
    def judging(self) -> ModelTask:
        """The task as results are judged; as settings are chosen where that would generate and the model streams."""
        judge = self.task.judging()
        return self.task if self.streams and judge.generates else judge

    def encode(self, rows: Sequence[Any], *, task: ModelTask | None = None) -> EncodedRows:
        """Encode rows once for many passes.

        Args:
            rows: Samples.
            task: Of which they are; the model's own by default.

        Returns:
            Batches of like lengths.
        """
        return encode_rows(task or self.task, rows, batch_size=self._batch_size, strict=self._strict)

    def encoder(self, rows: Sequence[Any]) -> Callable[[Sequence[int]], EncodedRows]:
        """Make what encodes some of the rows, again and again in other batches.

        Args:
            rows: Samples.

        Returns:
            Gives the batches of the rows at some places.
        """
        return row_encoder(self.task, rows, batch_size=self._batch_size, strict=self._strict)

    def keep_reference(self, *groups: Sequence[Any], task: ModelTask | None = None) -> None:
        """Let a task whose losses are held against θ_B keep what θ_B makes of samples; others need nothing.

        Args:
            groups: All samples that will be encoded, as they will be. The model stands at θ_B.
            task: Of which they are; the model's own by default.
        """
        task = task or self.task
        if not isinstance(task, PreferencePairs):
            return
        for rows in filter(len, groups):
            encoded = self.encode(rows, task=task)
            found = self._run(partial(_ratios, task, self.model), encoded.batches)
            for places, ratios in zip(encoded.positions, found, strict=True):
                task.keep_reference([rows[index] for index in places], ratios)

    def evaluate(
        self,
        rows: Sequence[Any] | EncodedRows,
        *,
        task: ModelTask | None = None,
        logits: bool = False,
        progress: Progress = silent,
    ) -> Evaluation:
        """Measure the model where it stands.

        Args:
            rows: Samples, or what :meth:`encode` made of them.
            task: Of which they are; the model's own by default.
            logits: Keep the scores of the classes.
            progress: Told after each batch.

        Returns:
            The measurement.
        """
        return evaluate(
            self.model,
            task or self.task,
            rows,
            batch_size=self._batch_size,
            strict=self._strict,
            logits=logits,
            progress=progress,
            run=self._run,
        )

    def evaluate_each(
        self,
        places: Sequence[tuple[TaskVector, float, EncodedRows]],
        *,
        task: ModelTask | None = None,
        logits: bool = False,
    ) -> Iterator[Evaluation]:
        """Measure the model at several places; afterwards it stands anywhere.

        Args:
            places: δ, α, and the samples to measure on at θ_B + α·δ.
            task: Of which they are; the model's own by default.
            logits: Keep the scores of the classes.

        Yields:
            The measurements, in order.
        """
        for delta, alpha, rows in places:
            self.move(delta, alpha)
            yield self.evaluate(rows, task=task, logits=logits)

    def write(self, rows: Sequence[Any], *, most: int, seed: int | None = None) -> list[str | None]:
        """Let the model answer prompts where it stands.

        Args:
            rows: Samples with a stand-in for the answer (:meth:`gradfix.tasks.Generative.prompts`).
            most: Tokens of an answer at most.
            seed: Draw the answers, by this seed; the likeliest token each time if None.

        Returns:
            A text a row; None for an answer that has not ended.

        Raises:
            GradfixError: if the task has no answers to write.
        """
        task = self.task
        if not isinstance(task, Generative):
            raise GradfixError(f"{task.name}: its answers are no texts that a model writes")
        encoded = self.encode(rows)

        def written(number: int) -> list[str | None]:
            own = None if seed is None else seed + number
            return task.write(self.model, encoded.batches[number], most=most, seed=own)

        found = self._run(written, range(len(encoded.batches)))
        texts: list[str | None] = [None] * len(rows)
        for places, answers in zip(encoded.positions, found, strict=True):
            for place, answer in zip(places, answers, strict=True):
                texts[place] = answer
        return texts

    def _run(self, function: Callable[[Any], Any], batches: Sequence[Any]) -> Sequence[Any]:
        """Run what needs no gradient on one batch after the other, or their numbers."""
        with evaluating(self.model):
            return ranks().map("what a model makes of samples", function, batches)

    def restricted(self, vector: TaskVector) -> TaskVector:
        """Leave out of a vector what the task's gradients don't reach.

        Args:
            vector: With the target checkpoint's names.

        Returns:
            The same vector over the parameters that vote.
        """
        reached = {name: name for name in self.reached if name in vector.specs}
        return vector.derive(Selection(vector.source, reached), operation="restrict", task=self.task.name)

    def vote_where(self, *vectors: TaskVector) -> None:
        """Leave out of all votes the parameters that none of some vectors changes: nothing there could be masked.

        Args:
            vectors: Whatever will be masked, with the target checkpoint's names. Each tensor is read up to its first
                number that is not 0.
        """
        self._voting = [
            name
            for name, names in self._covered.items()
            if any(
                theirs in vector.specs and not vector.is_zero(theirs)
                for theirs in names
                for vector in vectors
            )
        ]

    def features(self, rows: Sequence[Any]) -> Tensor:
        """Compute what the model makes of samples before any head.

        Args:
            rows: Samples.

        Returns:
            Float32 of shape [samples, features], in the order of the rows.
        """
        encoded = self.encode(rows)
        parts = list(self._run(lambda batch: self.task.features(self.model, batch).cpu(), encoded.batches))
        return in_order(parts, encoded.positions)

    def votes(
        self,
        rows: Sequence[Any],
        *,
        vote: str = "majority",
        seed: int | None = None,
        dtype: str | None = None,
        progress: Progress = silent,
    ) -> Votes:
        """Let samples vote at the model's present weights.

        Args:
            rows: Labelled samples.
            vote: ``majority`` or ``mean``.
            seed: Of the draw of samples, recorded with the votes.
            dtype: ``bfloat16`` to compute gradients under autocast.
            progress: Told the samples counted.

        Returns:
            Votes with the target checkpoint's names.
        """
        return next(self.votes_of([rows], vote=vote, seed=seed, dtype=dtype, progress=progress))

    def votes_of(
        self,
        groups: Sequence[Sequence[Any]],
        *,
        vote: str = "majority",
        seed: int | None = None,
        dtype: str | None = None,
        progress: Progress = silent,
    ) -> Iterator[Votes]:
        """Let several groups of samples vote, each for itself.

        Args:
            groups: Labelled samples.
            vote: See :meth:`votes`.
            seed: See :meth:`votes`.
            dtype: See :meth:`votes`.
            progress: Told the samples counted.

        Yields:
            Votes of each group.
        """
        encoded = [self._encoded(rows) for rows in groups]
        # A model of the caller's own shows its errors as they are.
        with nullcontext() if self.task.builds_model else explained(self._target.location, "run its model"):
            for votes in self._count(encoded, vote=vote, dtype=dtype, seed=seed, progress=progress):
                yield self._stored_votes(votes)

    def _encoded(self, rows: Sequence[Any]) -> tuple[Sequence[Any], list[str]]:
        """Encode samples for votes, with an id for each in the order of the batches."""
        encoded = self.encode(rows)
        ids = _sample_ids(self.task, rows)
        return encoded.batches, [ids[index] for index in encoded.order]

    def _count(
        self,
        groups: Sequence[tuple[Sequence[Any], Sequence[str]]],
        *,
        vote: str,
        dtype: str | None,
        seed: int | None,
        progress: Progress,
    ) -> Iterator[Votes]:
        """Count votes with the module's names: batches and ids of each group."""
        count = Count(self.model, self.task.loss, vote=vote, parameters=self._voting, dtype=dtype, seed=seed)
        return count.of(groups, progress)

    def _stored_votes(self, votes: Votes) -> Votes:
        """Give votes the target checkpoint's names, and its form where it stores another one."""
        ours = self.names
        parts = {name: names for name, names in self._covered.items() if name not in ours}
        counts = self._stored.as_stored(
            Selection(votes, {self._stored_as[name].memory: name for name in votes if name in parts})
        )
        weights = self._stored.as_stored(self._here())
        # Of experts that are one tensor in memory, one that no sample reached has votes of zeros alone: it has none.
        silent = [name for name in counts.specs if not _any(counts, name)]
        counts = Selection(counts, {name: name for name in counts.specs if name not in silent})
        found = votes.renamed(ours).joined(
            counts, {theirs: stored_fingerprint(weights, theirs) for theirs in counts.specs}
        )
        found.record = replace(found.record, uncovered=(*found.record.uncovered, *silent))
        return found

    def move(self, delta: TaskVector, alpha: float) -> None:
        """Set the weights to θ_B + α·δ, rounded as the output will be; whatever they were before.

        Args:
            delta: A vector with the target checkpoint's names.
            alpha: Scaling coefficient.
        """
        self._set(delta if alpha else None, alpha)

    def restore(self) -> None:
        """Set all weights to θ_B, and the head to the tuned model's or to what :meth:`use_head` gave.

        Buffers that are stored, such as running statistics, are θ_B's too: nothing else ever sets them.
        """
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                self._write_head(name, parameter)
        self._restore_buffers()
        self._set(None, 0.0)

    def _write_head(self, name: str, parameter: Tensor) -> None:
        """Write a parameter that is not θ_B's."""
        home = self._stored_as[name]
        if name in self._heads:
            parameter.copy_(self._heads[name])
        elif home.addition is not None:
            self._fill(parameter, home.addition)

    def _restore_buffers(self) -> None:
        with torch.no_grad():
            for name, buffer in self._buffers.items():
                home = self._stored_as[name]
                if home.addition is not None:
                    self._fill(buffer, home.addition)
                elif home.theirs:
                    value = self._base.read(home.memory)
                    if value.is_floating_point():
                        require_finite(value, self._target.location, home.theirs[0])
                        value = value.to(self._dtype or value.dtype)
                    buffer.copy_(value)

    def _find_stored(self) -> dict[str, StoredAs]:
        """Find where each parameter, and each buffer that a checkpoint may hold, is stored."""
        aliases: dict[int, list[str]] = {}
        for name, parameter in self.model.named_parameters(remove_duplicate=False):
            aliases.setdefault(id(parameter), []).append(name)
        found_as = {}
        for name, parameter in self._parameters.items():
            found = {alias: self._stored.find(alias) for alias in aliases[id(parameter)]}
            known = list(dict.fromkeys(home for home in found.values() if home != NOT_STORED))
            if len(known) > 1 and self.task.builds_model:
                # Writing would change one of them, and loading what was written take the other.
                raise GradfixError(
                    f"{self._target.location}: {listed(found)} are one tied weight in the model that {self.task.name} "
                    "builds, and stored as several; store it once, under one of the names"
                )
            found_as[name] = found[name] if found[name] != NOT_STORED or not known else known[0]
        for name in self._buffers:
            found_as[name] = self._stored.find(name)
        return found_as

    def _require_shapes(self) -> None:
        """Refuse a built model whose tensors have other shapes than the stored ones."""
        additions = self._placement.vector.additions.specs
        differing = []
        for name, tensor in {**self._parameters, **self._buffers}.items():
            home = self._stored_as[name]
            if home.addition is not None:
                shape = additions[home.addition].shape
            elif home.theirs:
                shape = self._base.specs[home.memory].shape
            else:
                continue
            if tuple(tensor.shape) != tuple(shape):
                differing.append(f"{name} {list(tensor.shape)} against {list(shape)}")
        if differing:
            raise GradfixError(
                f"{self._target.location}: the model that {self.task.name} builds has other shapes than are stored: "
                f"{listed(differing)}; build the architecture of the files"
            )

    def _fill(self, parameter: Tensor, addition: str) -> None:
        stored = self._placement.vector.additions.read(addition)
        if stored.shape != parameter.shape:
            raise GradfixError(
                f"{addition}: {list(stored.shape)} in the tuned model, {list(parameter.shape)} in a model of "
                f"{self.task.name} with the class names known here; name its classes in order with --label"
            )
        require_finite(stored, "the tuned model", addition)
        parameter.copy_(stored)

    def use_head(self, values: Mapping[str, Tensor]) -> None:
        """Put a newly fitted head on the model, for good.

        Args:
            values: By parameter name.
        """
        self._heads.update({name: value.detach().clone() for name, value in values.items()})
        self._missing -= values.keys()
        self.restore()

    def displacement(self) -> TaskVector:
        """Tell how far the model stands from θ_B, as a vector over the parameters that vote.

        Returns:
            Lazy, and true only as long as the model stays where it is: keep it before moving on.
        """
        here = Selection(self._stored.as_stored(self._here()), {name: name for name in self.vector.specs})
        base = Selection(self._placement.base, {name: name for name in self.vector.specs})
        owners = ("the moved model", self._target.location)
        return self.vector.derive(Difference(here, base, owners), operation="displacement")

    def require_weights(self) -> None:
        """Refuse a model of which some weights are nowhere stored, so that they are still random.

        Raises:
            GradfixError: naming them.
        """
        if self._missing:
            remedy = (
                "give a model fine-tuned for this task as the source, or refit the head with --head probe"
            )
            if self.task.builds_model:
                remedy = f"build the files' architecture, with their names, such as {listed(self._target.specs, 3)}"
            raise GradfixError(
                f"{self._target.location}: has no weights for {listed(sorted(self._missing))}, and no tuned model "
                f"brings them: {remedy}"
            )

    def head_tensors(self) -> dict[str, Tensor]:
        """Give the head that :meth:`use_head` put on.

        Returns:
            By the output's names; empty where the tuned model's head was copied.
        """
        return {self._stored.layout.of_memory.get(name, name): value for name, value in self._heads.items()}

    def trainable(self, *, head: bool = True) -> list[nn.Parameter]:
        """Give what few-shot fine-tuning trains: the parameters that vote, and the head.

        Args:
            head: Train the head, too; otherwise nothing but what τ covers.

        Returns:
            Parameters of the model.
        """
        names = {*self.task.voters(self.model), *self.task.head(self.model)} if head else self._covered.keys()
        return [parameter for name, parameter in self._parameters.items() if name in names]

    def slope(self, delta: TaskVector, rows: Sequence[Any]) -> float:
        """Compute gᵀδ at the present weights: how fast the mean loss changes per unit of α.

        Each parameter's gradient meets its δ as it arrives and is freed, so no full gradient is held.

        Args:
            delta: A vector with the target checkpoint's names.
            rows: Labelled samples.

        Returns:
            The directional derivative of the mean loss; negative where moving along δ helps.
        """
        changes = self._in_memory(delta)
        moved = self._moved(changes)
        if not moved:
            return 0.0
        encoded = self.encode(rows)
        products: list[float] = []

        def meet(memory: str) -> Any:
            def hook(parameter: Tensor) -> None:
                gradient = parameter.grad
                if gradient is not None:
                    for rows, part in _blocks(gradient, changes, memory):
                        theirs = changes.read(memory, rows).double().flatten()
                        products.append(float(part.double().flatten().dot(theirs)))
                    parameter.grad = None

            return hook

        needed = {name: parameter.requires_grad for name, parameter in self._parameters.items()}
        handles = []
        try:
            for name, parameter in self._parameters.items():
                parameter.requires_grad_(name in moved)
                if name in moved:
                    hook = meet(moved[name])
                    handles.append(parameter.register_post_accumulate_grad_hook(hook))  # type: ignore[no-untyped-call]
            for number, batch in enumerate(encoded.batches):
                if ranks().mine(number):
                    loss = self.task.loss(self.model, batch).sum()
                    if loss.requires_grad:  # not where it passes none of what moves
                        loss.backward()  # type: ignore[no-untyped-call]
        finally:
            for handle in handles:
                handle.remove()
            for name, parameter in self._parameters.items():
                parameter.requires_grad_(needed[name])
        return mean_product(products, len(rows))

    def _set(self, delta: TaskVector | None, alpha: float) -> None:
        changes = None if delta is None else self._in_memory(delta)
        with torch.no_grad():
            for name in self._parameters:
                self._set_one(name, changes, alpha)

    def _set_one(self, name: str, changes: TensorSource | None, alpha: float) -> None:
        """Set one parameter to θ_B + α·δ; one that is not stored, or was given anew, stays."""
        self._write(name, self._parameters[name], changes, alpha)

    def _in_memory(self, delta: TaskVector) -> TensorSource:
        """Give a vector with the names, and in the form, that the module has."""
        return self._stored.in_memory(delta)

    def _write(self, name: str, parameter: Tensor, changes: TensorSource | None, alpha: float) -> None:
        """Write θ_B + α·δ to a parameter, unless the parameter is a head's."""
        home = self._stored_as[name]
        if not home.theirs or name in self._heads:
            return
        moving = self._moves(name, changes)
        for rows in self._base.specs[home.memory].row_blocks():
            value = self._base.read(home.memory, rows)
            dtype = self._dtype or value.dtype
            if moving and changes is not None:
                value = add_scaled(value, changes.read(home.memory, rows), alpha)
            (parameter if rows is None else parameter[rows]).copy_(value.to(dtype))

    def _moved(self, changes: TensorSource) -> dict[str, str]:
        """The parameters that δ changes, with their names in it."""
        return {name: self._stored_as[name].memory for name in self._covered if self._moves(name, changes)}

    def _moves(self, name: str, changes: TensorSource | None) -> bool:
        """Tell whether δ changes a parameter; that it is 0 there may not be known."""
        if changes is None or name not in self._covered:
            return False
        memory = self._stored_as[name].memory
        return memory in changes.specs and not known_zero(changes, memory)

    def _here(self) -> TensorSource:
        """The parameters that vote, where the model stands, by the name in the module that is stored."""
        return Given(
            {self._stored_as[name].memory: self._parameters[name].detach().cpu() for name in self._covered}
        )


def _ratios(task: PreferencePairs, model: nn.Module, batch: Any) -> Tensor:
    return task.log_ratios(model, batch).cpu()


def mean_product(products: Sequence[float], samples: int) -> float:
    """Sum products of gradients, each of one batch, over all ranks.

    Args:
        products: This rank's.
        samples: N, of all ranks.

    Returns:
        Their exact sum, rounded once, over N: in whatever order they come.
    """
    return math.fsum(each for part in ranks().gather("slope", list(products)) for each in part) / samples


def _any(counts: TensorSource, name: str) -> bool:
    return any(bool(counts.read(name, rows).any()) for rows in counts.specs[name].row_blocks())


def _blocks(gradient: Tensor, delta: TensorSource, name: str) -> Iterator[tuple[slice | None, Tensor]]:
    for rows in delta.specs[name].row_blocks():
        yield rows, (gradient if rows is None else gradient[rows]).cpu()


def _sample_ids(task: ModelTask, rows: Sequence[Any]) -> list[str]:
    """Hash each row's columns; a row that occurs twice votes twice, under two ids."""
    seen: Counter[str] = Counter()
    ids = []
    for row in rows:
        digest = row_hash(row, [column for column in task.columns.values() if column in row])
        seen[digest] += 1
        ids.append(digest if seen[digest] == 1 else f"{digest}#{seen[digest]}")
    return ids
