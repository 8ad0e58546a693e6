"""Compare the rules with the plain loop before they are trusted.

The first time that a model is counted with a loss, two samples are run both ways: alone, with autograd's
ordinary gradient, and together, with the rules. A parameter is counted fast only if both per-sample gradients
agree. The comparison finds what no inspection of a model could promise to find: a use that torch's mode doesn't
see, samples that are not where the shapes suggest, samples that influence each other, a rule that is wrong.

Gradients are compared by two projections, M r and lᵀ M with entries ±1 drawn by a fixed seed: as large as a row and a
column, they change with every entry of M.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice, product

import torch
from torch import Tensor, nn

from gradfix.ranks import ranks
from gradfix.tasks.batches import Batch, batch_size, tensors_of
from gradfix.votes.fast.accumulate import Blocks
from gradfix.votes.fast.contributions import Contribution, Form
from gradfix.votes.fast.derived import SampleGradients
from gradfix.votes.fast.layouts import Layout
from gradfix.votes.fast.recorder import DERIVED, Recorder, Use
from gradfix.votes.fast.unread import unread
from gradfix.votes.isolation import Loss, checked_losses
from gradfix.votes.plain import count_plainly

FEWEST = 2
"""With fewer samples, samples can't be taken for one another, and nothing is verified."""

_COMBINATIONS = 64  # of layouts, tried for a parameter that is used several times

Sketch = tuple[Tensor, Tensor]


@dataclass
class Verdict:
    """What a verification said of a parameter, used in one way.

    Attributes:
        layouts: Where the samples are in each of its uses.
        reason: Why it is left to the plain loop; empty if it is not.
        vacuous: Whether all of its gradients were zero, which proves nothing: good only while they stay zero.
        batch: The number of the batch whose samples were run both ways.
    """

    layouts: tuple[Layout, ...] = ()
    reason: str = ""
    vacuous: bool = False
    batch: int = field(default=0, compare=False)


@dataclass
class Plan:
    """What was found on one model and loss.

    Attributes:
        verdicts: By parameter and way of use.
        failure: Why torch can't run this model with the rules at all; empty if it can.
        batch: The number of the batch that is being counted.
        spared: Weights of products that need not be computed where losses are not looked at; None until it is known.
    """

    verdicts: dict[tuple[str, tuple[str, ...]], Verdict] = field(default_factory=dict)
    failure: str = ""
    batch: int = 0
    spared: frozenset[str] | None = None

    @property
    def derived(self) -> frozenset[str]:
        """Parameters that met the samples as derived tensors alone, wherever they were verified."""
        ways = {name: way for (name, way), verdict in self.verdicts.items() if way and not verdict.reason}
        return frozenset(name for name, way in ways.items() if all(DERIVED in use for use in way))


def enough(batch: Batch) -> int:
    """Choose how many samples to run both ways.

    Args:
        batch: At least two samples.

    Returns:
        Two, or three where two could be taken for the positions of a sequence of that length.
    """
    confusable = any(tensor.ndim > 1 and tensor.shape[1] == FEWEST for _, tensor in tensors_of(batch))
    return FEWEST + confusable


def verify(
    plan: Plan,
    model: nn.Module,
    batch: Batch,
    loss: Loss,
    parameters: Mapping[str, nn.Parameter],
    first: int,
    *,
    sparing: bool = False,
) -> None:
    """Run samples both ways and add the verdicts to a plan.

    Args:
        plan: To be added to.
        model: Held still.
        batch: Two samples or more.
        loss: One value a sample.
        parameters: Name to parameter, each requiring a gradient.
        first: Index of the first sample among all samples, for messages.
        sparing: Nobody looks at the losses: what they alone are made of is found, and verified without.
    """
    samples = batch_size(batch)
    ones = {name: _signs(parameter) for name, parameter in parameters.items()}
    plain: dict[str, list[Sketch]] = {name: [] for name in parameters}

    def sketch(name: str, gradient: Tensor) -> None:
        right, left = ones[name]
        matrix = _matrix(gradient).to(right.dtype)
        plain[name].append((matrix @ right, left @ matrix))

    # gradients of one sample arrive before those of the next, so a list's index is the sample's
    count_plainly(model, batch, samples, loss, parameters, sketch, first=first)
    verdicts: dict[str, Verdict] = {}
    blocks = Blocks()

    def compare(name: str, arrived: list[tuple[Use, Form]]) -> None:
        verdicts[name] = _compare(name, parameters[name], arrived, ones[name], plain[name], blocks, samples)

    def run(recorder: Recorder) -> Tensor:
        with recorder:
            return checked_losses(loss(model, batch), samples)

    recorder = Recorder(parameters, samples, plan.derived, plan.spared or frozenset())
    try:
        losses = run(recorder)
        if sparing:
            found = unread(losses)
            spared = found if plan.spared is None else found & plan.spared
            while recorder.misread or recorder.spared != spared:
                spared = frozenset() if recorder.misread else spared
                recorder.close()
                recorder = Recorder(parameters, samples, plan.derived, spared)
                losses = run(recorder)
            plan.spared = spared
        recorder.backward(losses, compare)
    except RuntimeError as error:
        # Torch refuses what the rules did to this model (a second derivative, a checkpointed segment run
        # again); the plain loop has just run the same samples without it.
        plan.failure = f"the fast path failed: {str(error).splitlines()[0]}"
    for name in parameters:
        if plan.failure or name in recorder.uncovered:
            verdict = Verdict(reason=plan.failure or recorder.uncovered[name])
        elif name in verdicts:
            verdict = verdicts[name]
        elif any(bool(part.any()) for pair in plain[name] for part in pair):
            verdict = Verdict(reason="a use of it escaped the rules")
        else:
            verdict = Verdict(tuple(use.layouts[0] for use in recorder.uses(name)), vacuous=True)
        # The first verdict stands, so that which batches are counted beside it makes no difference.
        verdict.batch = plan.batch
        plan.verdicts.setdefault((name, recorder.signature(name)), verdict)
    recorder.close()


