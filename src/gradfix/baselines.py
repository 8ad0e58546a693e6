"""What a transport is measured against: naive addition, a shuffled control, few-shot fine-tuning, and oracles."""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import repeat
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradfix.checkpoints import TensorSpec
from gradfix.evaluation import EncodedRows
from gradfix.masks import mask
from gradfix.sources import Expression
from gradfix.target_model import TargetModel
from gradfix.vectors import TaskVector
from gradfix.votes import Votes

TRAINING_BATCH = 16
FUSED_DEVICES = ("cpu", "cuda")


@dataclass(frozen=True)
class Shuffled(Expression):
    """τ with its values permuted at random within each tensor: the same magnitudes, nothing of what was learnt.

    A permutation needs a whole tensor; the last one is kept, so that reading it by rows costs one permutation.
    """

    of: TaskVector
    seed: int
    _last: dict[str, Tensor] = field(default_factory=dict, compare=False, repr=False)

    @cached_property
    def specs(self) -> Mapping[str, TensorSpec]:
        """The tensors of τ."""
        return self.of.specs

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        """Read rows of the permuted tensor."""
        if name not in self._last:
            digest = hashlib.sha256(f"{self.seed}\0{name}".encode()).digest()
            self._last.clear()  # before the next one is made: no two are held
            spec = self.specs[name]
            values = torch.empty(spec.shape)
            for block in spec.row_blocks():
                (values if block is None else values[block]).copy_(self.of.read(name, block))
            # In place: positions to gather from would take twice the tensor's memory, or four times in 64 bits.
            np.random.default_rng(int.from_bytes(digest[:8], "little")).shuffle(values.view(-1).numpy())
            self._last[name] = values
        return self._last[name] if rows is None else self._last[name][rows]


def shuffled(tau: TaskVector, seed: int) -> TaskVector:
    """Permute τ's values within each tensor: the control that every claim of transfer must beat.

    Args:
        tau: The task vector.
        seed: Of the permutations.

    Returns:
        The control vector.
    """
    return tau.derive(Shuffled(tau, seed), operation="shuffle", seed=seed)


@dataclass(frozen=True)
class Method:
    """A way to make a direction δ from a task vector.

    Attributes:
        label: How tables call it.
        vote: Which votes it asks for; None for none.
        build: Makes δ from τ, the votes, and a seed.
    """

    label: str
    vote: str | None
    build: Callable[[TaskVector, Votes | None, int], TaskVector]


def _masked(strategy: str) -> Callable[[TaskVector, Votes | None, int], TaskVector]:
    return lambda tau, votes, seed: mask(tau, votes, strategy=strategy, seed=seed)


METHODS: dict[str, Method] = {
    "naive": Method("naive addition", None, _masked("none")),
    "random": Method("random mask", None, _masked("random")),
    "mean": Method("mean vote", "mean", _masked("agreement")),
    "force": Method("majority, force", "majority", _masked("force")),
    "soft": Method("majority, soft", "majority", _masked("soft")),
    "gradfix": Method("GradFix (majority, agreement)", "majority", _masked("agreement")),
    "control": Method(
        "control: τ shuffled, then masked",
        "majority",
        lambda tau, votes, seed: mask(shuffled(tau, seed), votes, strategy="agreement"),
    ),
}
"""Every method that needs no fine-tune of the target."""


@dataclass(frozen=True)
class FewShot:
    """What few-shot fine-tuning chooses among, by cross-fitting on its samples.

    Attributes:
        folds: Each trains anew with every learning rate, so fewer are faster.
        learning_rates: Of AdamW.
        steps: Steps of at most 16 samples; not training at all is always a candidate, too.
    """

    folds: int = 2
    learning_rates: tuple[float, ...] = (1e-4, 3e-4)
    steps: tuple[int, ...] = (5, 15, 40, 100)


