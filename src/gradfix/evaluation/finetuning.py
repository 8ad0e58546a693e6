"""Few-shot fine-tuning of the target on the support set."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat

import torch
from torch import Tensor, nn

from gradfix.checkpoints import TensorSource
from gradfix.evaluation.evaluate import EncodedRows
from gradfix.evaluation.target_model import TargetModel

TRAINING_BATCH = 16


FUSED_DEVICES = ("cpu", "cuda")


@dataclass(frozen=True)
class Paused:
    """Training that can go on where it was left.

    Attributes:
        steps: How many were done.
        tensors: What they changed: weights, the optimizer's moments, the state of the random numbers.
    """

    steps: int
    tensors: TensorSource


def finetune(
    target: TargetModel,
    count: int,
    encode: Callable[[Sequence[int]], EncodedRows],
    *,
    learning_rate: float,
    stops: Sequence[int],
    seed: int = 0,
    head: bool = True,
    resume: Paused | None = None,
    pause: Callable[[int, Mapping[str, Tensor]], None] | None = None,
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
        resume: Where an earlier walk of the same was left, at the first stop or before it.
        pause: Given the steps and tensors of which to make a :class:`Paused` when the walk ends at a stop. The tensors
            change when it returns.

    Yields:
        The number of steps done, at each stop.
    """
    torch.manual_seed(seed)
    batches = _batches(count, seed)
    encode = _remembering(encode) if count <= TRAINING_BATCH else encode
    parameters = target.trainable(head=head)
    needed = {id(parameter): parameter.requires_grad for parameter in target.model.parameters()}
    trained = {id(parameter) for parameter in parameters}
    # One pass over weights, gradients and moments; step by step it takes as long as the gradients of a small batch.
    fused = all(parameter.device.type in FUSED_DEVICES for parameter in parameters)
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0, fused=fused)
    done = 0
    try:
        for parameter in target.model.parameters():
            parameter.requires_grad_(id(parameter) in trained)
        if resume is not None:
            _set_state(parameters, optimizer, resume.tensors)
            done = resume.steps
            for _ in range(done):
                next(batches)
            if done in stops:
                yield done
        for step in range(done + 1, max(stops) + 1):
            done = 0  # between two stops nothing may be kept
            optimizer.zero_grad()
            encoded = encode(next(batches))
            samples = sum(map(len, encoded.positions))
            for part in encoded.batches:
                (target.task.loss(target.model, part).sum() / samples).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if step in stops:
                done = step
                yield step
    finally:
        if done and pause is not None:
            pause(done, _state(parameters, optimizer))
        optimizer.zero_grad()
        for parameter in target.model.parameters():
            parameter.requires_grad_(needed[id(parameter)])


def _state(parameters: Sequence[nn.Parameter], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    tensors = {"random": torch.get_rng_state()}
    for number, parameter in enumerate(parameters):
        tensors[f"{number} weight"] = parameter.detach()
        tensors |= {f"{number} {key}": value for key, value in optimizer.state[parameter].items()}
    return {name: tensor.cpu() for name, tensor in tensors.items()}


def _set_state(
    parameters: Sequence[nn.Parameter], optimizer: torch.optim.Optimizer, tensors: TensorSource
) -> None:
    torch.set_rng_state(tensors.read("random").clone())
    for name in tensors.specs:
        if name != "random":
            number, key = name.split()
            parameter, value = parameters[int(number)], tensors.read(name)
            if key == "weight":
                with torch.no_grad():
                    parameter.copy_(value)
            else:
                optimizer.state[parameter][key] = value.to(parameter.device, copy=True)


def _remembering(encode: Callable[[Sequence[int]], EncodedRows]) -> Callable[[Sequence[int]], EncodedRows]:
    """Encode what is one batch, always the same, once."""
    found: list[EncodedRows] = []

    def once(places: Sequence[int]) -> EncodedRows:
        if not found:
            found.append(encode(places))
        return found[0]

    return once


def _batches(count: int, seed: int) -> Iterator[Sequence[int]]:
    """Deal the places of samples into batches of even sizes without end, in a new order each time round."""
    batches = math.ceil(count / TRAINING_BATCH)
    if batches == 1:
        yield from repeat(range(count))
    generator = torch.Generator().manual_seed(seed)
    while True:
        for places in torch.randperm(count, generator=generator).tensor_split(batches):
            yield places.tolist()
