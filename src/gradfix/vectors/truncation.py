"""Any vector on a target as an adapter: each changed matrix by its best low-rank factors, one matrix at a time.

What is no matrix of a layer that peft adapts (norms, embeddings, heads) is saved whole or left out.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor, nn

from gradfix.arithmetic import add_scaled
from gradfix.checkpoints import Checkpoint, TensorSpec
from gradfix.checkpoints.architecture import architecture_of, skeleton
from gradfix.checkpoints.expressions import Expression, Tally, tally_of
from gradfix.checkpoints.layers import EMBEDDING, HEAD, layer_of
from gradfix.checkpoints.layouts import Layout, layout_of
from gradfix.checkpoints.lora.layout import LayerKind, LayerShape, adaptable, kind_of
from gradfix.checkpoints.lora.truncated import truncate
from gradfix.errors import GradfixError
from gradfix.progress import Progress, silent
from gradfix.vectors.adapter_output import AdapterLayer, AdapterOutput
from gradfix.vectors.applied import TensorFacts
from gradfix.vectors.apply import output_specs
from gradfix.vectors.model_files import merged_config
from gradfix.vectors.placement import place
from gradfix.vectors.task_vector import Placement, TaskVector

Whole = Literal["save", "leave"]


@dataclass(frozen=True)
class Matrix:
    """One matrix of a layer, and what its factors keep of it.

    Attributes:
        layer: The layer's name in the module.
        kind: How the layer stores it.
        shape: Its shape.
        up: B, [o, r], float32.
        down: A, [r, i], float32.
        square: Σ δ².
        kept: Σ of the squares of B A.
    """

    layer: str
    kind: LayerKind
    shape: tuple[int, ...]
    up: Tensor
    down: Tensor
    square: float
    kept: float

    def rows(self, rows: slice | None) -> Tensor:
        """Give rows of B A as the layer stores them.

        Args:
            rows: Range of the first dimension; None for all.

        Returns:
            Float32, of the matrix's shape with the first dimension cut to ``rows``.
        """
        part = rows or slice(None)
        if self.kind in ("transposed", "embedding"):
            product = (self.up @ self.down[:, part]).T
        else:
            product = self.up[part] @ self.down
        return product.reshape(-1, *self.shape[1:])


@dataclass(frozen=True)
class Truncated(Expression):
    """A vector with its matrices replaced by their low-rank factors, and without what is left out.

    Attributes:
        of: The vector.
        matrices: By its names.
        whole: Names of what stays as it is.
        left: Names of what is left out: 0.
        squares: Σ δ² of these.
    """

    of: TaskVector
    matrices: Mapping[str, Matrix]
    whole: Sequence[str]
    left: Sequence[str]
    squares: Mapping[str, float] = field(repr=False)

    @cached_property
    def specs(self) -> Mapping[str, TensorSpec]:
        """The tensors that are left of the vector."""
        kept = {*self.matrices, *self.whole}
        return {name: spec for name, spec in self.of.specs.items() if name in kept}

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        """Multiply rows out, or read them."""
        found = self.matrices.get(name)
        return self.of.read(name, rows) if found is None else found.rows(rows)

    def tally(self, name: str) -> Tally | None:
        """Tell what the mask below kept."""
        return tally_of(self.of, name)

    @property
    def retained(self) -> float:
        """Share of the vector's squared norm that is kept, of all its tensors."""
        whole = sum(self.squares[name] for name in self.whole)
        everything = sum(self.squares.values())
        return (
            (sum(matrix.kept for matrix in self.matrices.values()) + whole) / everything
            if everything
            else 1.0
        )