@dataclass(frozen=True)
class FineTuning:
    """The few-shot baseline's settings, chosen by cross-fitting on the support set.

    Attributes:
        learning_rate: Of AdamW.
        steps: Steps of at most 16 samples; 0 where not training at all was best.
        loss: Mean held-out loss with them.
    """

    learning_rate: float
    steps: int
    loss: float


def finetune(
    target: TargetModel,
    rows: Sequence[Any],
    *,
    learning_rate: float,
    stops: Sequence[int],
    seed: int = 0,
    head: bool = True,
) -> Iterator[int]:
    """Fine-tune the model in place with AdamW on batches of at most 16 samples, and pause at the given step counts.

    Args:
        target: The model, wherever it stands; the caller restores it.
        rows: The samples to train on; up to 16 are one batch, more are dealt anew each time round.
        learning_rate: Of AdamW, without decay of weights: a few steps are no place for it.
        stops: Step counts at which to pause.
        seed: Of the order of samples, and for models that draw at random; dropout is off, as for votes.
        head: Train a head that τ does not cover, too.

    Yields:
        The number of steps done, at each stop.
    """
    torch.manual_seed(seed)
    batches = _batches(target, rows, seed)
    parameters = target.trainable(head=head)
    needed = {id(parameter): parameter.requires_grad for parameter in target.model.parameters()}
    trained = {id(parameter) for parameter in parameters}
    # One pass over weights, gradients and moments; step by step it takes as long as the gradients of a small batch.
    fused = all(parameter.device.type in FUSED_DEVICES for parameter in parameters)
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0, fused=fused)
    try:
        for parameter in target.model.parameters():
            parameter.requires_grad_(id(parameter) in trained)
        for step in range(1, max(stops) + 1):
            optimizer.zero_grad()
            encoded = next(batches)
            samples = sum(map(len, encoded.positions))
            for part in encoded.batches:
                (target.task.loss(target.model, part).sum() / samples).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if step in stops:
                yield step
    finally:
        optimizer.zero_grad()
        for parameter in target.model.parameters():
            parameter.requires_grad_(needed[id(parameter)])


def _batches(target: TargetModel, rows: Sequence[Any], seed: int) -> Iterator[EncodedRows]:
    """Deal rows into batches of even sizes without end, in a new order each time round."""
    count = math.ceil(len(rows) / TRAINING_BATCH)
    if count == 1:
        yield from repeat(target.encode(rows))
    generator = torch.Generator().manual_seed(seed)
    while True:
        for places in torch.randperm(len(rows), generator=generator).tensor_split(count):
            yield target.encode([rows[place] for place in places.tolist()])


def choose_finetuning(
    target: TargetModel,
    rows: Sequence[Any],
    folds: Sequence[Sequence[int]],
    candidates: FewShot,
    *,
    seed: int = 0,
) -> FineTuning:
    """Choose learning rate and steps by cross-fitting; not training is among the candidates.

    Args:
        target: The model; it is at θ_B afterwards, also after an error.
        rows: The support set.
        folds: Positions by fold; at least two.
        candidates: Learning rates and steps to choose among; ``folds`` says how they are dealt already.
        seed: See :func:`finetune`.

    Returns:
        The settings with the smallest held-out loss.
    """
    losses: dict[tuple[float, int], float] = {}
    try:
        for fold in folds:
            held = target.encode([rows[index] for index in fold])
            inside = set(fold)
            others = [row for index, row in enumerate(rows) if index not in inside]
            share = len(fold) / len(rows)
            target.restore()
            losses[0.0, 0] = losses.get((0.0, 0), 0.0) + share * target.evaluate(held).loss
            for rate in candidates.learning_rates:
                target.restore()
                for step in finetune(target, others, learning_rate=rate, stops=candidates.steps, seed=seed):
                    found = share * target.evaluate(held).loss
                    losses[rate, step] = losses.get((rate, step), 0.0) + found
    finally:
        target.restore()
    (rate, step), loss = min(losses.items(), key=lambda item: (item[1], item[0]))
    return FineTuning(rate, step, loss)
