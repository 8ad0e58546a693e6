"""Carry over what the fine-tune answers: a closed-form fit of B's last affine map to what A says of the same inputs.

No coordinate and no label is needed: on inputs that nobody need have labelled, the tuned source says how sure it is of
each class. Each sample's output e of the last linear map is asked for the smallest change d that brings B's class
scores to the source's, and the map for the smallest change of its weights that makes those changes:

    d(x) = Jᵀ (J Jᵀ + μ I)⁻¹ (s_A(x) − s_B(x)),    J = ∂ s_B / ∂ e
    min over ΔW, Δb:  Σ_x ‖ΔW u(x) + Δb − d(x)‖² + λ ‖ΔW‖²

===== ======================================================= ==================
name  is                                                      shape
===== ======================================================= ==================
s     log-probabilities of the classes, centred               [classes]
e, u  what the map gives and what it reads                    [out], [in]
J     how the scores depend on e: one Gauss-Newton step       [classes, out]
===== ======================================================= ==================

This is distillation (Hinton et al., "Distilling the Knowledge in a Neural Network", 2015) of one layer, solved. A task
without classes is answered by what the last map itself gives, where it gives one row a sample: then d = e_A − e_B.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gradfix.alignment.affine import is_affine, stored
from gradfix.alignment.regression import fit_linear
from gradfix.errors import AlignmentError
from gradfix.evaluation.evaluate import in_order
from gradfix.evaluation.target_model import TargetModel
from gradfix.tasks import Classification
from gradfix.tasks.forward import evaluating

SURE = 1e-4
"""Probabilities below are taken for this: their logarithms say nothing more, and would rule a fit of squares."""

DAMPING = 1e-2
"""μ, in units of the mean of the diagonal of J Jᵀ."""

RIDGES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
"""Candidates of λ, in units of the mean square of a column of u."""


class Answered(NamedTuple):
    """A fit to the source's answers.

    Attributes:
        changes: ΔW, and Δb where there is a bias, by parameter name.
        unexplained: Share of the wanted changes' square that the fit does not make, on held-out inputs.
        ridge: The chosen λ.
    """

    changes: dict[str, Tensor]
    unexplained: float
    ridge: float


class Wanted(NamedTuple):
    """What the last affine map of a target should give otherwise, where the target stands.

    Attributes:
        module: The map's name.
        read: What it reads of each sample, ``[samples, in]``.
        change: What it should give beside what it gives, ``[samples, out]``.
    """

    module: str
    read: Tensor
    change: Tensor

    def at(self, samples: Sequence[int]) -> "Wanted":
        """Take some samples.

        Args:
            samples: Their places.

        Returns:
            The same of these alone.
        """
        return Wanted(self.module, self.read[list(samples)], self.change[list(samples)])


def wanted_answers(model: TargetModel, inputs: Sequence[Any], answers: Tensor) -> Wanted:
    """See how far a target is from the tuned source's answers.

    Args:
        model: The target, anywhere.
        inputs: Samples; their labels are not used.
        answers: The source's class probabilities on them, ``[samples, classes]``; for a task without classes, what the
            source's last map gives, ``[samples, out]``.

    Returns:
        What is to be fitted.

    Raises:
        AlignmentError: if no affine map that τ covers gives one row a sample, or the target answers in another form.
    """
    if isinstance(model.task, Classification):
        return Wanted(*_steps(model, inputs, _centred(answers.clamp(min=SURE).log())))
    name, read, given = _last_output(model, inputs)
    if given.shape != answers.shape:
        raise AlignmentError(
            f"{type(model.model).__name__}: {name} gives {given.shape[1]} numbers a sample, and the tuned model's "
            f"last map {answers.shape[1]}, so it can't be fitted to them"
        )
    return Wanted(name, read, answers - given)


def fit_answers(model: TargetModel, wanted: Wanted) -> Answered:
    """Fit the last affine map of a target to the tuned source's answers.

    Args:
        model: The target; its weights are not changed.
        wanted: What :func:`wanted_answers` saw.

    Returns:
        The changes; none where they explain nothing on held-out inputs.
    """
    module = model.model.get_submodule(wanted.module)
    bias = f"{wanted.module}.bias" if f"{wanted.module}.bias" in model.names else None
    weight, offset, (left, ridge) = fit_linear(
        wanted.read, wanted.change, intercept=bias is not None, ridges=RIDGES
    )
    if weight is None:
        return Answered({}, left, ridge)
    changes = {f"{wanted.module}.weight": stored(module, weight).contiguous()}
    if bias is not None and offset is not None:
        changes[bias] = offset
    return Answered(changes, left, ridge)


def last_map(model: TargetModel, batch: Any) -> str | None:
    """Find what answers a task without classes.

    Args:
        model: A model whose loss is made of what its last affine map gives.
        batch: Any batch.

    Returns:
        The name of that map; None where it may not change, runs more than once, or gives several rows a sample.
    """
    try:
        name = _last_affine(model, lambda: model.task.loss(model.model, batch))
    except AlignmentError:
        return None
    _, given, samples = _passing(model, name, batch)
    return name if given.dim() == 2 and len(given) == samples else None


def output_of_last(model: TargetModel, name: str) -> Callable[[Any], Tensor]:
    """Make what runs a model to its last map.

    Args:
        model: The model.
        name: The map's, as :func:`last_map` gives it.

    Returns:
        A function of a batch, which gives ``[samples, out]``.
    """
    return lambda batch: _passing(model, name, batch)[1]


def _last_output(model: TargetModel, inputs: Sequence[Any]) -> tuple[str, Tensor, Tensor]:
    """The last map's name, what it reads and what it gives of each sample."""
    encoded = model.encode(inputs)
    name = last_map(model, encoded.batches[0])
    if name is None:
        raise AlignmentError(
            f"{type(model.model).__name__}: has no classes, and no last affine map that may change and gives one row a "
            "sample, so there are no answers to fit to"
        )
    read, given, _ = zip(*(_passing(model, name, batch) for batch in encoded.batches), strict=True)
    return name, in_order(read, encoded.positions), in_order(given, encoded.positions)


