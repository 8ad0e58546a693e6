"""Run a table of the paper: one comparison a task, each kept, so that a run that was ended goes on."""

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from gradfix.checkpoints import Checkpoint
from gradfix.checkpoints.writing.single import write_text
from gradfix.errors import GradfixError, listed, option
from gradfix.evaluation.evaluate import evaluate
from gradfix.paper.data import task_rows, training_rows
from gradfix.paper.study import Study, StudyTask
from gradfix.paper.table import PaperTable
from gradfix.progress import Progress, silent
from gradfix.recipes import CompareRecipe, validate
from gradfix.recipes.paper import PAPER_ROWS, PaperRecipe
from gradfix.report.record import ComparisonRecord, read_record
from gradfix.tasks import get_task
from gradfix.text_files import read_json
from gradfix.transport.checks import Finding, ignore
from gradfix.transport.comparison import compare

POOL = 100
"""Samples a class, drawn once, that the draws are taken from: whole training sets are checked for nothing."""


def run(
    study: Study,
    tasks: Mapping[str, StudyTask],
    recipe: PaperRecipe,
    folder: Path,
    *,
    tell: Callable[[Finding], None] = ignore,
    progress: Progress = silent,
) -> PaperTable:
    """Measure a table, and write it.

    Args:
        study: The study.
        tasks: The tasks that were chosen.
        recipe: The options.
        folder: Where the study's templates are.
        tell: Told what is found of the inputs.
        progress: Told the methods done.

    Returns:
        The table. What an earlier run of the same options finished is read, not measured again.

    Raises:
        GradfixError: If there are no fine-tunes, or the inputs don't allow a comparison.
    """
    made = [part for part in (recipe.output / "tasks", recipe.output) if not part.exists()]
    (recipe.output / "tasks").mkdir(parents=True, exist_ok=True)
    try:
        return _measured(study, tasks, recipe, folder, tell, progress)
    finally:
        for part in made:
            with suppress(OSError):  # there is something in it
                part.rmdir()


def _measured(
    study: Study,
    tasks: Mapping[str, StudyTask],
    recipe: PaperRecipe,
    folder: Path,
    tell: Callable[[Finding], None],
    progress: Progress,
) -> PaperTable:
    lines: dict[str, Any] = {}
    generated: dict[str, float] = {}
    for name, task in tasks.items():
        options = comparison(study, name, task, recipe, folder)
        done = recipe.output / "tasks" / options.output.name / "comparison.json"
        record = _finished(done, options)
        if record is None:
            pool, validation = training_rows(
                task, pool=POOL * task.classes, validation=recipe.validation_samples
            )
            rows = {"data": pool, "test": task_rows(task, test=True, most=recipe.limit)}
            rows |= {"validation": validation} if recipe.validation_samples else {}
            record = compare(options, rows=rows, tell=tell, progress=progress).record()
        lines[name] = record.rows
        if task.prompt is not None:
            generated[name] = _generated(study, task, recipe, options.output)
        table = PaperTable(study, dict(lines), dict(generated), recipe.model_dump(mode="json"))
        for file, text in table.files().items():
            write_text(recipe.output / file, text, overwrite=True)
    return table


def comparison(study: Study, name: str, task: StudyTask, recipe: PaperRecipe, folder: Path) -> CompareRecipe:
    """Write down one task's comparison.

    Args:
        study: The study.
        name: The task's.
        task: It.
        recipe: The options of the table.
        folder: Where the study's templates are.

    Returns:
        The comparison's recipe.

    Raises:
        GradfixError: If nobody released fine-tunes and none were named.
    """
    tuned = recipe.source_tuned or study.source_tuned
    if tuned is None:
        raise GradfixError(
            f"{study.source_base}: nobody released fine-tunes of it; make them with `gradfix paper finetune "
            f"--table {recipe.table} --output FOLDER`, then give {option('source_tuned')} 'FOLDER/{{task}}'"
        )
    place = recipe.target_tuned
    bounds = ("oracle", "full") if place is not None else ()
    options = {
        "source_base": study.source_base,
        "source_tuned": tuned.replace("{task}", name),
        "target_base": study.target_base,
        "target_tuned": None if place is None else place.replace("{task}", name),
        "task": study.task,
        "column": [f"{role}={column}" for role, column in task.columns.items()],
        "label": list(dict.fromkeys(task.names.values())),
        "templates": None if task.templates is None else folder / task.templates,
        "configuration": task.configuration,
        "data": task.data,
        "split": task.split,
        "test": task.test or task.data,
        "test_split": task.test_split,
        "methods": recipe.methods or [*PAPER_ROWS, *bounds],
        "validation": task.data if recipe.validation_samples else None,
        "validation_split": task.split if recipe.validation_samples else None,
        "best_on_test": recipe.best_on_test,
        "samples_per_class": recipe.samples_per_class,
        "seeds": recipe.seeds,
        "batch_size": recipe.batch_size,
        "device": recipe.device,
        "output": recipe.output / "tasks" / (name if recipe.limit is None else f"{name}-{recipe.limit}"),
    }
    return validate(CompareRecipe, options, f"the study's task {name}")


def _finished(path: Path, options: CompareRecipe) -> ComparisonRecord | None:
    """What an earlier run of the very same options wrote."""
    if not path.exists():
        return None
    _, record = read_record(path.parent)
    if not isinstance(record, ComparisonRecord) or record.recipe != options.model_dump(mode="json"):
        raise GradfixError(
            f"{path.parent}: was made with other options; give another {option('output')}, or remove it"
        )
    return record


def _generated(study: Study, task: StudyTask, recipe: PaperRecipe, beside: Path) -> float:
    """How often the new base's own answer to a prompt is right: the likeliest of the study's answers. Measured once."""
    kept = beside.with_name(f"{beside.name}-generated.json")
    asked_for = {"model": study.target_base, "task": task.model_dump(mode="json"), "limit": recipe.limit}
    if kept.exists():
        known = read_json(kept)
        if known.get("of") == asked_for:
            return float(known["score"])
    rows = task_rows(task, test=True, most=recipe.limit)
    label = task.columns.get("label", "label")
    assert task.prompt is not None
    unknown = sorted({str(row[label]) for row in rows} - task.answers.keys())
    if unknown:
        raise GradfixError(
            f"{task.test or task.data}: column {label!r}: the study has no answer for {listed(unknown)}; it has "
            f"{listed(task.answers)}"
        )
    asked = [{"input": task.prompt.format(**row), "target": task.answers[str(row[label])]} for row in rows]
    target = Checkpoint.open(study.target_base)
    target.fetch()
    asking = get_task("text-to-text", candidates=list(dict.fromkeys(task.answers.values())))
    model = asking.load_model(target.directory or study.target_base, device=recipe.device)
    score = evaluate(model, asking, asked, batch_size=recipe.batch_size).score
    write_text(kept, json.dumps({"of": asked_for, "score": score}), overwrite=True)
    return score
