"""What comes before any job on a target: labelled rows, a bound task, a support set, a head."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from gradfix.checkpoints.writing.publishing import require_writable
from gradfix.errors import ArchitectureError, GradfixError, column_option, listed
from gradfix.evaluation.binding import (
    Rows,
    bind,
    refuse_idle_text,
    unanswered,
    used_columns,
    without_labels,
)
from gradfix.recipes import IN_PYTHON, CheckRecipe, CompareRecipe, TaskRecipe, TransportRecipe
from gradfix.recipes.settings import SETTINGS
from gradfix.tasks import Classification, Generative, ModelTask, get_task
from gradfix.tasks.data import load_rows, origin
from gradfix.tasks.loading import require_device
from gradfix.tasks.repeated_rows import distinct
from gradfix.tasks.sampling import choose
from gradfix.transport.checks import Finding, Findings, Models, check_weights, ignore, lay_apart, open_models
from gradfix.transport.memory import note_cost
from gradfix.transport.space import moved_as_adapter, note_apart
from gradfix.transport.tracking import require_tracker

SAMPLE_SHOWN = 600
"""Characters of a sample that `check` shows."""


@dataclass(frozen=True)
class Data:
    """The rows of a job.

    Attributes:
        pool: Labelled rows: the support set, or what it is drawn from.
        held: Labelled rows that choose or judge, by ``"validation"`` and ``"test"``, as far as they were given.
        budget: Samples a class to be drawn from the pool; None where all of it is the support set.
        align_data: Inputs to align on.
        unlabelled: Inputs that the tuned source labels, or prompts that it answers.
        drawn: Answers that the tuned source draws for each labelled prompt; None for none.
    """

    pool: Rows
    held: Mapping[str, Rows]
    budget: int | None = None
    align_data: Rows = ()
    unlabelled: Rows = ()
    drawn: int | None = None

    def written(self, task: ModelTask) -> int:
        """Count the answers that the source is to write.

        Args:
            task: The task.

        Returns:
            Their number; 0 for a task that writes none.
        """
        prompts = min(len(self.pool), SETTINGS.align_inputs)
        return len(self.unlabelled) + (self.drawn or 0) * prompts if isinstance(task, Generative) else 0

    @classmethod
    def read(cls, recipe: TransportRecipe, given: Mapping[str, Rows]) -> "Data":
        """Read what a transport's options name.

        Args:
            recipe: The options.
            given: Rows in memory by option, in place of the locations.

        Returns:
            The rows.

        Raises:
            GradfixError: if there are no labelled rows.
        """

        def rows(name: str, split: str | None = None) -> Rows:
            place = getattr(recipe, name)
            if name in given:
                return given[name]
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
            drawn=recipe.generate_inputs,
        )

    @classmethod
    def compared(cls, recipe: CompareRecipe, given: Mapping[str, Rows]) -> "Data":
        """Read what a comparison's options name.

        Args:
            recipe: The options.
            given: Rows in memory by option, in place of the locations.

        Returns:
            The rows; the budget is the largest.
        """

        def rows(name: str, split: str | None = None) -> Rows:
            place = getattr(recipe, name)
            return given[name] if name in given else rows_at(recipe, place, split) if place else ()

        validation = rows("validation", recipe.validation_split)
        return cls(
            pool=rows("data", recipe.split),
            held={"test": rows("test", recipe.test_split)}
            | ({"validation": validation} if validation else {}),
            budget=max(recipe.samples_per_class),
            align_data=rows("align_data"),
            unlabelled=rows("unlabelled"),
            drawn=recipe.generate_inputs,
        )


def models_of(recipe: TransportRecipe, found: Findings) -> Models:
    """Open the models of a transport; see :func:`gradfix.transport.checks.open_models`.

    Args:
        recipe: The options.
        found: Told what is found.

    Returns:
        The models.

    Raises:
        ArchitectureError: if the target has other shapes, and an option needs τ's own coordinates.
        GradfixError: if they don't fit each other, or there is no such device.
    """
    require_device(recipe.device)
    models = open_models(
        recipe.source_base,
        recipe.source_tuned,
        recipe.target_base,
        found,
        output=recipe.output,
        overwrite=recipe.overwrite,
        as_adapter=partial(moved_as_adapter, recipe, found),
    )
    if models.apart is not None:
        if recipe.align in ("none", "procrustes", "permutation"):
            raise ArchitectureError(f"{models.apart}; --align {recipe.align} can't help there: leave it out")
        if recipe.space == "adapter" or recipe.granularity != "coordinate":
            raise ArchitectureError(
                f"{models.apart}; an adapter's own coordinates have no place there: leave out --space and --granularity"
            )
    return models


def ready_task(
    recipe: TaskRecipe, models: Models, data: Data, found: Findings, *, task: ModelTask | None = None
) -> tuple[ModelTask, Data]:
    """Make a task, bind it to the target, and refuse rows that it can't use; no weight is read.

    Args:
        recipe: The options of the task.
        models: The three models.
        data: The rows.
        found: Told which rows repeat others, which texts are not read, and how many samples are cut.
        task: A task of the caller's own, in place of the recipe's.

    Returns:
        The task, and the rows with each that repeats another left out of those that vote.

    Raises:
        GradfixError: naming the first row that can't be used, or what the target lacks.
    """
    asked = task or get_task(recipe.task, **recipe.task_options())
    task = asked.for_rows(data.pool)
    if task is not asked:
        found.add("note", f"the rows are {task.rows_are} (the task {task.name})")
    bind(task, models.target, models.tau, data.pool, trust_remote_code=recipe.trust_remote_code)
    refuse_idle_text(task, models.target)
    task.check(data.pool, support=True)
    for rows in data.held.values():
        task.check(rows)
    if len(data.unlabelled) and not isinstance(task, Classification | Generative):
        raise GradfixError(
            f"--unlabelled: {task.name} has no classes and writes no texts, so that the source can't answer; leave it "
            "out"
        )
    if data.drawn and (not isinstance(task, Generative) or task.class_names is not None):
        raise GradfixError(
            f"--generate-inputs: {task.name} writes no texts of its own"
            f"{' where it ranks candidates' if isinstance(task, Generative) else ''}; leave it out, or give inputs at "
            "hand with --unlabelled"
        )
    if len(data.align_data):
        task.check(without_labels(task, data.align_data))
    pool, unlabelled = counted_once(task, data.pool, found), data.unlabelled
    if len(unlabelled):
        unlabelled = unanswered(task, unlabelled)
        task.check(unlabelled)
        known = task.prompts(pool) if isinstance(task, Generative) else pool
        unlabelled = counted_once(task, unlabelled, found, known=known)
    data = replace(data, pool=pool, unlabelled=unlabelled)
    note_unread(task, data.pool, found)
    if data.budget is not None:
        # For its refusal alone: which samples are drawn can depend on the target's features.
        choose(task.classes(data.pool), data.budget, names=task.class_names)
    for rows in data.held.values():
        for doubt in task.doubts(rows):
            found.add("warning", doubt)
    for name, rows in {**({"support": data.pool} if data.budget is None else {}), **data.held}.items():
        note_cut(task, rows, name, found, strict=recipe.strict)
    return task, data


def counted_once(task: ModelTask, rows: Rows, found: Findings, *, known: Rows | None = None) -> Rows:
    """Leave out rows that repeat another, and say which.

    Args:
        task: Tells what of a row counts.
        rows: The samples.
        found: Told.
        known: Labelled rows that come first, where ``rows`` are inputs whose labels don't count.

    Returns:
        The rows that are left.
    """

    def counted(row: Mapping[str, Any]) -> list[str]:
        columns = used_columns(task, row)
        return columns if known is None else [name for name in columns if name != task.columns.get("label")]

    kept, repeats = distinct(rows, counted, known=known or ())
    if repeats:
        pairs = listed([f"{here} repeats {earlier}" for here, earlier in repeats], 3)
        found.add("warning", f"a row given twice counts once: {pairs}")
    return kept


def note_unread(task: ModelTask, rows: Rows, found: Findings) -> None:
    """Say which columns hold text that the task does not read.

    Args:
        task: The task.
        rows: The samples.
        found: Told.
    """
    columns = task.unread_texts(rows)
    if columns:
        found.add(
            "warning",
            f"not read by {task.name}: the text of {listed(map(repr, columns), 5)}; it reads "
            f"{listed(f'{column!r} ({role})' for role, column in task.columns.items())}; "
            f"name others with {column_option('ROLE')}",
        )


def note_sample(task: ModelTask, data: Data, found: Findings) -> None:
    """Show how the model reads the first sample, where a template or a prefix stands around its columns.

    Args:
        task: The task.
        data: The rows.
        found: Told.
    """
    read = task.rendered(data.pool[0]).replace("\n", "\\n")
    if len(read) > SAMPLE_SHOWN:
        read = f"{read[: SAMPLE_SHOWN // 2]} … {read[-SAMPLE_SHOWN // 2 :]}"
    if read:
        found.add(
            "note", f"{origin(data.pool[0], 0)} as the model reads it, what it has to predict in ⟦ ⟧: {read}"
        )


def note_cut(task: ModelTask, rows: Rows, name: str, found: Findings, *, strict: bool) -> None:
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


def rows_at(recipe: TaskRecipe, location: str, split: str | None = None) -> Rows:
    """Read rows where a recipe has them.

    Args:
        recipe: Tells the configuration of a Hub data set, and how files are encoded.
        location: Where they are.
        split: Of data with several.

    Returns:
        The rows.

    Raises:
        GradfixError: if they came from memory and are gone.
    """
    if location == IN_PYTHON:
        raise GradfixError("these rows were given in Python and no file holds them; run that script again")
    return load_rows(location, split=split, configuration=recipe.configuration, encoding=recipe.encoding)


def check_inputs(
    recipe: CheckRecipe,
    *,
    task: ModelTask | None = None,
    rows: Mapping[str, Rows] | None = None,
    tell: Callable[[Finding], None] = ignore,
) -> Findings:
    """Find whatever a transport of the same options would refuse before its first pass.

    Args:
        recipe: The options; without a task the models alone are checked.
        task: A task of the caller's own, in place of the recipe's.
        rows: Rows in memory by option, in place of the recipe's locations.
        tell: Told each finding at once.

    Returns:
        The findings. A refusal is a finding too, nothing is raised for it.
    """
    found = Findings(tell=tell)
    try:
        if recipe.push_to_hub is not None:
            require_writable(recipe.push_to_hub)
        if recipe.track is not None:
            require_tracker(recipe.track)
        models = models_of(recipe, found)
        if not recipe.task:
            task = None
            if models.apart is not None:
                why = "transport may carry the fine-tune over by what models compute: give --task"
                found.add("error", f"{models.apart}; {why}")
                return found
        else:
            task, data = ready_task(recipe, models, Data.read(recipe, rows or {}), found, task=task)
            models = lay_apart(models, task, found, output=recipe.output, overwrite=recipe.overwrite)
            note_sample(task, data, found)
        check_weights(models, found)
        if task is not None:
            judged = sum(map(len, data.held.values()))
            note_cost(recipe, models, task, data.pool, judged, found, answers=data.written(task))
        if models.adapter:
            note_apart(models.target, found)
    except GradfixError as error:
        if found.ok:
            found.add("error", str(error))
    return found