def _passing(model: TargetModel, name: str, batch: Any) -> tuple[Tensor, Tensor, int]:
    """What a module reads and gives while a batch's losses are computed, float32 on the CPU, and how many they are."""
    seen: list[tuple[Tensor, Tensor]] = []

    def keep(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        seen.append((args[0].detach().float().cpu(), output.detach().float().cpu()))

    handle = model.model.get_submodule(name).register_forward_hook(keep)
    try:
        with evaluating(model.model):
            samples = len(model.task.loss(model.model, batch))
    finally:
        handle.remove()
    return *seen[0], samples


def _steps(model: TargetModel, inputs: Sequence[Any], wanted: Tensor) -> tuple[str, Tensor, Tensor]:
    """The last map's name, what it reads, and how what it gives should change for scores as wanted, by sample."""
    encoded = model.encode(inputs)
    name = _last_affine(model, lambda: _scores(model, encoded.batches[0]))
    read, change = [], []
    for places, batch in zip(encoded.positions, encoded.batches, strict=True):
        # A batch at a time: the Jacobians of a thousand classes are a thousand times what the map gives.
        seen, jacobian, scores = _look(model, name, batch)
        read.append(seen)
        change.append(_step(jacobian, wanted[list(places)] - scores))
    return name, in_order(read, encoded.positions), in_order(change, encoded.positions)


def _step(jacobian: Tensor, wanted: Tensor) -> Tensor:
    """The smallest change of what the last map gives that changes the scores as wanted, ``[samples, out]``."""
    jacobian = jacobian - jacobian.mean(dim=1, keepdim=True)
    product = jacobian @ jacobian.transpose(1, 2)
    damping = DAMPING * product.diagonal(dim1=1, dim2=2).mean(dim=1)
    product.diagonal(dim1=1, dim2=2).add_(damping.clamp(min=1e-30)[:, None])
    change: Tensor = (jacobian.transpose(1, 2) @ torch.linalg.solve(product, wanted)[..., None])[..., 0]
    return change


def _last_affine(model: TargetModel, run: Callable[[], Any]) -> str:
    """The affine map that runs last, of those whose weight may change."""
    order: list[str] = []
    handles = [
        module.register_forward_hook(lambda *_, name=name: order.append(name))
        for name, module in model.model.named_modules()
        if is_affine(module) and f"{name}.weight" in model.names
    ]
    try:
        with evaluating(model.model):
            run()
    finally:
        for handle in handles:
            handle.remove()
    if not order or order.count(order[-1]) != 1:
        raise AlignmentError(
            f"{type(model.model).__name__}: has no last affine map that may change, so it can't be fitted to the "
            "source's answers"
        )
    return order[-1]


def _look(model: TargetModel, name: str, batch: Any) -> tuple[Tensor, Tensor, Tensor]:
    """One batch: what the map reads of each sample, the Jacobian of the scores by what it gives, and the scores."""
    seen: list[tuple[Tensor, Tensor]] = []

    def cut(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        leaf = output.detach().requires_grad_()
        seen.append((args[0].detach(), leaf))
        return leaf

    module = model.model.get_submodule(name)
    needed = [parameter for parameter in model.model.parameters() if parameter.requires_grad]
    handle = module.register_forward_hook(cut)
    try:
        for parameter in needed:
            parameter.requires_grad_(False)
        scores = _scores(model, batch)
        read, leaf = seen[0]
        rows = [
            torch.autograd.grad(scores[:, number].sum(), leaf, retain_graph=True)[0]
            for number in range(scores.shape[1])
        ]
    finally:
        handle.remove()
        for parameter in needed:
            parameter.requires_grad_(True)
    jacobian = torch.stack(rows, dim=1).float().cpu()
    read = read.float().cpu()
    if jacobian.dim() == 4:
        # Of a sequence, the one token that the scores are made of: a class token, or a decoder's last.
        used = jacobian.square().sum(dim=(1, 3)) > 0
        if not bool((used.sum(dim=1) == 1).all()):
            raise AlignmentError(
                f"{type(model.model).__name__}: its classes depend on what {name} gives for several tokens, so it "
                "can't be fitted to the source's answers"
            )
        jacobian, read = jacobian.transpose(1, 2)[used], read[used]
    return read, jacobian, _centred(scores.detach().float().cpu())


def _scores(model: TargetModel, batch: Any) -> Tensor:
    assert isinstance(model.task, Classification)
    return model.task.logits(model.model, batch)


def _centred(scores: Tensor) -> Tensor:
    return scores - scores.mean(dim=1, keepdim=True)
