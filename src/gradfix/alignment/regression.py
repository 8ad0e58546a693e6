"""Carry over what the fine-tune changed in A's activations: a closed-form fit of B's weights, block after block.

Two models that were trained independently compute similar things in other coordinates. Adding τ to B therefore
changes nothing useful; but on any input x the fine-tune changed A's activations by h_A^ft(x) − h_A(x), and a rotation
R tells what that change looks like in B. Each writer W (a block's last linear map, or where a model has no such
blocks each linear map and convolution) is then given the smallest change that makes B's stream change likewise, a
ridge regression:

    min over ΔW, Δb:  Σ_x ‖ΔW u(x) + Δb − (R (h_A^ft(x) − h_A(x)) − (h_B'(x) − h_B(x)))‖² + λ ‖ΔW‖²

===== ============================================================ ======================
name  is                                                           shape
===== ============================================================ ======================
h     what the blocks add to (see :mod:`.streams`), one a block    [rows, width]
R     orthogonal: R = U Vᵀ of the centred h_Aᵀ h_B = U S Vᵀ, or    [width, width]
      no rotation where that explains more of held-out rows
u     what the block's last linear map reads in B', the model      [rows, inputs]
      with all earlier blocks changed already
===== ============================================================ ======================

No label is used. Blocks are fitted while the data flow by: one forward pass of B for its own h, one for all fits.
λ is the one of three whose fit explains most of the change on held-out rows; a block where none explains any is left
alone. Source of R: Schönemann, "A generalized solution of the orthogonal Procrustes problem", 1966.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from gradfix.alignment.activations import Activations, Point, first_input, first_output, rows_at
from gradfix.alignment.affine import as_tokens, input_rows, is_linear, output_of, stored
from gradfix.alignment.blocks import Writer
from gradfix.alignment.depths import Depth
from gradfix.alignment.rotation.maps import procrustes, unexplained
from gradfix.errors import AlignmentError, GradfixError
from gradfix.plugins import Plugin
from gradfix.tasks.forward import evaluating

RIDGES = (0.03, 0.1, 0.3)
"""Candidates of λ, in units of the mean square of a column of u."""

HELD_OUT = 4
"""One row of this many is held out, all rows of a sample together."""

LEAST_GAIN = 1e-6
"""A channel that arrives with less than this share of the largest gain is not fitted."""

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
    carry: Plugin | None = None,
    without: Collection[int] = (),
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
        carry: What gives a stream's change in B's coordinates, in place of R: a function of h_A, h_A^ft and h_B.
        without: Samples that have no part in the fit, by their places in the batch.

    Returns:
        The changes.
    """
    fit = _Fit(model, batch, activations, depths or {}, tuned, carry, without)
    with ExitStack() as stack:
        for writer in writers:
            stack.callback(fit.watch(writer).remove)
            stack.callback(fit.change(writer).remove)
        with evaluating(model):
            run(batch)
    return fit.fitted