def settle(plans: Mapping[str, Plan]) -> bool:
    """Let all ranks go by the verdicts that one process would have come to: those of the first batches.

    Args:
        plans: This rank's, by a name that is the same on every rank; changed in place.

    Returns:
        Whether every rank went by them already; otherwise what was counted has to be counted again.
    """
    found = ranks().gather("verdicts", dict(plans))
    settled = True
    for name in plans:
        agreed = Plan()
        for other in (each[name] for each in found if name in each):
            agreed.failure = agreed.failure or other.failure
            for key, verdict in other.verdicts.items():
                known = agreed.verdicts.get(key)
                if known is None or verdict.batch < known.batch:
                    agreed.verdicts[key] = verdict
        settled = settled and all(
            each[name].failure == agreed.failure
            and all(agreed.verdicts[key] == verdict for key, verdict in each[name].verdicts.items())
            for each in found
            if name in each and each[name].verdicts
        )
        plans[name].verdicts, plans[name].failure = agreed.verdicts, agreed.failure
    return settled


def _compare(
    name: str,
    parameter: nn.Parameter,
    arrived: Sequence[tuple[Use, Form]],
    ones: Sketch,
    plain: Sequence[Sketch],
    blocks: Blocks,
    samples: int,
) -> Verdict:
    best = float("inf")
    verdict = Verdict()
    # The best layouts, not the first that pass: a part of a packed weight may be too small beside the others for
    # its samples to be noticed in the wrong place, but not too small to be a closer match in the right one.
    for layouts in islice(product(*(use.layouts for use, _ in arrived)), _COMBINATIONS):
        parts = [form(layout) for (_, form), layout in zip(arrived, layouts, strict=True)]
        magnitude = sum(part.magnitude() for part in parts)
        if all(use.source.whole and not use.per_sample_rows for use, _ in arrived):
            fast = _sketches(parts, parameter, ones, blocks, samples)
        else:
            gradients = SampleGradients(name, parameter, [use for use, _ in arrived], parts, samples)
            matrices = [_matrix(each).to(ones[0].dtype) for each in gradients]
            fast = [(matrix @ ones[0], ones[1] @ matrix) for matrix in matrices]
        error = _distance(fast, plain, parameter, magnitude)
        if error < best:
            best = error
            verdict = Verdict(layouts, vacuous=not any(bool(part.any()) for pair in fast for part in pair))
    if best <= 1:
        return verdict
    if len(plain) < samples:
        return Verdict(reason="autograd gives it no gradient for some samples")
    return Verdict(
        reason=f"its gradients by the rules differ from autograd's ({best:.0e} times the tolerance)"
    )


def _sketches(
    parts: Sequence[Contribution], parameter: Tensor, ones: Sketch, blocks: Blocks, samples: int
) -> list[Sketch]:
    right, left = ones
    R, C = _matrix(parameter).shape
    by_row, by_column = right.new_zeros(samples, R), right.new_zeros(samples, C)
    for rows, block in blocks.walk(parts, (samples, R, C), parameter.device):
        block = block.to(right.dtype)
        by_row[:, rows] = block @ right
        by_column += torch.einsum("r,nrc->nc", left[rows], block)
    return [(by_row[n], by_column[n]) for n in range(samples)]


def _distance(fast: Sequence[Sketch], plain: Sequence[Sketch], parameter: Tensor, magnitude: float) -> float:
    """Measure the largest difference in units of what rounding explains."""
    eps = torch.finfo(parameter.dtype).eps
    relative, absolute = (1e-3, 100 * eps) if eps < 1e-4 else (0.2, 2 * eps)
    worst = 0.0
    for n, pair in enumerate(fast):
        for part, mine in enumerate(pair):
            theirs = plain[n][part] if n < len(plain) else torch.zeros_like(mine)
            width = parameter.numel() ** 0.5 / max(len(mine), 1) ** 0.5
            allowed = relative * float(theirs.norm()) + absolute * magnitude * max(width, 1.0) + 1e-30
            worst = max(worst, float((mine - theirs).norm()) / allowed)
    return worst


def _matrix(tensor: Tensor) -> Tensor:
    """View a parameter's gradient as (R, C)."""
    return tensor.reshape(tensor.shape[0] if tensor.ndim else 1, -1)


def _signs(parameter: Tensor) -> Sketch:
    generator = torch.Generator().manual_seed(0)
    R, C = _matrix(parameter).shape
    wide = torch.promote_types(parameter.dtype, torch.float32)
    drawn = (torch.randint(0, 2, (size,), generator=generator) * 2 - 1 for size in (C, R))
    right, left = (signs.to(parameter.device, wide) for signs in drawn)
    return right, left
