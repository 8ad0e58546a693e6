"""What comes before any job on a target: checked models, labelled rows, a bound task, a support set, a head."""

from collections.abc import Mapping, Sequence
from typing import Any

from gradfix.checkpoints import Checkpoint
from gradfix.compatibility import Compatibility
from gradfix.data import load_rows
from gradfix.errors import GradfixError
from gradfix.recipes import Sampling
from gradfix.sampling import choose
from gradfix.target_model import TargetModel
from gradfix.tasks import Classification, HeadedClassification, ModelTask, label_names
from gradfix.vectors import TaskVector

Rows = Sequence[Mapping[str, Any]]


def refuse(found: Compatibility) -> None:
    """Stop where the check found an error.

    Args:
        found: What it found.

    Raises:
        GradfixError: with the first error, and how many more there are.
    """
    errors = [finding.text for finding in found.findings if finding.level == "error"]
    if errors:
        more = f" (and {len(errors) - 1} more; see `gradfix check`)" if len(errors) > 1 else ""
        raise GradfixError(errors[0] + more)


def labelled_rows(location: str | None, split: str | None, what: str) -> Rows:
    """Read labelled rows that a command needs.

    Args:
        location: Where they are.
        split: Of data with several.
        what: What they are for, for the message.

    Returns:
        The rows.

    Raises:
        GradfixError: if no location was given, or it can't be read.
    """
    if location is None:
        raise GradfixError(f"no {what} samples: give --support, or --data with --samples-per-class")
    return load_rows(location, split=split)


def bind(
    task: ModelTask,
    target: Checkpoint,
    tau: TaskVector | None,
    rows: Rows,
    *,
    trust_remote_code: bool = False,
) -> None:
    """Give a task the target's tokenizer or processor, and the class names that hold.

    The tuned model's labels count where it brings a head; zero-shot tasks take theirs from the data.

    Args:
        task: The task.
        target: θ_B.
        tau: The task vector, if there is one.
        rows: The data, for class names that nobody gave.
        trust_remote_code: Allow the code that a repository brings.

    Raises:
        GradfixError: if the target has no tokenizer or processor.
    """
    if target.directory is None:
        raise GradfixError(
            f"{target.location}: has no tokenizer or processor beside it; give a model directory"
        )
    task.bind(target.directory, trust_remote_code=trust_remote_code)
    if isinstance(task, HeadedClassification) and tau is not None and tau.config.get("id2label"):
        task.use_labels({int(key): name for key, name in tau.config["id2label"].items()})
    elif isinstance(task, Classification) and not task.has_labels:
        task.use_labels(label_names(rows, task.columns["label"]))


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
    features = None if sampling == "random" else model.features(pool)
    chosen = choose(model.task.classes(pool), samples_per_class, sampling, seed=seed, features=features)
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
    if isinstance(model.task, HeadedClassification):
        vector.config["id2label"] = {str(key): name for key, name in model.task.labels.id2label.items()}
        vector.config["label2id"] = dict(model.task.labels.label2id)


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
