"""θ_B with a LoRA adapter beside it: the same model, but its coordinates are those of the adapter.

With τ_W = B A in canonical form and B set to 0, the gradient for B is g_W Aᵀ: votes on B's coordinates are exact at
θ_B, and for the mean vote ⟨g_W, (m ⊙ B) A⟩ = −Σ m |∂_B| |B| ≤ 0. So whoever votes, masks, moves and certifies does it
here with the tensors B as it does elsewhere with weights; A stays as it is. θ_B itself is never written to.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from gradfix.arithmetic import count_nonzero
from gradfix.checkpoints import Checkpoint, TensorSource
from gradfix.checkpoints.expressions import Difference, Gathered, Given, Selection
from gradfix.checkpoints.lora.factors import LowRank, placed
from gradfix.checkpoints.lora.layout import adaptable
from gradfix.errors import GradfixError, listed
from gradfix.evaluation.low_rank_layers import COORDINATES, PARAMETER, LowRankLayer
from gradfix.evaluation.stored_weights import NOT_STORED, StoredAs
from gradfix.evaluation.target_model import TargetModel
from gradfix.progress import Progress, silent
from gradfix.ranks import ranks
from gradfix.tasks import ModelTask
from gradfix.vectors.adapter_output import AdapterLayer, AdapterOutput
from gradfix.vectors.applied import TensorFacts
from gradfix.vectors.task_vector import Granularity, Placement, TaskVector
from gradfix.votes import Votes

PROBES = 2
"""Samples that show whether a layer that is never called has its weight used."""


class AdapterModel(TargetModel):
    """θ_B and the factors of the source's adapter, in memory.

    ``vector`` holds the tensors B (or a 1 for each of their rows or columns, where these vote), named as the target's
    weights with ``lora_B.weight`` in place of ``weight``; and under the target's own names what the adapter stores
    whole and the target has, too.

    Attributes:
        adapter_dtype: Number format of the adapter to be written: B is rounded to it before it is evaluated.
    """

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
        """Put the source's adapter beside a loaded model, B at 0.

        Args:
            model: See :class:`TargetModel`.
            task: See :class:`TargetModel`.
            target: θ_B's checkpoint.
            placement: τ laid onto it, with its adapter.
            dtype: Of the adapter to be written; the source adapter's if None.
            batch_size: Samples a forward pass.
            strict: Refuse samples that would be truncated.

        Raises:
            GradfixError: if τ is no adapter that can stand on the target, or none of it is reached by the task.
        """
        adapter = placement.adapter
        if adapter is None or adapter.obstacle is not None:
            reason = "the source is no LoRA adapter" if adapter is None else adapter.obstacle
            raise GradfixError(f"{target.location}: {reason}; give --space weights")
        self._layers: dict[str, LowRankLayer] = {}
        self._checked = False
        super().__init__(model, task, target, placement, batch_size=batch_size, strict=strict)
        self.adapter_dtype = dtype or adapter.parts.dtype
        self._granularity = adapter.granularity
        self._whole = [name for name, theirs in self.names.items() if theirs in adapter.parts.whole]
        covered = {name: theirs for name, theirs in self.names.items() if theirs in adapter.parts.updates}
        fused = [
            name for name in self.reached if name in adapter.parts.updates and name not in covered.values()
        ]
        if fused:
            raise GradfixError(
                f"{target.location}: {listed(fused)}: the module holds it together with others as one tensor, so an "
                "adapter can't stand beside it; give --space weights"
            )
        unreached = [name for name in adapter.parts.updates if name not in covered.values()]
        ups: dict[str, Tensor] = {}
        kept = {name: self._covered[name] for name in self._whole}
        try:
            with self._attaching():
                for name, theirs in covered.items():
                    factors = placed(adapter.parts.updates[theirs], adapter.rows.get(theirs))
                    self._attach(name, theirs, factors, kept, ups)
        except BaseException:
            self.detach()
            raise
        if not ups:
            raise GradfixError(
                f"{target.location}: the task reaches none of the layers that the adapter changes "
                f"({listed(unreached, 3)}); check that the models belong to this task"
            )
        self._covered, self._voting = kept, list(kept)
        whole = self.vector.source
        sources: dict[str, TensorSource] = dict.fromkeys(ups, Given(ups))
        sources |= {theirs: whole for name in self._whole for theirs in kept[name]}
        origin = {"adapter": placement.vector.origin, "dtype": str(self.adapter_dtype)}
        self.vector = placement.vector.derive(Gathered(sources), operation="adapter space", **origin)
        self.silent_parameters = unreached

    @property
    def layers(self) -> Mapping[str, LowRankLayer]:
        """The adapted layers: name in the module to what stands beside it."""
        return self._layers

    def detach(self) -> None:
        """Take the adapter off the module."""
        while self._layers:
            self._layers.popitem()[1].remove()

    def votes_of(
        self,
        groups: Sequence[Sequence[Any]],
        *,
        vote: str = "majority",
        seed: int | None = None,
        dtype: str | None = None,
        progress: Progress = silent,
    ) -> Iterator[Votes]:
        """Let samples vote on the coordinates of B; see :meth:`TargetModel.votes_of`."""
        for found in super().votes_of(groups, vote=vote, seed=seed, dtype=dtype, progress=progress):
            self._require_calls(groups[0])
            yield found

    def slope(self, delta: TaskVector, rows: Sequence[Any]) -> float:
        """Compute the directional derivative of the mean loss along δ; see :meth:`TargetModel.slope`."""
        found = super().slope(delta, rows)
        self._require_calls(rows)
        return found

    def displacement(self) -> TaskVector:
        """Tell how far B stands from 0, and whole tensors from θ_B's; see :meth:`TargetModel.displacement`."""
        here = self._here()
        sources: dict[str, TensorSource] = {}
        for name, names in self._covered.items():
            if name in self._whole:
                ours = Selection(here, {names[0]: self._stored_as[name].memory})
                base = Selection(self._placement.base, {names[0]: names[0]})
                sources[names[0]] = Difference(ours, base, ("the moved model", self._target.location))
            else:
                sources[names[0]] = here
        return self.vector.derive(Gathered(sources), operation="displacement")

    def output(self, delta: TaskVector, alpha: float) -> AdapterOutput:
        """Make the adapter that adds α·δ to θ_B.

        Args:
            delta: A vector of this model's coordinates. A mask counts what it keeps while this reads it, once.
            alpha: Scaling coefficient.

        Returns:
            The adapter. The model is at θ_B afterwards.
        """
        layers: dict[str, AdapterLayer] = {}
        facts: dict[str, TensorFacts] = {}
        for path, layer in self._layers.items():
            name = self._stored_as[f"{path}.{PARAMETER}"].memory
            change = delta.read(name)
            written = layer.written(change, alpha)
            found = facts[name] = TensorFacts(change.numel())
            if alpha:
                found.wanted = count_nonzero(change)
                if self._granularity == "coordinate":
                    found.lost = max(0, found.wanted - count_nonzero(written.float()))
            layers[path] = AdapterLayer(layer.shape, written, layer.down)
        whole = {names[0]: delta.read(names[0]) for name in self._whole if (names := self._covered[name])}
        for name, change in whole.items():
            facts[name] = TensorFacts(change.numel(), wanted=count_nonzero(change) if alpha else 0)
        for name, found in facts.items():
            found.count(delta.tally(name))
        changes = delta.derive(Given({name: whole[name] for name in whole}), operation="whole tensors")
        try:
            self.move(changes, alpha)
            modules = {path: self._state_of(path) for path in self._saved_whole()}
        finally:
            self.restore()
        adapter = self._placement.adapter
        return AdapterOutput(
            layers,
            modules,
            adaptable(self.model),
            self.adapter_dtype,
            None if adapter is None else adapter.parts.task_type,
            added=list(self._placement.vector.additions.specs),
            facts=facts,
        )

    def _saved_whole(self) -> list[str]:
        """The modules that the adapter holds as a whole: new heads, and what the source's adapter stored so."""
        names = {*self._heads, *self._whole}
        names |= {name for name, home in self._stored_as.items() if home.addition is not None}

        def whole(path: str) -> bool:
            inside = [name for name in self._stored_as if name.startswith(f"{path}.")]
            return bool(inside) and names.issuperset(inside)

        found = []
        for name in names:
            path = name.rpartition(".")[0]
            while "." in path and whole(path.rpartition(".")[0]):
                path = path.rpartition(".")[0]
            found.append(path)
        return sorted(set(found))

    def _state_of(self, path: str) -> dict[str, Tensor]:
        """Copy a module's tensors in the number formats in which they are stored."""
        state = {}
        for key, value in self._tensors_of(path).items():
            home = self._stored_as.get(f"{path}.{key}", NOT_STORED)
            additions = self._placement.vector.additions.specs
            stored = additions[home.addition].dtype if home.addition is not None else value.dtype
            if home.theirs and home.memory in self._base.specs:
                stored = self._base.specs[home.memory].dtype
            state[f"{path}.{key}"] = value.detach().cpu().to(stored, copy=True)
        return state

    def _tensors_of(self, path: str) -> Mapping[str, Tensor]:
        """Give a module's tensors where the model stands, by their names in it."""
        return self.model.get_submodule(path).state_dict()

    def trainable(self, *, head: bool = True) -> list[nn.Parameter]:
        """Give what few-shot fine-tuning trains: B and what the adapter stores whole, and the head."""
        names = {*self._covered, *(self.task.head(self.model) if head else ())}
        return [parameter for name, parameter in self._parameters.items() if name in names]

    def _attaching(self) -> AbstractContextManager[None]:
        """Surround what changes the layers."""
        return nullcontext()

    def _attach(
        self,
        name: str,
        theirs: str,
        factors: LowRank,
        covered: dict[str, tuple[str, ...]],
        ups: dict[str, Tensor],
    ) -> None:
        """Put one change beside its layer, and let its B take part like any parameter."""
        path, _, attribute = name.rpartition(".")
        module = self.model.get_submodule(path)
        sharing = [
            other
            for other, layer in self.model.named_modules()
            if getattr(layer, attribute, None) is getattr(module, attribute)
        ]
        if attribute != "weight" or len(sharing) > 1:
            raise GradfixError(
                f"{theirs}: is the weight of {listed(sharing or [name])}, not of one layer, so an adapter can't stand "
                "beside it; give --space weights"
            )
        layer = LowRankLayer(theirs, module, factors, self.adapter_dtype, self._granularity)
        self._layers[path] = layer
        inside, outside = f"{path}.{PARAMETER}", coordinates_of(theirs, self._granularity)
        self._parameters[inside] = layer.parameter
        self._stored_as[inside] = StoredAs((outside,), memory=outside)
        covered[inside] = (outside,)
        ups[outside] = layer.whole

    def _set(self, delta: TaskVector | None, alpha: float) -> None:
        if not self._layers:  # θ_B, once: nothing moves it afterwards
            super()._set(delta, alpha)
            return
        changes = None if delta is None else self._in_memory(delta)
        with torch.no_grad():
            for path, layer in self._layers.items():
                name = self._stored_as[f"{path}.{PARAMETER}"].memory
                layer.move(
                    changes.read(name) if changes is not None and name in changes.specs else None, alpha
                )
            for name in {*self._whole, *self.task.head(self.model)}:
                if not name.endswith(f".{PARAMETER}"):
                    self._set_one(name, changes, alpha)

    def _in_memory(self, delta: TaskVector) -> TensorSource:
        ups = {name: delta for name in delta.specs if name not in self._placement.base.specs}
        whole = super()._in_memory(delta)
        return Gathered({**ups, **dict.fromkeys(whole.specs, whole)})

    def _require_calls(self, rows: Sequence[Any]) -> None:
        """Refuse a model that has used an adapted weight without calling its layer: the adapter does nothing there."""
        if self._checked:
            return
        called = ranks().gather(
            "layers called", [path for path, layer in self._layers.items() if layer.calls]
        )
        past = [path for path in self._layers if not any(path in each for each in called)]
        used = (
            self._used([f"{path}.weight" for path in past], self.encode(rows[:PROBES]).batches)
            if past
            else []
        )
        if used:
            raise GradfixError(
                f"{listed(used)}: the model uses the weight without calling the layer, so an adapter can't stand "
                "beside it; give --space weights"
            )
        self._checked = True

    def _used(self, weights: Sequence[str], batches: Sequence[Any]) -> list[str]:
        """Tell on which of some weights the losses of batches depend."""
        parameters = [self.model.get_parameter(name) for name in weights]
        needed = [parameter.requires_grad for parameter in parameters]
        try:
            for parameter in parameters:
                parameter.requires_grad_(True)
            loss = torch.stack([self.task.loss(self.model, batch).sum() for batch in batches]).sum()
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        finally:
            for parameter, before in zip(parameters, needed, strict=True):
                parameter.requires_grad_(before)
        return [name for name, gradient in zip(weights, gradients, strict=True) if gradient is not None]


def coordinates_of(weight: str, granularity: Granularity = "coordinate") -> str:
    """Name the coordinates that stand for a weight.

    Args:
        weight: The weight's name, such as ``q_proj.weight``.
        granularity: What votes.

    Returns:
        Such as ``q_proj.lora_B.weight``.
    """
    return f"{weight.removesuffix('.weight')}.{COORDINATES[granularity]}"