class _Fit:
    """One forward pass in which every writer is fitted as soon as its stream is complete."""

    def __init__(
        self,
        model: nn.Module,
        batch: Any,
        activations: Activations,
        depths: Mapping[Point, Depth],
        tuned: str,
        carry: Plugin | None,
        without: Collection[int],
    ) -> None:
        self.fitted = Fitted()
        self._modules = dict(model.named_modules())
        self._batch, self._activations, self._depths, self._tuned = batch, activations, depths, tuned
        self._carry = carry
        self._without = torch.tensor(sorted(without))
        self._read: dict[str, tuple[Tensor, Tensor]] = {}

    def watch(self, writer: Writer) -> RemovableHandle:
        """Keep what a writer reads and gives."""

        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            self._read[writer.module] = first_input(args, kwargs), first_output(output)

        handle: RemovableHandle = self._modules[writer.module].register_forward_hook(hook, with_kwargs=True)
        return handle

    def change(self, writer: Writer) -> RemovableHandle:
        """Fit the writer where its stream is complete, and go on with the changed stream."""
        place = self._modules[writer.stream.module]
        handle: RemovableHandle
        if writer.stream.side == "out":

            def at_output(module: nn.Module, args: Any, output: Any) -> Any:
                new = self._changed(writer, first_output(output))
                return new if isinstance(output, Tensor) else (new, *output[1:])

            handle = place.register_forward_hook(at_output)
            return handle

        def at_norm(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            first = first_input(args, kwargs)
            new = self._changed(writer, first)
            return tuple(new if value is first else value for value in args), {
                key: new if value is first else value for key, value in kwargs.items()
            }

        handle = place.register_forward_pre_hook(at_norm, with_kwargs=True)
        return handle

    def _changed(self, writer: Writer, stream: Tensor) -> Tensor:
        inputs, output = self._read.pop(writer.module)
        weight, bias = self._fitted(writer, inputs, output, stream)
        if weight is None:
            return stream
        change = output_of(self._modules[writer.module], inputs, weight, bias)
        if writer.norm is not None:
            norm = self._modules[writer.norm]
            change = norm(output + change) - norm(output)
        if writer.gain is not None:
            gain = writer.gain.to(change)
            change = change * gain
        if stream.dim() > 3 and is_linear(self._modules[writer.module]) and writer.stream != writer.output:
            change = change.movedim(-1, 1)  # channels come last in the map, first in the stream
        return stream + change

    def _fitted(
        self, writer: Writer, inputs: Tensor, output: Tensor, stream: Tensor
    ) -> tuple[Tensor | None, Tensor | None]:
        """Fit one writer; its ΔW ``[out, columns]`` and Δb, or nothing where the change cannot be explained."""
        module, point = self._modules[writer.module], writer.stream
        depth = self._depths.get(point) or Depth(point, point, 0.0, None)

        def rows(at: Point, values: Tensor) -> Tensor:
            return rows_at(values, self._batch, at, self._activations.choose.target)

        tokens = as_tokens(self._modules[point.module], stream)
        fitted = self._rows_fitted(rows(point, _numbered(tokens)))
        wanted, residual = _wanted(depth, point, self._activations, self._tuned, self._carry, fitted)
        wanted = wanted - (rows(point, tokens) - self._activations.read(TARGET, point))[fitted]
        u = input_rows(module, inputs, lambda values: rows(writer.source, values))
        gain = torch.ones(wanted.shape[1]) if writer.gain is None else writer.gain
        intercept = writer.bias is not None
        if writer.norm is not None:
            scale, weights = _norm_at(
                self._modules[writer.norm], rows(writer.source, as_tokens(module, output))
            )
            gain, u, intercept = gain * scale, u * weights, False
        weight, bias, (left, ridge) = fit_linear(u[fitted], wanted, intercept=intercept)
        self.fitted.blocks[writer.weight] = BlockFit(point.module, residual, left, ridge, depth.block)
        if weight is None:
            return None, None
        # A channel that hardly arrives is left as it is: what it would take to be seen could not be rounded.
        inverse = torch.where(gain.abs() > LEAST_GAIN * gain.abs().max(), 1 / gain, 0.0)
        weight = weight * inverse[:, None]
        bias = None if bias is None else bias * inverse
        for name, value in ((writer.weight, stored(module, weight)), (writer.bias, bias)):
            if name is not None and value is not None:
                self.fitted.changes[name] = self._activations.spill(value)
        return weight, bias

    def _rows_fitted(self, numbers: Tensor) -> Tensor | slice:
        """Which rows have a part in the fit, by the number of the sample that each is of, ``[rows, 1]``."""
        if not self._without.numel():
            return slice(None)
        return ~torch.isin(numbers[:, 0].round().long(), self._without)


def _numbered(values: Tensor) -> Tensor:
    """Put a sample's number in the place of each of its vectors: ``[samples, …, width]`` to ``[samples, …, 1]``."""
    numbers = torch.arange(len(values), dtype=torch.float32)
    return numbers.view(-1, *[1] * (values.dim() - 1)).expand(*values.shape[:-1], 1)


def _norm_at(norm: nn.Module, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Linearise a norm where its input stands, its size taken as constant.

    Args:
        norm: LayerNorm or RMSNorm, over the last axis.
        rows: Its input, ``[rows, width]``.

    Returns:
        What it multiplies channels by, ``[width]``, and rows by, ``[rows, 1]``.
    """
    # Of numbers of one size and both signs a norm keeps the size, whether or not it takes the mean away.
    signs = torch.ones(rows.shape[1])
    signs[1::2] = -1
    place = next(norm.parameters(), rows)
    up, down = (norm((sign * signs).to(place)).float().cpu() for sign in (1, -1))
    scale, offset = (up - down) / 2 * signs, (up + down) / 2
    made = norm(rows.to(place)).float().cpu() - offset
    used = scale.abs() > LEAST_GAIN * scale.abs().max()
    size = rows[:, used].norm(dim=1) / (made[:, used] / scale[used]).norm(dim=1).clamp(min=1e-30)
    return scale, 1 / size.clamp(min=1e-30)[:, None]


def _wanted(
    depth: Depth,
    point: Point,
    activations: Activations,
    tuned: str,
    carry: Plugin | None,
    fitted: Tensor | slice,
) -> tuple[Tensor, float]:
    """The change of A's stream in B's coordinates ``[rows, width]``, and how little of B's stream A's explains."""
    source, target = depth.read(activations, SOURCE), activations.read(TARGET, point)
    if len(source) != len(target):
        raise AlignmentError(
            f"{point.module}: {len(target)} rows were recorded of the target and {len(source)} of the source, so they "
            "are not of the same tokens; use --align none"
        )
    source, target, after = source[fitted], target[fitted], depth.read(activations, tuned)[fitted]
    held = _held_out(len(source))
    residual = unexplained(source[held] @ procrustes(source[~held], target[~held]), target[held])
    if carry is not None:
        return _carried(carry, source, after, target), residual
    change = after - source
    if source.shape[1] != target.shape[1]:
        return change @ procrustes(source, target) * (_spread(target) / _spread(source)), residual
    as_is = unexplained(source[held], target[held])
    if as_is <= residual:  # the same coordinates: of one lineage, or the task's own, such as class scores
        return change, as_is
    return change @ procrustes(source, target), residual


def _carried(carry: Plugin, source: Tensor, tuned: Tensor, target: Tensor) -> Tensor:
    change = carry(source, tuned, target)
    found = f"a tensor {list(change.shape)}" if isinstance(change, Tensor) else f"a {type(change).__name__}"
    if not isinstance(change, Tensor) or change.shape != target.shape or not bool(change.isfinite().all()):
        raise GradfixError(
            f"{carry.name}: returned {found}; expected finite numbers {list(target.shape)}: the change of each row of "
            "the target's stream"
        )
    return change.to(target)


def _spread(rows: Tensor) -> float:
    """The root of the mean square of centred rows."""
    return float((rows - rows.mean(0)).double().norm()) or 1.0


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
