"""Carry over what the fine-tune answers: a closed-form fit of B's last linear map to A's class scores.

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

This is distillation (Hinton et al., "Distilling the Knowledge in a Neural Network", 2015) of one layer, solved.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gradfix.alignment.blocks import is_linear
from gradfix.alignment.regression import fit_linear
from gradfix.errors import AlignmentError
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


class _Layer(NamedTuple):
    """The last linear map, and what passed it: ``[samples, in]``, ``[samples, out]``, ``[samples, classes, out]``."""

    name: str
    inputs: Tensor
    jacobian: Tensor
    scores: Tensor


def fit_answers(model: TargetModel, inputs: Sequence[Any], probabilities: Tensor) -> Answered:
    """Fit the last linear map of a target to the tuned source's answers, where the target stands.

    Args:
        model: The target, anywhere; its weights are not changed.
        inputs: Samples; their labels are not used.
        probabilities: The source's class probabilities on them, ``[samples, classes]``.

    Returns:
        The changes; none where they explain nothing on held-out inputs.

    Raises:
        AlignmentError: if the task has no classes, or no linear map that τ covers gives one row a sample.
    """
    if not isinstance(model.task, Classification):
        raise AlignmentError(f"{model.task.name}: has no classes, so there are no answers to fit to")
    layer = _last_layer(model, inputs)
    wanted = _centred(probabilities.clamp(min=SURE).log()) - layer.scores
    jacobian = layer.jacobian - layer.jacobian.mean(dim=1, keepdim=True)
    product = jacobian @ jacobian.transpose(1, 2)
    damping = DAMPING * product.diagonal(dim1=1, dim2=2).mean(dim=1)
    product.diagonal(dim1=1, dim2=2).add_(damping.clamp(min=1e-30)[:, None])
    change = (jacobian.transpose(1, 2) @ torch.linalg.solve(product, wanted)[..., None])[..., 0]
    module = model.model.get_submodule(layer.name)
    bias = f"{layer.name}.bias" if f"{layer.name}.bias" in model.names else None
    weight, offset, (left, ridge) = fit_linear(
        layer.inputs, change, intercept=bias is not None, ridges=RIDGES
    )
    if weight is None:
        return Answered({}, left, ridge)
    changes = {f"{layer.name}.weight": weight if isinstance(module, nn.Linear) else weight.T.contiguous()}
    if bias is not None and offset is not None:
        changes[bias] = offset
    return Answered(changes, left, ridge)


def _last_layer(model: TargetModel, inputs: Sequence[Any]) -> _Layer:
    """Run the target, and see what the last linear map reads, and how the scores depend on what it gives."""
    encoded = model.encode(inputs)
    name = _last_linear(model, encoded.batches[0])
    parts = [_look(model, name, batch) for batch in encoded.batches]
    order = torch.tensor([index for places in encoded.positions for index in places]).argsort()
    return _Layer(name, *(torch.cat([part[at] for part in parts])[order] for at in range(3)))


def _last_linear(model: TargetModel, batch: Any) -> str:
    """The linear map that runs last, of those whose weight may change."""
    order: list[str] = []
    handles = [
        module.register_forward_hook(lambda *_, name=name: order.append(name))
        for name, module in model.model.named_modules()
        if is_linear(module) and f"{name}.weight" in model.names
    ]
    try:
        with evaluating(model.model):
            _scores(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    if not order or order.count(order[-1]) != 1:
        raise AlignmentError(
            f"{type(model.model).__name__}: has no last linear map that may change, so it can't be fitted to the "
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
