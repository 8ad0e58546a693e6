"""What comes before any job on a target: labelled rows, a bound task, a support set, a head."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gradfix.checkpoints import Checkpoint
from gradfix.compatibility import (
    Compatibility,
    Finding,
    Models,
    check_weights,
    open_models,
    unheard,
)
from gradfix.data import Row, load_rows, origin
from gradfix.errors import GradfixError
from gradfix.recipes import IN_PYTHON, CheckRecipe, Sampling, TaskRecipe, TransportRecipe
from gradfix.sampling import choose
from gradfix.target_model import TargetModel
from gradfix.tasks import Classification, HeadedClassification, ModelTask, get_task, label_names
from gradfix.vectors import TaskVector

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Data:
    """The rows of a job.

    Attributes:
        pool: Labelled rows: the support set, or what it is drawn from.
        held: Labelled rows that choose or judge, by ``"validation"`` and ``"test"``, as far as they were given.
        budget: Samples a class to be drawn from the pool; None where all of it is the support set.
        align_data: Inputs to align on.
        unlabelled: Inputs that the tuned source labels.
    """

    pool: Rows
    held: Mapping[str, Rows]
    budget: int | None = None
    align_data: Rows = ()
    unlabelled: Rows = ()

    @classmethod
    def read(cls, recipe: TransportRecipe, given: Mapping[str, Rows]) -> "Data":
        """Read what a transport's options name.

        Args:
            recipe: The options.
            given: Rows in memory by option, in place of the locations.

        Returns:
            The rows.

        Raises:
            GradfixError: if rows can't be read, or came from memory and are gone.
        """

        def rows(name: str, split: str | None = None) -> Rows:
            place = getattr(recipe, name)
            if name in given:
                return given[name]
            if place == IN_PYTHON:
                raise GradfixError(
                    f"{name}: these rows were given in Python and no file holds them; run that script again"
                )
            return rows_at(recipe, place, split) if place else ()

        named = [name for name in ("support", "data") if name in given or getattr(recipe, name)]
        if not named:
            raise GradfixError(
                "there are no labelled samples: give --support, or --data with --samples-per-class"
            )
        held = {
            "validation": rows("validation", recipe.validation_split),
            "test": rows("test", recipe.test_split),
        }
        return cls(
            pool=rows(named[0], recipe.split),
            held={name: found for name, found in held.items() if len(found)},
            budget=recipe.samples_per_class,
            align_data=rows("align_data"),
            unlabelled=rows("unlabelled"),
        )


def models_of(recipe: TransportRecipe, found: Compatibility) -> Models:
    """Open the models of a transport; see :func:`gradfix.compatibility.open_models`.

    Args:
        recipe: The options.
        found: Told what is found.

    Returns:
        The models.
    """
    return open_models(
        recipe.source_base,
        recipe.source_tuned,
        recipe.target_base,
        found,
        output=recipe.output,
        overwrite=recipe.overwrite,
    )


def ready_task(
    recipe: TaskRecipe, models: Models, data: Data, found: Compatibility, *, task: ModelTask | None = None
) -> ModelTask:
    """Make a task, bind it to the target, and refuse rows that it can't use; no weight is read.

    Args:
        recipe: The options of the task.
        models: The three models.
        data: The rows.
        found: Told how many samples are longer than the model's context.
        task: A task of the caller's own, in place of the recipe's.

    Returns:
        The task.

    Raises:
        GradfixError: naming the first row that can't be used, or what the target lacks.
    """
    task = task or get_task(recipe.task, **recipe.task_options())
    bind(task, models.target, models.tau, data.pool, trust_remote_code=recipe.trust_remote_code)
    task.check(data.pool, support=True)
    for rows in data.held.values():
        task.check(rows)
    if data.unlabelled and not isinstance(task, Classification):
        raise GradfixError(
            f"--unlabelled: {task.name} has no classes, and the source can label only with classes; leave it out"
        )
    for rows in (data.align_data, data.unlabelled):
        if len(rows):
            task.check(without_labels(task, rows))
    if data.budget is not None:
        # For its refusal alone: which samples are drawn can depend on the target's features.
        choose(task.classes(data.pool), data.budget, names=task.class_names)
    for name, rows in {**({"support": data.pool} if data.budget is None else {}), **data.held}.items():
        note_cut(task, rows, name, found, strict=recipe.strict)
    return task


def note_cut(task: ModelTask, rows: Rows, name: str, found: Compatibility, *, strict: bool) -> None:
    """Say how many samples are longer than the model's context.

    Args:
        task: Bound.
        rows: The samples.
        name: What they are.
        found: Told.
        strict: Refuse them instead.
    """
    cut = task.count_cut(rows, strict=strict)
    if cut:
        found.add(
            "warning",
            f"{cut} of {len(rows)} {name} samples are longer than the model's context and are cut to it; "
            "--strict refuses them",
        )


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
        return [Row(dict(row), origin(row, number)) for number, row in enumerate(rows)]
    column = task.columns["label"]
    return [
        Row({**row, column: task.labels.names[0]}, origin(row, number)) for number, row in enumerate(rows)
    ]


def rows_at(recipe: TaskRecipe, location: str, split: str | None = None) -> Rows:
    """Read rows where a recipe has them.

    Args:
        recipe: Tells the configuration of a Hub data set.
        location: Where they are.
        split: Of data with several.

    Returns:
        The rows.
    """
    return load_rows(location, split=split, configuration=recipe.configuration)


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
    if target.directory is not None:
        task.bind(target.directory, trust_remote_code=trust_remote_code)
    elif not task.builds_model:
        raise GradfixError(
            f"{target.location}: has no tokenizer or processor beside it; give a model directory"
        )
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
    chosen = choose(
        model.task.classes(pool),
        samples_per_class,
        sampling,
        seed=seed,
        features=features,
        names=model.task.class_names,
    )
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


def check_inputs(recipe: CheckRecipe, *, tell: Callable[[Finding], None] = unheard) -> Compatibility:
    """Find whatever a transport of the same options would refuse before its first pass.

    Args:
        recipe: The options; without a task the models alone are checked.
        tell: Told each finding at once.

    Returns:
        The findings. A refusal is a finding too, nothing is raised for it.
    """
    found = Compatibility(tell=tell)
    try:
        models = models_of(recipe, found)
        if recipe.task:
            ready_task(recipe, models, Data.read(recipe, {}), found)
        check_weights(models, found)
    except GradfixError as error:
        if found.ok:
            found.add("error", str(error))
    return found
