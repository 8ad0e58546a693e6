"""The lab's pairs as studies need them: loaded once a process, and judged on the same test images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from gradfix.checkpoints import Checkpoint
from gradfix.demo.datasets import available_tasks, load_task
from gradfix.demo.pair import load, names
from gradfix.evaluation.binding import bind
from gradfix.evaluation.evaluate import EncodedRows
from gradfix.evaluation.target_model import TargetModel
from gradfix.tasks import ModelTask, get_task
from gradfix.vectors.placement import place
from gradfix.vectors.task_vector import TaskVector

INDEPENDENT, CLOSE, FAR = "A→B", "B→B-next", "A→B-next"
PAIRS = {INDEPENDENT: ("A", "B"), CLOSE: ("B", "B-next"), FAR: ("A", "B-next")}
"""Source and target base of each pair."""

BATCH = 128


@dataclass(frozen=True)
class Bench:
    """One task on one pair.

    Attributes:
        model: The target with the source's task vector; every experiment leaves it at θ_B.
        pool: What support sets are drawn from.
        test: The first test images, encoded.
        validation: The lab's validation images, encoded.
        oracle: τ_B, restricted like the target's vector; None where the lab has no tuned target.
    """

    model: TargetModel
    pool: Sequence[Mapping[str, Any]]
    test: EncodedRows
    validation: EncodedRows
    oracle: TaskVector | None


@lru_cache(maxsize=6)
def bench(pair: str, task: str, test: int) -> Bench:
    """Load one task on one pair, through the same code as users' own models.

    Args:
        pair: A key of :data:`PAIRS`.
        task: A task of the lab.
        test: How many test images.

    Returns:
        What experiments work on.
    """
    source, target_name = PAIRS[pair]
    target = Checkpoint.open(load(target_name))
    tau = TaskVector.between(load(source), load(f"{source}-{task}"))
    lab_task = load_task(task)
    pool = lab_task.rows("train")
    zero_shot = task_of(task)
    bind(zero_shot, target, tau, pool)
    model = TargetModel.load(zero_shot, target, place(tau, target), batch_size=BATCH)
    oracle = None
    if f"{target_name}-{task}" in names():
        tuned = TaskVector.between(target, load(f"{target_name}-{task}"))
        oracle = model.restricted(place(tuned, target).vector)
    tested, validated = (model.encode(lab_task.rows(split)[:test]) for split in ("test", "validation"))
    return Bench(model, pool, tested, validated, oracle)


@lru_cache(maxsize=6)
def others(pair: str, task: str, test: int) -> dict[str, tuple[ModelTask, EncodedRows]]:
    """Prepare every other task, to see what a target keeps of it.

    Args:
        pair: A key of :data:`PAIRS`.
        task: The task that is not among them.
        test: How many test images of each.

    Returns:
        Task, bound to the pair's target, and encoded images, by name.
    """
    here = bench(pair, task, test)
    directory = load(PAIRS[pair][1])
    found = {}
    for name in available_tasks():
        if name != task:
            other = task_of(name)
            other.bind(directory)
            other.prepare(here.model.model)  # the text tower is θ_B's: no experiment changes it
            rows = load_task(name).rows("test")[:test]
            found[name] = (other, here.model.encode(rows, task=other))
    return found


def task_of(name: str) -> ModelTask:
    """Make a lab task as users would.

    Args:
        name: A task of the lab.

    Returns:
        The task, bound to no model yet.
    """
    lab_task = load_task(name)
    return get_task(
        "zero-shot-image-classification", labels=lab_task.class_names, templates=lab_task.templates
    )
