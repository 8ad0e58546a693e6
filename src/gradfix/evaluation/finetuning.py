"""Few-shot fine-tuning of the target on the support set."""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import repeat

import torch

from gradfix.evaluation.evaluate import EncodedRows
from gradfix.evaluation.target_model import TargetModel

TRAINING_BATCH = 16


FUSED_DEVICES = ("cpu", "cuda")


def finetune(
    target: TargetModel,
    count: int,
    encode: Callable[[Sequence[int]], EncodedRows],
    *,
    learning_rate: float,
    stops: Sequence[int],
    seed: int = 0,
    head: bool = True,
) -> Iterator[int]:
    """Fine-tune the model in place with AdamW on batches of at most 16 samples, and pause at the given step counts.

    Args:
        target: The model, wherever it stands; the caller restores it.
        count: How many samples to train on; up to 16 are one batch, more are dealt anew each time round.
        encode: Gives the batches of those at some places, as :meth:`TargetModel.encoder` makes it.
        learning_rate: Of AdamW, without decay of weights: a few steps are no place for it.
        stops: Step counts at which to pause.
        seed: Of the order of samples, and for models that draw at random; dropout is off, as for votes.
        head: Train a head that τ does not cover, too.

    Yields:
        The number of steps done, at each stop.
    """
    torch.manual_seed(seed)
    batches = _batches(count, encode, seed)
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


def _batches(count: int, encode: Callable[[Sequence[int]], EncodedRows], seed: int) -> Iterator[EncodedRows]:
    """Deal samples into batches of even sizes without end, in a new order each time round."""
    batches = math.ceil(count / TRAINING_BATCH)
    if batches == 1:
        yield from repeat(encode(range(count)))
    generator = torch.Generator().manual_seed(seed)
    while True:
        for places in torch.randperm(count, generator=generator).tensor_split(batches):
            yield encode(places.tolist())