class Extraction:
    """A vector on a target, truncated, and the adapter that says the same.

    Attributes:
        vector: The truncated vector, with the target's names.
    """

    def __init__(
        self,
        vector: TaskVector,
        target: Checkpoint,
        *,
        rank: int | None = None,
        energy: float | None = None,
        whole: Whole = "save",
        seed: int = 0,
        progress: Progress = silent,
    ) -> None:
        """Find the factors; each matrix is read once.

        Args:
            vector: A task vector, masked or not.
            target: θ_B.
            rank: r at most.
            energy: Share of each matrix's squared norm to reach.
            whole: Save what is no such matrix, or leave it out.
            seed: Of the randomised decomposition.
            progress: Told the tensors done.

        Raises:
            GradfixError: if the target's layers are not known, or no matrix changes.
        """
        self._target = target
        self._heads: dict[str, Tensor] = {}
        self._placement: Placement = place(vector, target)
        config = merged_config(self._placement.vector, target.config)
        model = skeleton(config)
        if model is None:
            raise GradfixError(
                f"{target.location}: its config.json names no class of transformers, so its layers are not known and "
                "no adapter can be made; write a whole model"
            )
        self._model: nn.Module = model
        self._layout: Layout = layout_of(model, output_specs(self._placement, target, None))
        self._ties = getattr(architecture_of(config), "ties", {})
        matrices, squares, others = self._factors(rank, energy, seed, progress)
        if not matrices:
            raise GradfixError(
                f"{target.location}: no matrix of a layer that peft adapts is changed; write a whole model"
            )
        adapted = {matrix.layer for matrix in matrices.values()}
        self._biases, self._modules = self._sorted(others, adapted, matrices) if whole == "save" else ({}, {})
        saved = {*self._biases.values(), *(name for names in self._modules.values() for name in names)}
        source = Truncated(
            self._placement.vector,
            matrices,
            [name for name in others if name in saved],
            [name for name in others if name not in saved],
            squares,
        )
        self._truncated = source
        self.vector = self._placement.vector.derive(
            source, operation="truncate", rank=rank, energy=energy, whole=whole, seed=seed
        )

    def output(
        self,
        alpha: float,
        dtype: torch.dtype | None = None,
        *,
        heads: Mapping[str, Tensor] | None = None,
        task_type: str | None = None,
    ) -> AdapterOutput:
        """Make the adapter that adds α·(truncated vector).

        Args:
            alpha: Scaling coefficient.
            dtype: Of the factors; that of the target's weights if None.
            heads: Tensors in place of the tuned model's, by output name.
            task_type: What peft calls the task; None to leave it open.

        Returns:
            The adapter.
        """
        self._heads = dict(heads or {})
        layers, facts = {}, {}
        for name, matrix in self._truncated.matrices.items():
            shape = LayerShape(matrix.kind, matrix.shape, matrix.up.shape[1])
            layers[matrix.layer] = AdapterLayer(shape, matrix.up * alpha, matrix.down)
            facts[name] = TensorFacts(
                self.vector.specs[name].numel,
                rank=matrix.up.shape[1],
                retained=_share(matrix.kept, matrix.square),
            )
        for name, found in facts.items():
            found.count(self.vector.tally(name))
            found.wanted = found.coordinates if alpha else 0
        stored = {self._placement.base.specs[name].dtype for name in self._truncated.matrices}
        added = [*self._placement.vector.additions.specs]
        return AdapterOutput(
            layers,
            {path: self._state(path, alpha, dtype) for path in self._modules},
            adaptable(self._model),
            dtype or (stored.pop() if len(stored) == 1 else torch.float32),
            task_type,
            added=added if self._modules else [],
            biases={inside: self._value(inside, alpha, dtype) for inside in self._biases},
            facts=facts,
            left_out=[*self._truncated.left, *([] if self._modules else added)],
            retained=self._truncated.retained,
        )

    def _factors(
        self, rank: int | None, energy: float | None, seed: int, progress: Progress
    ) -> tuple[dict[str, Matrix], dict[str, float], list[str]]:
        """Factor each changed matrix of a layer; name the other tensors that change."""
        vector = self._placement.vector
        layers = {theirs: (path, kind) for theirs, path, kind in self._layers()}
        matrices: dict[str, Matrix] = {}
        squares: dict[str, float] = {}
        others = []
        for number, name in enumerate(vector.specs):
            progress("extracting", number + 1, len(vector.specs), "tensors")
            if name not in layers:
                square = sum(map(_square, vector.blocks(name)))
                if square:
                    squares[name] = square
                    others.append(name)
                continue
            change = vector.read(name)
            square = _square(change)
            if not square:
                continue
            squares[name] = square
            path, kind = layers[name]
            flat = change.T if kind == "transposed" else change.flatten(1)
            up, down = truncate(flat, rank=rank, energy=energy, seed=seed + number)
            kept = float(((up.double().T @ up.double()) * (down.double() @ down.double().T)).sum())
            matrices[name] = Matrix(path, kind, tuple(change.shape), up, down, square, kept)
        return matrices, squares, others

    def _layers(self) -> Iterator[tuple[str, str, LayerKind]]:
        """The target's matrices that an adapter can change: name, layer in the module, and its kind."""
        for inside, stored in self._layout.of_memory.items():
            path, _, attribute = inside.rpartition(".")
            theirs = self._placement.outputs.get(stored)
            if attribute != "weight" or theirs is None:
                continue
            kind = kind_of(self._model.get_submodule(path))
            outside = layer_of(inside).kind in (HEAD, EMBEDDING) and layer_of(inside).depth is None
            tied = inside in self._ties or inside in self._ties.values()
            if kind is not None and kind != "embedding" and not outside and not tied:
                yield theirs, path, kind

    def _sorted(
        self, others: list[str], adapted: set[str], matrices: Mapping[str, Matrix]
    ) -> tuple[dict[str, str], dict[str, list[str]]]:
        """Sort what is no matrix: biases of layers by name in the module, and modules to save by theirs."""
        inside_of: dict[str, list[str]] = {}
        for inside, stored in self._layout.of_memory.items():
            theirs = self._placement.outputs.get(stored, stored)
            inside_of.setdefault(theirs if theirs is not None else stored, []).append(inside)
        biases: dict[str, str] = {}
        modules: dict[str, list[str]] = {}
        changed = {matrices[name].layer for name in matrices}
        for name in (*others, *self._placement.vector.additions.specs):
            for inside in inside_of.get(name, []):
                path, _, attribute = inside.rpartition(".")
                if attribute == "bias" and path in changed:
                    biases[inside] = name
                elif path and not any(layer == path or layer.startswith(f"{path}.") for layer in adapted):
                    for alias in (path, *self._tied_to(inside)):
                        modules.setdefault(alias, []).append(name)
        # A module that is saved has those inside it; peft can't save them twice.
        inner = [path for path in modules if any(path.startswith(f"{other}.") for other in modules)]
        for path in inner:
            outer = min((other for other in modules if path.startswith(f"{other}.")), key=len)
            modules[outer] += modules[path]
        return biases, {path: names for path, names in modules.items() if path not in inner}

    def _tied_to(self, inside: str) -> list[str]:
        """Other modules that have the same weight: peft saves each by itself."""
        source = self._ties.get(inside, inside)
        group = {source, *(alias for alias, name in self._ties.items() if name == source)} - {inside}
        return [name.rpartition(".")[0] for name in group if self._ties]

    def _state(self, path: str, alpha: float, dtype: torch.dtype | None) -> dict[str, Tensor]:
        """A module's tensors at θ_B + α·δ."""
        state = self._model.get_submodule(path).state_dict()
        return {f"{path}.{key}": self._value(f"{path}.{key}", alpha, dtype) for key in state}

    def _value(self, inside: str, alpha: float, dtype: torch.dtype | None) -> Tensor:
        stored = self._layout.of_memory.get(inside) or self._layout.of_memory[self._ties[inside]]
        theirs = self._placement.outputs.get(stored)
        additions = self._placement.vector.additions
        if stored in self._heads or (theirs is None and stored in additions.specs):
            value = self._heads[stored] if stored in self._heads else additions.read(stored)
            return value.to(dtype) if dtype and value.is_floating_point() else value
        name = theirs if theirs is not None else self._target.ties.get(stored, stored)
        value = self._placement.base.read(name)
        number = dtype if dtype and value.is_floating_point() else value.dtype
        if name in self.vector.specs:
            value = add_scaled(value, self.vector.read(name), alpha)
        return value.to(number)


def _square(block: Tensor) -> float:
    """Σ of the squares, accumulated in float64."""
    return float(torch.linalg.vector_norm(block, dtype=torch.float64)) ** 2


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 1.0
