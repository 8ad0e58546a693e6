"""``gradfix compare``: all baselines at several budgets and draws, on the users' own models and data."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

from gradfix.alignment import align, run_source
from gradfix.checkpoints import Checkpoint
from gradfix.errors import ArchitectureError
from gradfix.evaluation.binding import bind, choose_support, use_head
from gradfix.evaluation.evaluate import EncodedRows
from gradfix.evaluation.intervals import interval_words
from gradfix.evaluation.streaming.choice import load_target
from gradfix.evaluation.target_model import TargetModel
from gradfix.progress import Progress, silent
from gradfix.recipes import CompareRecipe
from gradfix.report import REPORT_FILE, report
from gradfix.report.numbers import metric_name
from gradfix.report.record import ComparisonRecord
from gradfix.tasks import ModelTask, get_task
from gradfix.transport.checks import Finding, Findings, check_weights, ignore, open_models
from gradfix.transport.comparison.draws import Judge, draw
from gradfix.transport.comparison.table import (
    Line,
    chosen_ways,
    summarise,
    table_csv,
    table_lines,
    table_markdown,
)
from gradfix.transport.inputs import Data, ready_task, rows_at
from gradfix.vectors.placement import place
from gradfix.vectors.task_vector import TaskVector


@dataclass(frozen=True)
class Comparison:
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
    recipe: CompareRecipe, *, tell: Callable[[Finding], None] = ignore, progress: Progress = silent
) -> Comparison:
    """Measure all baselines over several budgets and draws.

    Args:
        recipe: The validated options.
        tell: Told what is found of the inputs, at once.
        progress: Told the draws done.

    Returns:
        The comparison.

    Raises:
        ArchitectureError: if the target has other shapes than the source.
        GradfixError: if the inputs don't allow it.
    """
    found = Findings(tell=tell, hold=True)
    models = open_models(recipe.source_base, recipe.source_tuned, recipe.target_base, found)
    target = models.target
    data = Data(
        pool=rows_at(recipe, recipe.data, recipe.split),
        held={"test": rows_at(recipe, recipe.test, recipe.test_split)},
        budget=max(recipe.samples_per_class),
        align_data=rows_at(recipe, recipe.align_data) if recipe.align_data else (),
    )
    if models.apart is not None:
        raise ArchitectureError(f"{models.apart}; compare needs bases of equal shapes, transport does not")
    task, data = ready_task(recipe, models, data, found)
    check_weights(models, found)
    found.release()
    with ExitStack() as stack:
        source = run_source(
            models.base,
            models.tau,
            task,
            data.pool,
            stack,
            align=recipe.align,
            alike=found.cosine_target,
            align_data=data.align_data,
            control_seed=0,
            loading=recipe.loading(),
            remark=partial(found.add, "note"),
            progress=progress,
        )
        model = load_target(task, target, models.placement, **recipe.loading())
        if recipe.head == "copy":
            model.require_weights()
        aligned = align(source, model, control_seed=0) if source is not None else None
        oracle = None
        if recipe.target_tuned is not None:
            oracle = model.restricted(place(TaskVector.between(target, recipe.target_tuned), target).vector)
        judge = Judge(model, model.encode(data.held["test"]), _retention(recipe, model, target))
        lines: list[Line] = []
        done, total = 0, len(recipe.samples_per_class) * recipe.seeds
        for budget in recipe.samples_per_class:
            draws = []
            for seed in range(recipe.seeds):
                support = choose_support(
                    model, data.pool, samples_per_class=budget, sampling=recipe.sampling, seed=seed
                )
                use_head(model, recipe.head, support)
                model.require_weights()
                draws.append(
                    dict(
                        draw(
                            judge,
                            support,
                            seed=seed,
                            oracle=oracle,
                            aligned=aligned,
                            alike=found.cosine_target,
                            auto=True,
                        )
                    )
                )
                done += 1
                progress("comparing", done, total, "draws")
            lines += summarise(draws, budget)
    metric = metric_name(task.metric)
    caption = (
        f"{metric} on {len(data.held['test'])} test samples; mean over {recipe.seeds} draws "
        f"of the support set ({recipe.sampling}) {interval_words(recipe.seeds)}; every setting chosen by "
        f"cross-fitting on the support set; {chosen_ways(lines)}"
    )
    return Comparison(tuple(lines), metric, caption, recipe)


def _retention(
    recipe: CompareRecipe, model: TargetModel, target: Checkpoint
) -> tuple[ModelTask, EncodedRows] | None:
    """Prepare what the model could do before: the same kind of task on other data, with class names of its own."""
    if recipe.retain is None:
        return None
    rows = rows_at(recipe, recipe.retain)
    options = {key: value for key, value in recipe.task_options().items() if key != "labels"}
    task = get_task(recipe.task, **options)
    bind(task, target, None, rows, trust_remote_code=recipe.trust_remote_code)
    task.check(rows)
    task.prepare(model.model)
    return task, model.encode(rows, task=task)
