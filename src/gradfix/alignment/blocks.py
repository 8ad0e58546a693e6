"""Find the stream that blocks add to, and the linear map with which each block writes to it last.

Nothing is known by name: a model is run once, and the order in which its modules ran tells the rest. A block is a
child of the outermost list of modules; its writer is the last linear map in it; what it adds to is read where the
sum is complete: at the input of the norm that follows the writer within the block (BERT), else at the block's
output (CLIP, ViT, GPT-2, T5, Llama).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from gradfix.alignment.activations import Point, first_output
from gradfix.errors import AlignmentError
from gradfix.tasks.forward import evaluating


@dataclass(frozen=True)
class Writer:
    """A linear map that writes to a stream, and where the stream can be read once it has.

    Attributes:
        module: Name of the linear map.
        weight: Name of its weight parameter.
        bias: Name of its bias; None without one.
        transposed: The weight is stored ``[in, out]``, as GPT-2's are.
        stream: Where the sum that it is part of is complete: a norm's input, or a module's output.
        block: The block that it ends; empty for a projection after the blocks.
    """

    module: str
    weight: str
    bias: str | None
    transposed: bool
    stream: Point
    block: str = ""

    @property
    def stack(self) -> str:
        """The list that its block is in; a projection is one by itself."""
        return self.block.rpartition(".")[0] or self.module

    @property
    def entry(self) -> Point | None:
        """What enters the block; None for a projection."""
        return Point(self.block, "in") if self.block else None

    @property
    def source(self) -> Point:
        """What the linear map reads."""
        return Point(self.module, "in")


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a linear map of the last axis.

    Args:
        module: Any module.

    Returns:
        True for ``nn.Linear`` and for transformers' ``Conv1D``.
    """
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def find_writers(
    model: nn.Module, run: Callable[[Any], Any], batch: Any, parameters: set[str]
) -> list[Writer]:
    """Find the writers of a model, in the order in which they run.

    A linear map after the blocks whose output is what the task uses (CLIP's projection of images) is a writer
    too, of a stream of its own; a classification head is not: it belongs to the task.

    Args:
        model: The model.
        run: Runs it on a batch.
        batch: Any batch, such as the first.
        parameters: Those that may change: a writer's weight is one of them; its bias stays where it is not.

    Returns:
        At least one writer.

    Raises:
        AlignmentError: if the model has no blocks that end in a linear map.
    """
    order = _order(model, run, batch)
    blocks = _blocks(model)
    found: list[Writer] = []
    for block in blocks:
        inside = [name for name in order if name.startswith(block + ".")]
        linear = [name for name in inside if is_linear(model.get_submodule(name))]
        if not linear or order.get(block, 0) != 1:
            continue
        writer = linear[-1]
        width = _width(model.get_submodule(writer))
        later = inside[inside.index(writer) + 1 :]
        norm = next((name for name in later if _is_norm(model.get_submodule(name), width)), None)
        stream = Point(norm, "in") if norm is not None else Point(block, "out")
        if order[writer] == 1:
            found.append(_writer(model, writer, stream, block))
    names = list(order)
    ends = [names.index(writer.module) for writer in found]
    for name in names[max(ends) + 1 :] if ends else []:
        # Projections to a space shared with another tower; pooling layers pass through tanh and are left alone.
        if is_linear(model.get_submodule(name)) and name.endswith("_projection") and order[name] == 1:
            found.append(_writer(model, name, Point(name, "out")))
    usable = [
        writer if writer.bias in parameters else replace(writer, bias=None)
        for writer in found
        if writer.weight in parameters
    ]
    if not usable:
        raise AlignmentError(
            f"{type(model).__name__}: has no list of blocks that each end in a linear map of their own, so it can't be "
            "aligned by regression; use --align none"
        )
    return usable


def _order(model: nn.Module, run: Callable[[Any], Any], batch: Any) -> dict[str, int]:
    """How often each module ran, in the order of their ends."""
    counts: dict[str, int] = {}
    handles = []

    def count(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            counts[name] = counts.get(name, 0) + 1

        return hook

    try:
        for name, module in model.named_modules():
            handles.append(module.register_forward_hook(count(name)))
        with evaluating(model):
            run(batch)
    finally:
        for handle in handles:
            handle.remove()
    return counts


def _blocks(model: nn.Module) -> list[str]:
    """Names of the children of the outermost lists of modules, in the order of the model."""
    lists: list[str] = []
    for name, module in model.named_modules():
        inside = any(name.startswith(outer + ".") for outer in lists)
        if isinstance(module, nn.ModuleList) and len(module) and not inside:
            lists.append(name)
    return [f"{name}.{number}" for name in lists for number in range(len(model.get_submodule(name)))]  # type: ignore[arg-type]


def _is_norm(module: nn.Module, width: int) -> bool:
    """Whether a module is a norm over the stream's width."""
    weight = getattr(module, "weight", None)
    return "norm" in type(module).__name__.lower() and isinstance(weight, Tensor) and weight.shape == (width,)


def _width(linear: nn.Module) -> int:
    weight = linear.weight
    assert isinstance(weight, torch.Tensor)
    return weight.shape[0] if isinstance(linear, nn.Linear) else weight.shape[1]


def _writer(model: nn.Module, name: str, stream: Point, block: str = "") -> Writer:
    module = model.get_submodule(name)
    has_bias = isinstance(getattr(module, "bias", None), Tensor)
    return Writer(
        name,
        f"{name}.weight",
        f"{name}.bias" if has_bias else None,
        not isinstance(module, nn.Linear),
        stream,
        block,
    )


__all__ = ["Writer", "find_writers", "first_output", "is_linear"]
