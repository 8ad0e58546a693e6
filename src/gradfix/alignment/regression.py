"""Carry over what the fine-tune changed in A's activations: a closed-form fit of B's weights, block after block.

Two models that were trained independently compute similar things in other coordinates. Adding τ to B therefore
changes nothing useful; but on any input x the fine-tune changed A's activations by h_A^ft(x) − h_A(x), and a rotation
R tells what that change looks like in B. Each block's last linear map W is then given the smallest change that makes
B's stream change likewise, a ridge regression:

    min over ΔW, Δb:  Σ_x ‖ΔW u(x) + Δb − (R (h_A^ft(x) − h_A(x)) − (h_B'(x) − h_B(x)))‖² + λ ‖ΔW‖²

===== ============================================================ ======================
name  is                                                           shape
===== ============================================================ ======================
h     what the blocks add to (see :mod:`.streams`), one a block    [rows, width]
R     orthogonal: R = U Vᵀ of the centred h_Aᵀ h_B = U S Vᵀ        [width, width]
u     what the block's last linear map reads in B', the model      [rows, inputs]
      with all earlier blocks changed already
===== ============================================================ ======================

No label is used. Blocks are fitted while the data flow by: one forward pass of B for its own h, one for all fits.
λ is the one of three whose fit explains most of the change on held-out rows; a block where none explains any is left
alone. Source of R: Schönemann, "A generalized solution of the orthogonal Procrustes problem", 1966.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from gradfix.alignment.activations import Activations, Point, first_input, first_output, rows_at
from gradfix.alignment.blocks import Writer
from gradfix.alignment.depths import Depth
from gradfix.alignment.rotation.maps import procrustes, unexplained
from gradfix.errors import AlignmentError
from gradfix.tasks.forward import evaluating

RIDGES = (0.03, 0.1, 0.3)
"""Candidates of λ, in units of the mean square of a column of u."""

HELD_OUT = 4
"""One row of this many is held out, all rows of a sample together."""

SOURCE, TUNED, SHUFFLED, TARGET = "source", "tuned", "shuffled", "target"
"""Keys of recordings: θ_A, θ_A^ft, θ_A with τ's values shuffled (the control), θ_B."""


@dataclass(frozen=True)
class BlockFit:
    """How well one block could be made to change as A's did.

    Attributes:
        stream: Where the stream was read.
        residual: Share of B's activation variance that the rotated A does not explain, on held-out rows.
        unexplained: Share of the wanted change that the fitted block does not make, on held-out rows; 1 where the
            block was left alone.
        ridge: The chosen λ.
        depth: The depth of the source that the block was paired with, in blocks; None where both have the same blocks.
    """

    stream: str
    residual: float
    unexplained: float
    ridge: float
    depth: float | None = None


@dataclass
class Fitted:
    """The change of B's weights, by module parameter name.

    Attributes:
        changes: Tensors of the parameters' shapes, float32.
        blocks: What is known of each block, by its writer's weight.
    """

    changes: dict[str, Tensor] = field(default_factory=dict)
    blocks: dict[str, BlockFit] = field(default_factory=dict)

    def facts(self) -> dict[str, Any]:
        """Say what a report shows.

        Returns:
            JSON, a mapping by parameter name.
        """
        return {name: asdict(block) for name, block in self.blocks.items()}


def fit_blocks(
    model: nn.Module,
    run: Callable[[Any], Any],
    batch: Any,
    writers: Sequence[Writer],
    activations: Activations,
    *,
    depths: Mapping[Point, Depth] | None = None,
    tuned: str = TUNED,
) -> Fitted:
    """Fit every writer's change in one forward pass, each with the changes before it in effect.

    Args:
        model: B at θ_B; its weights are not changed.
        run: Runs it on a batch.
        batch: All inputs in one batch: a block must be fitted before the next one runs.
        writers: Which linear maps may change, in the order in which they run.
        activations: Holds the recordings :data:`SOURCE`, :data:`TARGET` and ``tuned`` at the writers' streams, of the
            same samples in the same order.
        depths: Which depth of the source belongs to each writer's stream; the same place by default, for models of one
            architecture.
        tuned: The recording whose change is carried over: :data:`TUNED`, or :data:`SHUFFLED` for the control.

    Returns:
        The changes.
    """
    fitted = Fitted()
    read: dict[str, Tensor] = {}
    modules = dict(model.named_modules())

    def at_writer(writer: Writer) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            read[writer.module] = first_input(args, kwargs)

        return hook

    def changed(writer: Writer, stream: Tensor) -> Tensor:
        inputs = read.pop(writer.module)
        depth = (depths or {}).get(writer.stream) or Depth(writer.stream, writer.stream, 0.0, None)
        wanted = _wanted(depth, writer.stream, activations, tuned)
        weight, bias = _fit(writer, inputs, stream, batch, activations, wanted, tuned, fitted, depth.block)
        if weight is None:
            return stream
        change = inputs @ weight.T.to(inputs) + (0 if bias is None else bias.to(inputs))
        return stream + change

    def at_norm(writer: Writer) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            first = first_input(args, kwargs)
            new = changed(writer, first)
            return tuple(new if value is first else value for value in args), {
                key: new if value is first else value for key, value in kwargs.items()
            }

        return hook

    def at_output(writer: Writer) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            new = changed(writer, first_output(output))
            return new if isinstance(output, Tensor) else (new, *output[1:])

        return hook

    with ExitStack() as stack:
        for writer in writers:
            handle = modules[writer.module].register_forward_pre_hook(at_writer(writer), with_kwargs=True)
            stack.callback(handle.remove)
            place = modules[writer.stream.module]
            if writer.stream.side == "in":
                handle = place.register_forward_pre_hook(at_norm(writer), with_kwargs=True)
            else:
                handle = place.register_forward_hook(at_output(writer))
            stack.callback(handle.remove)
        with evaluating(model):
            run(batch)
    return fitted


