"""Comparisons of several tasks in one table, as papers show it: methods down, tasks across, and their mean.

A cell is the mean over draws of one comparison. The mean column is the mean over tasks of each draw's score, and its
interval is that of this mean over draws: draw number s of every task has the same seed.
"""

import csv
import io
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from gradfix.checkpoints.writing.atomic import refuse_taken, write_folder
from gradfix.errors import GradfixError, listed, option
from gradfix.evaluation.evaluate import Interval, mean_interval
from gradfix.evaluation.intervals import interval_words
from gradfix.progress import Progress, silent
from gradfix.recipes import CompareRecipe, TasksRecipe, load_recipe
from gradfix.report.record import ComparisonRecord, Line, read_record
from gradfix.report.summary import Summarised, Summary
from gradfix.transport.checks import Finding, ignore
from gradfix.transport.comparison.compare import Comparison, compare
from gradfix.transport.comparison.kept import identity_of
from gradfix.transport.comparison.table import score_cell

MEAN = "mean"


@dataclass(frozen=True, repr=False)
class TaskTable(Summarised):
    """Methods × tasks.

    Attributes:
        records: The comparison of each task, by the column's name.
    """

    records: Mapping[str, ComparisonRecord]

    def __post_init__(self) -> None:
        _require_alike(self.records)

    @property
    def budgets(self) -> list[int]:
        """Samples a class, as all tasks have them."""
        return sorted(
            set.intersection(*({row.budget for row in each.rows} for each in self.records.values()))
        )

    def methods(self, budget: int) -> dict[str, str]:
        """List the rows that all tasks have.

        Args:
            budget: Samples a class.

        Returns:
            Labels by method, in the order of the first task.
        """
        first, *others = [
            {row.method: row.label for row in each.rows if row.budget == budget}
            for each in self.records.values()
        ]
        return {method: label for method, label in first.items() if all(method in each for each in others)}

    def scores(self, budget: int, method: str) -> dict[str, Interval]:
        """Give a row.

        Args:
            budget: Samples a class.
            method: Its name.

        Returns:
            Mean score over draws by task, and of the mean over tasks under ``"mean"``.
        """
        lines = {task: _line(each, budget, method) for task, each in self.records.items()}
        draws = zip(*([outcome.score for outcome in line.outcomes] for line in lines.values()), strict=True)
        found = {task: Interval(**line.score.model_dump()) for task, line in lines.items()}
        means = [math.fsum(scores) / len(scores) for scores in draws]
        low = -1.0 if min(means) < 0 else 0.0  # a correlation may be negative
        return {**found, MEAN: mean_interval(means, bounds=(low, 1.0))}

    def cells(self) -> tuple[list[str], list[list[str]]]:
        """Give the table as texts.

        Returns:
            The header, and the rows: scores in per cent with half the width of their intervals. Where there are several
            budgets, each row says its own.
        """
        several = len(self.budgets) > 1
        rows = [
            [
                label + (f", {budget} a class" if several else ""),
                *map(score_cell, self.scores(budget, method).values()),
            ]
            for budget in self.budgets
            for method, label in self.methods(budget).items()
        ]
        return ["method", *self.records, MEAN], rows

    @property
    def caption(self) -> str:
        """What the numbers are."""
        metrics = list(dict.fromkeys(each.metric for each in self.records.values()))
        draws = len(next(iter(self.records.values())).rows[0].outcomes)
        budgets = listed([str(budget) for budget in self.budgets])
        return (
            f"{' or '.join(metrics)} × 100 with {budgets} samples a class; mean over {draws} draws "
            f"{interval_words(draws)}; {MEAN} is over the {len(self.records)} tasks, its interval over draws"
        )

    def summary(self) -> Summary:
        """Show the table.

        Returns:
            Scores in per cent.
        """
        columns, rows = self.cells()
        return Summary(f"{len(self.records)} tasks", [("how", self.caption)], columns, rows)

    def markdown(self) -> str:
        """Give the table for a paper or a README.

        Returns:
            Markdown.
        """
        columns, rows = self.cells()
        lines = [
            "| " + " | ".join(row) + " |" for row in (columns, ["---", *["---:"] * (len(columns) - 1)], *rows)
        ]
        return "\n".join([*lines, "", self.caption, ""])

    def csv(self) -> str:
        """Give the table for other tools.

        Returns:
            A row a budget, method and task; ends of intervals are empty where there are none.
        """
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["samples_per_class", "method", "task", "score", "low", "high", "draws"])
        for budget in self.budgets:
            for method in self.methods(budget):
                for task, score in self.scores(budget, method).items():
                    writer.writerow([budget, method, task, score.value, score.low, score.high, score.n])
        return text.getvalue()


def table(comparisons: Mapping[str, Comparison | ComparisonRecord | str | Path]) -> TaskTable:
    """Put comparisons of several tasks into one table.

    Args:
        comparisons: What :func:`gradfix.compare` gave for each task, or the folder that it wrote, by the column's name.

    Returns:
        The table; printed, or shown in a notebook, it has methods down and tasks across.

    Raises:
        GradfixError: if there is none, a folder holds no comparison, or they have no common budget, numbers of draws
            that differ, or other new bases.
    """
    return TaskTable({name: _record(each) for name, each in comparisons.items()})


