"""Find the affine maps with which a model writes to what its later layers read.

Nothing is known by name: a model is run, and the order in which its modules ran tells the rest. A block is a child of
the outermost list of modules; its writer is the last linear map in it; what it adds to is read where the sum is
complete: at the input of the norm that follows the writer within the block (BERT), else at the block's output (CLIP,
ViT, GPT-2, T5, Llama), which the writer's output may reach scaled (DINOv2) or through a norm of its own (Gemma 2,
OLMo 2). A model without such blocks (ResNet, an LSTM between convolutions) is fitted layer by layer: what each linear
map and each convolution gives is a stream of its own.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from gradfix.alignment.activations import Point
from gradfix.alignment.affine import is_affine, is_linear, width
from gradfix.alignment.arrival import Arrival, arrivals
from gradfix.errors import AlignmentError
from gradfix.tasks.forward import evaluating


@dataclass(frozen=True)
class Writer:
    """An affine map that writes to a stream, and where the stream can be read once it has.

    Attributes:
        module: Name of the map.
        weight: Name of its weight parameter.
        bias: Name of its bias; None without one.
        stream: Where the sum that it is part of is complete: a norm's input, or a module's output.
        block: The block that it ends; empty for a projection after the blocks, and for a model without blocks.
        norm: The norm that its output passes before it is added; None without one.
        gain: What each channel is multiplied by on the way to the stream, ``[width]``; None for 1.
    """

    module: str
    weight: str
    bias: str | None
    stream: Point
    block: str = ""
    norm: str | None = None
    gain: Tensor | None = field(default=None, compare=False)

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
        """What the map reads."""
        return Point(self.module, "in")

    @property
    def output(self) -> Point:
        """What the map gives."""
        return Point(self.module, "out")


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
        AlignmentError: if the model has no linear map and no convolution that runs once and may change.
    """
    order = _order(model, run, batch)
    found = _of_blocks(model, run, batch, order)
    if found:
        names = list(order)
        last = max(names.index(writer.module) for writer in found)
        for name in names[last + 1 :]:
            # Projections to a space shared with another tower; pooling layers pass through tanh and are left alone.
            if is_linear(model.get_submodule(name)) and name.endswith("_projection") and order[name] == 1:
                found.append(_writer(model, name, Point(name, "out")))
    else:
        found = [
            _writer(model, name, Point(name, "out"))
            for name, times in order.items()
            if times == 1 and is_affine(model.get_submodule(name))
        ]
    usable = [
        writer if writer.bias in parameters else replace(writer, bias=None)
        for writer in found
        if writer.weight in parameters
    ]
    if not usable:
        raise AlignmentError(
            f"{type(model).__name__}: has no linear map and no convolution that runs once and may change, so it can't "
            "be aligned by regression; use --align none"
        )
    return usable


def _of_blocks(
    model: nn.Module, run: Callable[[Any], Any], batch: Any, order: Mapping[str, int]
) -> list[Writer]:
    """The last linear map of each block whose output arrives in the block's stream, by channel."""
    norms: dict[str, str | None] = {}
    blocks: dict[str, str] = {}
    for block in _blocks(model):
        inside = [name for name in order if name.startswith(block + ".")]
        linear = [name for name in inside if is_linear(model.get_submodule(name))]
        if not linear or order.get(block, 0) != 1 or order[linear[-1]] != 1:
            continue
        writer = linear[-1]
        later = inside[inside.index(writer) + 1 :]
        features = width(model.get_submodule(writer))
        blocks[writer] = block
        norms[writer] = next((name for name in later if _is_norm(model.get_submodule(name), features)), None)
    ways: dict[str, Point] = {}
    for writer, norm in norms.items():
        if norm is None:
            ways[writer] = Point(blocks[writer], "out")
        else:
            ways[writer] = Point(norm, "in")
            ways[norm] = Point(blocks[writer], "out")
    found = arrivals(model, run, batch, ways)
    writers = [_arriving(model, writer, norm, blocks[writer], found) for writer, norm in norms.items()]
    return [writer for writer in writers if writer is not None]


def _arriving(
    model: nn.Module, name: str, norm: str | None, block: str, found: Mapping[str, Arrival]
) -> Writer | None:
    """A block's writer, as its output arrives; None where it doesn't arrive in proportion."""
    arrival = found.get(name)
    if arrival is None:
        return None
    if norm is None or not arrival.alone:
        stream = Point(block, "out") if norm is None else Point(norm, "in")
        return replace(_writer(model, name, stream, block), gain=_unless_one(arrival.gain))
    # The norm reads nothing else: it is part of the branch, and the sum comes after it.
    after = found.get(norm)
    if after is None:
        return None
    return replace(_writer(model, name, Point(block, "out"), block), norm=norm, gain=_unless_one(after.gain))


def _unless_one(gain: Tensor) -> Tensor | None:
    return None if torch.allclose(gain, torch.ones_like(gain), atol=1e-4) else gain


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


def _writer(model: nn.Module, name: str, stream: Point, block: str = "") -> Writer:
    has_bias = isinstance(getattr(model.get_submodule(name), "bias", None), Tensor)
    return Writer(name, f"{name}.weight", f"{name}.bias" if has_bias else None, stream, block)
