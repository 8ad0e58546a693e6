"""What is needed of the source models, taken before the target is loaded: no two models are in memory together."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradfix.alignment.activations import Activations, Point
from gradfix.alignment.regression import SHUFFLED, SOURCE, TUNED
from gradfix.alignment.rotate import rotation_points
from gradfix.alignment.streams import Writer, find_writers
from gradfix.baselines import shuffled
from gradfix.checkpoints import Checkpoint
from gradfix.evaluation import Evaluation
from gradfix.placement import place
from gradfix.progress import Progress, silent
from gradfix.target_model import TargetModel
from gradfix.tasks import Classification, ModelTask
from gradfix.vectors import TaskVector


@dataclass(frozen=True)
class Observed:
    """What is left of the source once it has been freed.

    Attributes:
        writers: The maps that a regression may fit; the same modules in the target, whose architecture is the same.
        points: Where activations were recorded.
        probabilities: The tuned source's class probabilities on the inputs, ``[inputs, classes]`` in the order of the
            rows; None for a task without classes.
        support: The tuned source measured on the labelled support set.
    """

    writers: Sequence[Writer]
    points: Sequence[Point]
    probabilities: Tensor | None
    support: Evaluation | None


def observe(
    base: Checkpoint,
    tau: TaskVector,
    task: ModelTask,
    inputs: Sequence[Any],
    support: Sequence[Any] | None,
    activations: Activations,
    *,
    method: str = "regression",
    control_seed: int | None = None,
    progress: Progress = silent,
    **loading: Any,
) -> Observed:
    """Run the source's base and tuned models over inputs, record them, and free them.

    Args:
        base: θ_A, in a directory.
        tau: θ_A^ft − θ_A.
        task: Bound to the source.
        inputs: Samples; their labels are not used.
        support: Labelled samples to measure the tuned source on.
        activations: Where to record.
        method: How the target will be aligned: it tells where to look. ``none`` looks at no activations.
        control_seed: Also record the base with τ's values shuffled, as the control; None for not.
        progress: Told the passes done.
        **loading: Options of :meth:`gradfix.target_model.TargetModel.load`.

    Returns:
        What the rest needs.

    Raises:
        GradfixError: if the source can't be loaded, or can't be aligned.
    """
    model = TargetModel.load(task, base, place(tau, base), **loading)
    encoded = model.encode(inputs)
    run = runner(task, model)
    writers: Sequence[Writer] = ()
    points: list[Point] = []
    if method == "regression":
        writers = find_writers(model.model, run, encoded.batches[0], set(model.names))
        points = list(dict.fromkeys(writer.stream for writer in writers))
    elif method != "none":
        points = rotation_points(model.model, model.names)
    passes = 2 + (control_seed is not None and method == "regression")

    def record(key: str, number: int) -> list[Any]:
        outputs = activations.record(key, model.model, run, encoded.batches, points)
        progress("observing the source", number, passes, "passes")
        return outputs

    record(SOURCE, 1)
    if control_seed is not None and method == "regression":
        model.move(shuffled(model.vector, control_seed), 1.0)
        record(SHUFFLED, 2)
    model.move(model.vector, 1.0)
    outputs = record(TUNED, passes)
    measured = model.evaluate(support) if support is not None else None
    probabilities = None
    if isinstance(task, Classification):
        order = torch.tensor([index for places in encoded.positions for index in places])
        probabilities = torch.cat(outputs).float().softmax(dim=1)[order.argsort()].clone()
    return Observed(writers, points, probabilities, measured)


def runner(task: ModelTask, model: TargetModel) -> Callable[[Any], Any]:
    """Make what runs a model on a batch: to the class scores where there are classes, else to the loss.

    Args:
        task: The task.
        model: Its model.

    Returns:
        A function of a batch.
    """
    if isinstance(task, Classification):
        return lambda batch: task.logits(model.model, batch).cpu()
    return lambda batch: task.loss(model.model, batch)