def _wanted(depth: Depth, point: Point, activations: Activations, tuned: str) -> tuple[Tensor, float]:
    """The change of A's stream in B's coordinates ``[rows, width]``, and how little of B's stream A's explains."""
    source, target = depth.read(activations, SOURCE), activations.read(TARGET, point)
    if len(source) != len(target):
        raise AlignmentError(
            f"{point.module}: {len(target)} rows were recorded of the target and {len(source)} of the source, so they "
            "are not of the same tokens; use --align none"
        )
    held = _held_out(len(source))
    residual = unexplained(source[held] @ procrustes(source[~held], target[~held]), target[held])
    change = (depth.read(activations, tuned) - source) @ procrustes(source, target)
    if source.shape[1] != target.shape[1]:
        change *= _spread(target) / _spread(source)
    return change, residual


def _spread(rows: Tensor) -> float:
    """The root of the mean square of centred rows."""
    return float((rows - rows.mean(0)).double().norm()) or 1.0


def _fit(
    writer: Writer,
    inputs: Tensor,
    stream: Tensor,
    batch: Any,
    activations: Activations,
    carried: tuple[Tensor, float],
    tuned: str,
    fitted: Fitted,
    depth: float | None,
) -> tuple[Tensor | None, Tensor | None]:
    """Fit one writer; its ΔW ``[out, in]`` and Δb, or nothing where the change cannot be explained."""
    point: Point = writer.stream
    choose = activations.choose.target
    wanted, residual = carried
    wanted = wanted - (rows_at(stream, batch, point, choose) - activations.read(TARGET, point))
    u = rows_at(inputs, batch, writer.source, choose)
    weight, bias, (left, ridge) = fit_linear(u, wanted, intercept=writer.bias is not None)
    fitted.blocks[writer.weight] = BlockFit(point.module, residual, left, ridge, depth)
    if weight is None:
        return None, None
    for name, value in ((writer.weight, weight.T if writer.transposed else weight), (writer.bias, bias)):
        if name is not None and value is not None:
            fitted.changes[name] = activations.spill(f"{tuned}-{name}", value)
    return weight, bias


def fit_linear(
    inputs: Tensor, wanted: Tensor, *, intercept: bool, ridges: Sequence[float] | None = None
) -> tuple[Tensor | None, Tensor | None, tuple[float, float]]:
    """Fit a linear map, its ridge chosen on the last quarter of the rows.

    Args:
        inputs: ``[rows, in]``.
        wanted: ``[rows, out]``.
        intercept: Whether there is a bias.
        ridges: Candidates of λ; :data:`RIDGES` if None.

    Returns:
        The weight ``[out, in]`` and the bias ``[out]``, None where no ridge explains anything of the held-out rows; the
        share of their square that is left, 1 at most, and the ridge.
    """
    held = _held_out(len(inputs))
    scores = {
        ridge: _left(_ridge(inputs[~held], wanted[~held], ridge, intercept), inputs[held], wanted[held])
        for ridge in ridges or RIDGES
    }
    best = min(scores, key=lambda ridge: scores[ridge])
    if not scores[best] < 1:
        return None, None, (1.0, best)
    return *_ridge(inputs, wanted, best, intercept), (scores[best], best)


def _held_out(rows: int) -> Tensor:
    """Choose the last quarter of the rows: whole samples, since a sample's rows are together."""
    held = torch.zeros(rows, dtype=torch.bool)
    held[rows - max(1, rows // HELD_OUT) :] = True
    return held


def _ridge(inputs: Tensor, wanted: Tensor, ridge: float, intercept: bool) -> tuple[Tensor, Tensor | None]:
    """Solve the ridge regression; ΔW ``[out, in]`` and the intercept ``[out]``, which is not shrunk."""
    u, y = inputs.double(), wanted.double()
    mean_u, mean_y = u.mean(0), y.mean(0)
    if intercept:
        u, y = u - mean_u, y - mean_y
    strength = ridge * float(u.square().sum()) / u.shape[1]
    if strength == 0.0:
        weight = torch.zeros(y.shape[1], u.shape[1], dtype=u.dtype)
    elif len(u) >= u.shape[1]:
        gram = u.T @ u
        gram.diagonal().add_(strength)
        weight = torch.linalg.solve(gram, u.T @ y).T
    else:  # fewer rows than inputs: the same solution from the rows' products
        gram = u @ u.T
        gram.diagonal().add_(strength)
        weight = (u.T @ torch.linalg.solve(gram, y)).T
    bias = (mean_y - weight @ mean_u).float() if intercept else None
    return weight.float().contiguous(), bias


def _left(fit: tuple[Tensor, Tensor | None], inputs: Tensor, wanted: Tensor) -> float:
    """Share of the wanted change's square that a fit does not make."""
    weight, bias = fit
    made = inputs @ weight.T
    if bias is not None:
        made += bias
    total = float(wanted.double().square().sum())
    return float((made - wanted).double().square().sum()) / total if total else 1.0
