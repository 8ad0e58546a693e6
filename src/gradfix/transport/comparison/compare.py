"""``gradfix compare``: all baselines at several budgets and draws, on the users' own models and data."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from gradfix.alignment import SourceRun, align, run_source
from gradfix.checkpoints import Checkpoint
from gradfix.checkpoints.writing.atomic import refuse_taken, write_folder
from gradfix.errors import ArchitectureError, GradfixError, option
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
from gradfix.transport.checks import Finding, Findings, check_weights, ignore, lay_apart, open_models
from gradfix.transport.comparison.draws import (
    AUTO,
    BASELINES,
    FEW_SHOT,
    FULL,
    ORACLE,
    PERMUTATION,
    Judge,
    draw,
    label_of,
)
from gradfix.transport.comparison.kept import KeptDraws, identity_of
from gradfix.transport.comparison.sharing import Claims, Draw, Helpers, processes_for
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
from gradfix.transport.memory import note_judging
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
        identity: Of options and files, to tell whether it would be made again; empty where nothing tells.
    """

    lines: tuple[Line, ...]
    metric: str
    caption: str
    recipe: CompareRecipe
    identity: str = ""

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
            identity=self.identity,
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


@dataclass
class Prepared:
    """Everything that the draws of a comparison share.

    Attributes:
        recipe: What was asked for.
        rows: Rows in memory, by option.
        judge: The model, at θ_B, and the data to judge on.
        data: The rows.
        kept: The draws that are done.
        options: What :func:`gradfix.transport.comparison.draws.draw` takes by these names, of every draw.
        names: The table's rows.
        adapter: Whether every row moves an adapter as one.
    """

    recipe: CompareRecipe
    rows: Mapping[str, Rows]
    judge: Judge
    data: Data
    kept: KeptDraws
    options: Mapping[str, Any]
    names: Sequence[str]
    adapter: bool = False

    @property
    def draws(self) -> list[Draw]:
        """All of them, in the order of the table."""
        return [
            (budget, seed) for budget in self.recipe.samples_per_class for seed in range(self.recipe.seeds)
        ]

    def compute(self, claims: Claims, progress: Progress = silent) -> None:
        """Compute and keep the draws that are neither done nor somebody else's.

        Args:
            claims: Who has which.
            progress: Told the methods done.
        """
        # The longest first, so that all processes end at about the same time.
        for number, (budget, seed) in sorted(enumerate(self.draws), key=lambda one: -one[1][0]):
            if self.kept.get(budget, seed) is not None or not claims.take((budget, seed)):
                continue
            model = self.judge.model
            support = choose_support(
                model, self.data.pool, samples_per_class=budget, sampling=self.recipe.sampling, seed=seed
            )
            model.keep_reference(support)
            use_head(model, self.recipe.head, support)
            if self.recipe.head != "copy":
                self.judge.forget()
            model.require_weights()
            stage = f"draw {number + 1} of {len(self.draws)}, {budget} a class"
            tell = partial(_tell, progress, stage, self.names)
            self.kept.add(budget, seed, dict(draw(self.judge, support, seed=seed, tell=tell, **self.options)))


