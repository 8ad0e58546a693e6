"""A task bound to a target: tokenizer, class names, a support set, a head."""

from collections.abc import Mapping, Sequence
from typing import Any

from gradfix.checkpoints import Checkpoint
from gradfix.errors import GradfixError, option
from gradfix.evaluation.target_model import TargetModel
from gradfix.recipes import Sampling
from gradfix.tasks import (
    Classification,
    Generative,
    HeadedClassification,
    Labelled,
    LanguageModel,
    ModelTask,
    ZeroShotImageClassification,
)
from gradfix.tasks.data import Row, origin
from gradfix.tasks.sampling import choose
from gradfix.vectors.brought import brought_template
from gradfix.vectors.task_vector import TaskVector

Rows = Sequence[Mapping[str, Any]]


def without_labels(task: ModelTask, rows: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Make rows that a task can encode though nobody labelled them, and hide the labels of those that have one.

    Args:
        task: The task.
        rows: Inputs.

    Returns:
        Rows with the first class as a stand-in, which nothing reads; as they are for a task without classes, whose
        targets are part of what the model reads.
    """
    if not isinstance(task, Classification):
        return [Row(row, origin(row, number)) for number, row in enumerate(rows)]
    column = task.columns["label"]
    return [
        Row({**row, column: task.labels.names[0]}, origin(row, number)) for number, row in enumerate(rows)
    ]


def unanswered(task: ModelTask, rows: Rows) -> list[Row]:
    """Make rows that the tuned source is to answer: with a stand-in for the class, or for the text that it writes.

    Args:
        task: The task.
        rows: Inputs; what some of them have for an answer is hidden.

    Returns:
        The rows.
    """
    return task.prompts(rows) if isinstance(task, Generative) else without_labels(task, rows)


def bind(
    task: ModelTask,
    target: Checkpoint,
    tau: TaskVector | None,
    rows: Rows,
    *,
    trust_remote_code: bool = False,
) -> None:
    """Give a task the target's tokenizer or processor, and the class names that hold.

    The tuned model's labels count where it brings a head; zero-shot tasks take theirs from the data. Conversations are
    written with the chat template that the fine-tune learnt, which the output has, too.

    Args:
        task: The task.
        target: θ_B.
        tau: The task vector, if there is one.
        rows: The data, for class names that nobody gave.
        trust_remote_code: Allow the code that a repository brings.

    Raises:
        GradfixError: if the target has no tokenizer or processor.
    """
    if target.directory is not None:
        task.bind(target.directory, trust_remote_code=trust_remote_code)
    elif not task.builds_model:
        zero_shot = isinstance(task, ZeroShotImageClassification)
        whole = f", or the whole model it is of with {option('text_from')}" if zero_shot else ""
        raise GradfixError(
            f"{target.location}: has no tokenizer or processor beside it; give a model directory{whole}"
        )
    if tau is not None and tau.config:
        task.use_tuned(tau.config)
    if tau is not None and isinstance(task, LanguageModel):
        template = brought_template(tau.directory, tau.base_directory, target.directory)
        if template is not None:
            task.use_template(template)
    if isinstance(task, Labelled) and not task.has_labels:
        task.use_labels(task.names_in(rows))


def refuse_idle_text(task: ModelTask, target: Checkpoint) -> None:
    """Refuse a text side from elsewhere for a model that has its own.

    Args:
        task: Bound to the target.
        target: θ_B.

    Raises:
        GradfixError: if the target is whole.
    """
    if isinstance(task, ZeroShotImageClassification) and task.text_from and not task.builds_model:
        raise GradfixError(
            f"{option('text_from')} {task.text_from}: {target.location} has a text side of its own; leave it out"
        )


def choose_support(
    model: TargetModel, pool: Rows, *, samples_per_class: int | None, sampling: Sampling, seed: int
) -> Rows:
    """Choose the support set from a pool, by the target's own features where the method asks for them.

    Args:
        model: θ_B.
        pool: Labelled rows.
        samples_per_class: How many a class; None for the whole pool.
        sampling: How to choose.
        seed: Of what is drawn.

    Returns:
        The chosen rows, each knowing where it comes from.
    """
    if samples_per_class is None:
        return pool
    if sampling == "random":
        return draw_support(model.task, pool, samples_per_class, seed)
    chosen = choose(
        model.task.classes(pool),
        samples_per_class,
        sampling,
        seed=seed,
        features=model.features(pool),
        names=model.task.class_names,
    )
    return [pool[position] for position in chosen]


def draw_support(task: ModelTask, pool: Rows, samples_per_class: int, seed: int) -> Rows:
    """Draw the support set at random, for which no model is needed.

    Args:
        task: Tells the classes.
        pool: Labelled rows.
        samples_per_class: How many a class.
        seed: Of the draw.

    Returns:
        The rows drawn.
    """
    chosen = choose(task.classes(pool), samples_per_class, seed=seed, names=task.class_names)
    return [pool[position] for position in chosen]


def describe_head(vector: TaskVector, model: TargetModel) -> None:
    """Complete the configuration that comes with a head: an adapter's names neither its architecture nor its classes.

    Args:
        vector: The task vector that will be written; its configuration is changed.
        model: The model that was built for the task.
    """
    if not vector.additions.specs:
        return
    vector.config["architectures"] = [type(model.model).__name__]
    vector.config.update(model.task.head_config())


def use_head(model: TargetModel, head: str, rows: Rows) -> None:
    """Refit the head on the target's features, where that was asked for.

    Args:
        model: The target.
        head: ``copy`` or ``probe``.
        rows: The samples to fit to.

    Raises:
        GradfixError: if the task has no head to refit.
    """
    if head == "copy":
        return
    if not isinstance(model.task, HeadedClassification):
        raise GradfixError(f"--head probe: {model.task.name} has no classification head; leave --head copy")
    model.use_head(model.task.fit_head(model.model, rows))


def used_columns(task: ModelTask, row: Mapping[str, Any]) -> list[str]:
    """List the columns of a row that a task reads.

    Args:
        task: The task.
        row: The row.

    Returns:
        Column names.
    """
    return [column for column in task.columns.values() if column in row]