def compare_tasks(
    recipe: TasksRecipe,
    *,
    tell: Callable[[Finding], None] = ignore,
    progress: Progress = silent,
) -> TaskTable:
    """Compare on several tasks, and write the table.

    A task whose comparison is there already, of the same options and files, is not compared again, and an interrupted
    one goes on after the draws that are done.

    Args:
        recipe: The validated options.
        tell: Told what is found of the inputs, at once.
        progress: Told the methods done.

    Returns:
        The table.

    Raises:
        GradfixError: if the inputs don't allow it.
    """
    refuse_taken(recipe.output, overwrite=recipe.overwrite)
    places = dict(_named(entry) for entry in recipe.comparisons)
    if len(places) < len(recipe.comparisons):
        raise GradfixError("table: two tasks have one name; give NAME=PLACE with another name for each")
    asked = {name: _asked(place, recipe) for name, place in places.items()}
    _require_alike(asked)
    found: dict[str, ComparisonRecord] = {}
    for name, each in asked.items():
        if isinstance(each, ComparisonRecord):
            found[name] = each
            continue
        assert each.output is not None
        done = _done(each)
        if done is None:
            compared = compare(each, tell=tell, progress=_of_task(progress, name))
            done = compared.record()
        found[name] = done
    made = TaskTable(found)
    files = {"table.md": made.markdown(), "table.csv": made.csv(), "recipe.yaml": recipe.dump()}
    write_folder(recipe.output, files, overwrite=recipe.overwrite)
    return made


def _of_task(progress: Progress, name: str) -> Progress:
    def told(stage: str, done: int, total: int, unit: str = "") -> None:
        progress(f"{name}, {stage}", done, total, unit)

    return told


def _named(entry: str) -> tuple[str, Path]:
    name, equals, place = entry.partition("=")
    return (name, Path(place)) if equals else (Path(entry).stem, Path(entry))


def _asked(place: Path, recipe: TasksRecipe) -> ComparisonRecord | CompareRecipe:
    """Read a finished comparison, or the recipe of one that is to be made."""
    if place.is_dir():
        return _record(place)
    loaded = load_recipe(
        place, trust_plugins=recipe.trust_plugins, trust_remote_code=recipe.trust_remote_code or None
    )
    if not isinstance(loaded, CompareRecipe):
        raise GradfixError(f"{place}: command: expected compare, found {loaded.command}")
    return loaded


def _done(recipe: CompareRecipe) -> ComparisonRecord | None:
    """Give the comparison that a recipe's output holds already; None where it is still to be made."""
    if not recipe.output.exists():
        return None
    record = _record(recipe.output)
    if record.identity != identity_of(recipe, {}):
        raise GradfixError(
            f"{recipe.output}: is there already, of other options or files: move it away, or name another output in "
            "the recipe"
        )
    return record


def _record(of: Comparison | ComparisonRecord | str | Path) -> ComparisonRecord:
    if isinstance(of, ComparisonRecord):
        return of
    if isinstance(of, Comparison):
        return of.record()
    _, record = read_record(Path(of))
    if not isinstance(record, ComparisonRecord):
        raise GradfixError(f"{of}: expected what gradfix compare wrote, found {record.format}")
    return record


def _line(record: ComparisonRecord, budget: int, method: str) -> Line:
    return next(row for row in record.rows if (row.budget, row.method) == (budget, method))


def _require_alike(comparisons: Mapping[str, ComparisonRecord | CompareRecipe]) -> None:
    """Refuse what can't stand in one table, before anything is measured."""
    if not comparisons:
        raise GradfixError("table: there is no comparison: give one for each task")
    if MEAN in comparisons:
        raise GradfixError(f"table: {MEAN!r} is the last column: call the task otherwise")
    bases, seeds, budgets = zip(*map(_question, comparisons.values()), strict=True)
    if len(set(bases)) > 1:
        raise GradfixError(
            f"table: the comparisons are of {len(set(bases))} new bases ({listed(sorted(set(bases)), 3)}); one table "
            "is of one"
        )
    if len(set(seeds)) > 1:
        told = listed([f"{name} {count}" for name, count in zip(comparisons, seeds, strict=True)])
        raise GradfixError(
            f"table: numbers of draws differ ({told}): compare with the same {option('seeds')}"
        )
    if not set.intersection(*map(set, budgets)):
        told = listed([f"{name} {sorted(given)}" for name, given in zip(comparisons, budgets, strict=True)])
        raise GradfixError(f"table: no number of samples a class is common to all tasks: {told}")


def _question(of: ComparisonRecord | CompareRecipe) -> tuple[str, int, tuple[int, ...]]:
    """Say of what a comparison is: the new base, how many draws, and the samples a class."""
    if isinstance(of, CompareRecipe):
        return of.target_base, of.seeds, tuple(of.samples_per_class)
    return str(of.recipe.get("target_base")), len(of.rows[0].outcomes), tuple({row.budget for row in of.rows})