@contextmanager
def prepared(
    recipe: CompareRecipe,
    rows: Mapping[str, Rows],
    *,
    task: ModelTask | None = None,
    kept: Path | None = None,
    tell: Callable[[Finding], None] = ignore,
    progress: Progress = silent,
) -> Iterator[Prepared]:
    """Check the inputs, run the source, and load the target.

    Args:
        recipe: The validated options.
        rows: Rows in memory by option, in place of the recipe's locations.
        task: A task of the caller's own; else the recipe's is made.
        kept: A file of draws that are done, in place of the one beside the output.
        tell: Told what is found of the inputs, at once.
        progress: Told the passes done.

    Yields:
        What the draws share.

    Raises:
        ArchitectureError: if the target has other shapes than the source.
    """
    found = Findings(tell=tell, hold=True)
    models = open_models(
        recipe.source_base,
        recipe.source_tuned,
        recipe.target_base,
        found,
        as_adapter=partial(moved_as_adapter, recipe, found),
    )
    target = models.target
    data = Data.compared(recipe, rows)
    own = task
    names = _rows(recipe, models.apart)
    task, data = ready_task(recipe, models, data, found, task=task)
    models = lay_apart(models, task, found)
    check_weights(models, found)
    if models.adapter:
        note_apart(models.target, found)
    found.release()
    with ExitStack() as stack:
        run = partial(
            run_source,
            models.base,
            models.tau,
            task,
            data.pool,
            stack,
            alike=found.cosine_target,
            apart=models.apart is not None,
            align_data=data.align_data,
            loading=recipe.loading(),
            remark=partial(found.add, "note"),
            progress=progress,
        )
        source = run(
            align="none" if models.adapter else recipe.align,
            unlabelled=data.unlabelled,
            generate=data.drawn,
            judging=AUTO in names,
            control_seed=0,
        )
        permutable = _permutable(recipe, run, adapter=models.adapter)
        placement = with_granularity(models.placement, recipe)
        if recipe.head == "copy" and not models.adapter:
            placement = with_movable_head(placement)
        model = load_target(task, target, placement, adapter=models.adapter, **recipe.loading())
        note_judging(model, found)
        if recipe.head == "copy":
            model.require_weights()
        aligned = align(source, model, control_seed=0) if source is not None else None
        permuted = align(permutable, model, control_seed=None) if permutable is not None else None
        oracle = None
        if recipe.target_tuned is not None:
            oracle = model.restricted(place(TaskVector.between(target, recipe.target_tuned), target).vector)
        model.keep_reference(data.held["test"])
        judge = Judge(
            model,
            model.encode(data.held["test"]),
            _retention(recipe, own, rows.get("retain"), model, target),
            model.encode(data.held["validation"]) if "validation" in data.held else None,
            recipe.best_on_test,
            lasting=[*filter(None, [oracle]), *([aligned.vector] if aligned is not None else [])],
        )
        options = {
            "methods": [name for name in names if name in _baselines(recipe)],
            "permuted": None if permuted is None else permuted.vector,
            "oracle": oracle,
            "few_shot": FEW_SHOT in names,
            "settings": _settings(recipe.finetune_steps),
            "aligned": aligned,
            "teacher": source.teacher(task) if source is not None else None,
            "alike": found.cosine_target,
            "auto": AUTO in names,
            "bounds": [name for name in (ORACLE, FULL) if name in names],
            "more": source.pseudo_labels(task) if source is not None else (),
        }
        done = KeptDraws(recipe, rows, own_task=own is not None, path=kept)
        if len(done):
            found.add("note", f"going on with an earlier run of the same: {len(done)} draws are done")
        yield Prepared(recipe, rows, judge, data, done, options, names, bool(models.adapter))


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
    with ExitStack() as stack:
        others = stack.enter_context(Helpers(recipe, rows or {})) if task is None else None
        ready = stack.enter_context(prepared(recipe, rows or {}, task=task, tell=tell, progress=progress))
        kept = ready.kept
        left = [one for one in ready.draws if kept.get(*one) is None]
        if others is not None:
            shared = others.share(processes_for(recipe, ready.judge.model, ready.rows, len(left)), kept)
            ready.compute(shared.claims, progress)
            shared.wait(kept, len(left), progress)
        ready.compute(Claims(None), progress)  # what a process that ended early had claimed
        lines = [
            line
            for budget in recipe.samples_per_class
            for line in summarise([kept.found(budget, seed) for seed in range(recipe.seeds)], budget)
        ]
        metric = metric_name(ready.judge.model.judging.metric)
        judged, adapter = len(ready.data.held["test"]), ready.adapter
    caption = (
        f"{metric} on {judged} test samples; mean over {recipe.seeds} draws "
        f"of the support set ({recipe.sampling}) {interval_words(recipe.seeds)}; every setting chosen by "
        f"cross-fitting on the support set"
    )
    space = "every row in the coordinates of the adapter" if adapter else ""
    validated = len(ready.data.held.get("validation", ()))
    chosen = f"or on {validated} validation samples where a row says so" if validated else ""
    bound = "best α on test is chosen on the test data, so a bound" if recipe.best_on_test else ""
    caption = "; ".join(filter(None, (caption, chosen, bound, space, chosen_ways(lines))))
    identity = "" if task is not None else identity_of(recipe, rows or {})
    comparison = Comparison(tuple(lines), metric, caption, recipe, identity)
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


def _rows(recipe: CompareRecipe, apart: str | None) -> list[str]:
    """The rows that are wanted; where τ's coordinates have no place in the target, those that need none."""
    coordinates = [*BASELINES, PERMUTATION, *recipe.own_masks(), ORACLE]
    if apart is not None and (named := [name for name in recipe.methods if name in coordinates]):
        raise ArchitectureError(f"{apart}; {option('methods')} {named[0]} needs them equal: leave it out")
    bounds = (ORACLE, FULL) if recipe.target_tuned is not None else ()
    last = [name for name in (AUTO, FEW_SHOT, *bounds) if recipe.asks_for(name)]
    rows = [*_baselines(recipe), *last]
    return rows if apart is None else [name for name in rows if name not in coordinates]


def _baselines(recipe: CompareRecipe) -> list[str]:
    """The rows that add or mask something, in the order of the table."""
    first, *others = BASELINES
    return [*filter(recipe.asks_for, (first, PERMUTATION, *others)), *recipe.own_masks()]


def _permutable(
    recipe: CompareRecipe, run: Callable[..., SourceRun | None], *, adapter: bool
) -> SourceRun | None:
    """Run the source so that τ can be permuted, where that row is asked for."""
    if not recipe.asks_for(PERMUTATION):
        return None
    if adapter:
        raise GradfixError(
            f"{option('methods')} {PERMUTATION}: an adapter's coordinates can't be permuted; give {option('space')} "
            "weights"
        )
    try:
        return run(align=PERMUTATION)
    except GradfixError as error:
        why = str(error).removesuffix("; use --align none")
        raise GradfixError(f"{option('methods')} {PERMUTATION}: {why}; leave the row out") from error


def _tell(progress: Progress, stage: str, names: Sequence[str], method: str) -> None:
    progress(f"{stage}: {label_of(method)}", names.index(method), len(names), "methods")


def _retention(
    recipe: CompareRecipe, own: ModelTask | None, rows: Rows | None, model: TargetModel, target: Checkpoint
) -> tuple[ModelTask, EncodedRows] | None:
    """Prepare what the model could do before: the same kind of task on other data, with class names of its own."""
    if recipe.retain is None:
        return None
    rows = rows_at(recipe, recipe.retain) if rows is None else rows
    options = {key: value for key, value in recipe.task_options().items() if key != "labels"}
    task = (copy(own) if own is not None else get_task(recipe.task, **options)).for_rows(rows)
    bind(task, target, None, rows, trust_remote_code=recipe.trust_remote_code)
    task.check(rows)
    task.prepare(model.model)
    model.keep_reference(rows, task=task)
    encoded = model.encode(rows, task=task)
    return (task if model.streams else task.judging()), encoded
