"""``gradfix compare``: all baselines at several budgets and draws, on the users' own models and data."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from copy import copy
from dataclasses import dataclass, replace
from functools import partial

from gradfix.alignment import align, run_source
from gradfix.checkpoints import Checkpoint
from gradfix.checkpoints.writing.atomic import refuse_taken, write_folder
from gradfix.errors import ArchitectureError
from gradfix.evaluation.binding import Rows, bind, choose_support, use_head
from gradfix.evaluation.evaluate import EncodedRows
from gradfix.evaluation.intervals import interval_words
from gradfix.evaluation.streaming.choice import load_target
from gradfix.evaluation.target_model import TargetModel
from gradfix.progress import Progress, silent
from gradfix.recipes import CompareRecipe
from gradfix.recipes.settings import SETTINGS, SelectionSettings
from gradfix.report import REPORT_FILE, report
from gradfix.report.numbers import metric_name, score_unit
from gradfix.report.record import ComparisonRecord
from gradfix.report.summary import Summarised, Summary
from gradfix.tasks import ModelTask, get_task
from gradfix.transport.checks import Finding, Findings, check_weights, ignore, open_models
from gradfix.transport.comparison.draws import AUTO, BASELINES, FEW_SHOT, FULL, LABELS, ORACLE, Judge, draw
from gradfix.transport.comparison.kept import KeptDraws
from gradfix.transport.comparison.table import (
    Line,
    chosen_ways,
    summarise,
    table_cells,
    table_csv,
    table_lines,
    table_markdown,
)
from gradfix.transport.inputs import Data, ready_task, rows_at
from gradfix.transport.space import moved_as_adapter, note_apart, with_granularity
from gradfix.vectors.placement import place, with_movable_head
from gradfix.vectors.task_vector import TaskVector


@dataclass(frozen=True, repr=False)
class Comparison(Summarised):
    """The whole comparison.

    Attributes:
        lines: The table's rows.
        metric: What the scores are, in words.
        caption: What was drawn and judged on, and how the intervals were made.
        recipe: What was asked for.
    """

    lines: tuple[Line, ...]
    metric: str
    caption: str
    recipe: CompareRecipe

    def summary(self) -> Summary:
        """Show the table: methods down, budgets across.

        Returns:
            Mean scores in per cent, with half the width of their intervals.
        """
        columns, rows = table_cells(self.lines)
        return Summary(f"{self.metric}{score_unit(self.metric)}", [("how", self.caption)], columns, rows)

    def record(self) -> ComparisonRecord:
        """Give what ``comparison.json`` holds.

        Returns:
            Rows, caption and recipe.
        """
        return ComparisonRecord(
            metric=self.metric,
            caption=self.caption,
            recipe=self.recipe.model_dump(mode="json"),
            rows=table_lines(self.lines),
        )

    def files(self) -> dict[str, str]:
        """Give the files of the output folder.

        Returns:
            Texts by name.
        """
        record = self.record()
        return {
            "comparison.json": record.written(),
            REPORT_FILE: report(record),
            "comparison.csv": table_csv(self.lines),
            "comparison.md": table_markdown(self.lines, self.caption),
            "recipe.yaml": self.recipe.dump(),
        }


def compare(
    recipe: CompareRecipe,
    *,
    task: ModelTask | None = None,
    rows: Mapping[str, Rows] | None = None,
    tell: Callable[[Finding], None] = ignore,
    progress: Progress = silent,
) -> Comparison:
    """Measure all baselines over several budgets and draws, and write the table where the recipe says so.

    Args:
        recipe: The validated options.
        task: A task of the caller's own; else the recipe's is made.
        rows: Rows in memory by option, in place of the recipe's locations.
        tell: Told what is found of the inputs, at once.
        progress: Told the methods done, of all draws.

    Returns:
        The comparison. A run that was ended goes on after the draws that are done, where it writes an output.

    Raises:
        ArchitectureError: if the target has other shapes than the source.
        GradfixError: if the inputs don't allow it.
    """
    if recipe.output is not None:
        refuse_taken(recipe.output, overwrite=recipe.overwrite)
    found = Findings(tell=tell, hold=True)
    models = open_models(
        recipe.source_base,
        recipe.source_tuned,
        recipe.target_base,
        found,
        as_adapter=partial(moved_as_adapter, recipe, found),
    )
    target = models.target
    data = Data.compared(recipe, rows or {})
    own = task
    if models.apart is not None:
        raise ArchitectureError(f"{models.apart}; compare needs bases of equal shapes, transport does not")
    task, data = ready_task(recipe, models, data, found, task=task)
    check_weights(models, found)
    if models.adapter:
        note_apart(models.target, found)
    found.release()
    with ExitStack() as stack:
        source = run_source(
            models.base,
            models.tau,
            task,
            data.pool,
            stack,
            align="none" if models.adapter else recipe.align,
            alike=found.cosine_target,
            align_data=data.align_data,
            unlabelled=data.unlabelled,
            control_seed=0,
            loading=recipe.loading(),
            remark=partial(found.add, "note"),
            progress=progress,
        )
        placement = with_granularity(models.placement, recipe)
        if recipe.head == "copy" and not models.adapter:
            placement = with_movable_head(placement)
        model = load_target(task, target, placement, adapter=models.adapter, **recipe.loading())
        if recipe.head == "copy":
            model.require_weights()
        aligned = align(source, model, control_seed=0) if source is not None else None
        oracle = None
        if recipe.target_tuned is not None:
            oracle = model.restricted(place(TaskVector.between(target, recipe.target_tuned), target).vector)
        judge = Judge(
            model,
            model.encode(data.held["test"]),
            _retention(recipe, own, (rows or {}).get("retain"), model, target),
        )
        settings = _settings(recipe.finetune_steps)
        more = source.pseudo_labels(task) if source is not None else ()
        names = _rows(recipe, oracle is not None)
        kept = KeptDraws(recipe, rows or {}, own_task=own is not None)
        total = len(recipe.samples_per_class) * recipe.seeds
        if len(kept):
            found.add("note", f"going on with an earlier run of the same: {len(kept)} draws are done")
        lines: list[Line] = []
        for number, budget in enumerate(recipe.samples_per_class):
            draws = []
            for seed in range(recipe.seeds):
                outcomes = kept.get(budget, seed)
                if outcomes is None:
                    support = choose_support(
                        model, data.pool, samples_per_class=budget, sampling=recipe.sampling, seed=seed
                    )
                    use_head(model, recipe.head, support)
                    model.require_weights()
                    at = number * recipe.seeds + seed
                    stage = f"draw {at + 1} of {total}, {budget} a class"
                    outcomes = dict(
                        draw(
                            judge,
                            support,
                            seed=seed,
                            methods=[name for name in BASELINES if recipe.asks_for(name)],
                            oracle=oracle,
                            few_shot=recipe.asks_for(FEW_SHOT),
                            settings=settings,
                            aligned=aligned,
                            alike=found.cosine_target,
                            auto=recipe.asks_for(AUTO),
                            bounds=[name for name in (ORACLE, FULL) if recipe.asks_for(name)],
                            more=more,
                            tell=partial(_tell, progress, stage, names),
                        )
                    )
                    kept.add(budget, seed, outcomes)
                draws.append(outcomes)
            lines += summarise(draws, budget)
    metric = metric_name(task.metric)
    caption = (
        f"{metric} on {len(data.held['test'])} test samples; mean over {recipe.seeds} draws "
        f"of the support set ({recipe.sampling}) {interval_words(recipe.seeds)}; every setting chosen by "
        f"cross-fitting on the support set"
    )
    space = "every row in the coordinates of the adapter" if models.adapter else ""
    caption = "; ".join(filter(None, (caption, space, chosen_ways(lines))))
    comparison = Comparison(tuple(lines), metric, caption, recipe)
    if recipe.output is not None:
        write_folder(recipe.output, comparison.files(), overwrite=recipe.overwrite)
        kept.discard()
    return comparison


def _settings(finetune_steps: int | None) -> SelectionSettings:
    """What every row selects among; training as far as was asked for."""
    if finetune_steps is None:
        return SETTINGS
    stops = tuple(stop for stop in SETTINGS.stops if stop < finetune_steps)
    return replace(SETTINGS, stops=(*stops, finetune_steps), most_steps=finetune_steps)


def _rows(recipe: CompareRecipe, oracle: bool) -> list[str]:
    bounds = (ORACLE, FULL) if oracle else ()
    return [name for name in (*BASELINES, AUTO, FEW_SHOT, *bounds) if recipe.asks_for(name)]


def _tell(progress: Progress, stage: str, names: Sequence[str], method: str) -> None:
    progress(f"{stage}: {LABELS[method]}", names.index(method), len(names), "methods")


def _retention(
    recipe: CompareRecipe, own: ModelTask | None, rows: Rows | None, model: TargetModel, target: Checkpoint
) -> tuple[ModelTask, EncodedRows] | None:
    """Prepare what the model could do before: the same kind of task on other data, with class names of its own."""
    if recipe.retain is None:
        return None
    rows = rows_at(recipe, recipe.retain) if rows is None else rows
    options = {key: value for key, value in recipe.task_options().items() if key != "labels"}
    task = copy(own) if own is not None else get_task(recipe.task, **options)
    bind(task, target, None, rows, trust_remote_code=recipe.trust_remote_code)
    task.check(rows)
    task.prepare(model.model)
    return task, model.encode(rows, task=task)
