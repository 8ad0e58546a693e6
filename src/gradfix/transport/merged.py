"""Several fine-tunes in one model: how much of each, chosen on samples of each task, and what that does to all of them.

T task vectors τ_t, merged to μ(w) of the coefficients w_t (:func:`gradfix.vectors.merging.merge`), give θ_B + α μ(w).

- **α** is the candidate with the least mean over tasks of loss_t(α) / loss_t(0), the samples' own mean losses: a task
  with large losses has no more say than one with small ones. The smaller one of equals.
- **w**, where a coefficient a task is asked for: from w_t = α for all, each in turn takes the best candidate while the
  others stand, for two rounds (coordinate descent on the same mean). Then α = 1.
- **alone** is θ_B + τ_t: what each fine-tune does without the others.
- **harm**: the merged model is worse than θ_B on a task by an interval, paired by sample, that lies below 0.

Nothing is chosen on test data. Without any, the samples that chose are judged on, and the table says so.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gradfix.checkpoints import Checkpoint, match_names
from gradfix.errors import GradfixError, listed
from gradfix.evaluation.binding import bind
from gradfix.evaluation.evaluate import EncodedRows, Evaluation, Interval, paired_samples
from gradfix.evaluation.target_model import TargetModel
from gradfix.progress import Progress, silent
from gradfix.recipes import MergeRecipe
from gradfix.report.numbers import between, points, shown_score
from gradfix.report.summary import Summarised, Summary
from gradfix.tasks import ModelTask, get_task
from gradfix.tasks.data import load_rows
from gradfix.transport.checks import Findings, note_placement
from gradfix.transport.inputs import counted_once
from gradfix.vectors.merging import merge
from gradfix.vectors.placement import place
from gradfix.vectors.task_vector import TaskVector
from gradfix.votes import Votes

ALPHAS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.25, 1.5, 2.0)
"""Candidates for α and for each coefficient of a sum; of a mean they are T times as large."""
ROUNDS = 2
BASE, MERGED = "new base", "merged"


@dataclass(frozen=True)
class Column:
    """A task with its data.

    Attributes:
        name: In the table.
        task: Bound to the target.
        samples: Those that choose; None for retention, which chooses nothing.
        judged: Those of the table.
    """

    name: str
    task: ModelTask
    samples: EncodedRows | None
    judged: EncodedRows


@dataclass(frozen=True, repr=False)
class MergedTable(Summarised):
    """Tasks × models.

    Attributes:
        models: Names of the rows: the new base, each fine-tune alone, merged.
        tasks: Names of the columns.
        scores: By model and task.
        on: ``"test"``, or ``"samples"`` where those that chose were judged on.
        gains: By task, merged − new base, paired by sample.
    """

    models: tuple[str, ...]
    tasks: tuple[str, ...]
    scores: Mapping[str, Mapping[str, Evaluation]]
    on: str
    gains: Mapping[str, Interval]

    @property
    def harmed(self) -> list[str]:
        """The tasks that the merge makes worse, beyond luck."""
        return [name for name, gain in self.gains.items() if gain.high is not None and gain.high < 0]

    def summary(self) -> Summary:
        """Show the table.

        Returns:
            Scores in per cent.
        """
        judged = "on the samples that chose α, so too good" if self.on == "samples" else "on test data"
        rows = [
            [model, *(shown_score(cell.score, cell.metric) for cell in self.scores[model].values())]
            for model in self.models
        ]
        return Summary(f"score {judged}", [], ["model", *self.tasks], rows)

    def remarks(self) -> list[str]:
        """Say what the merge does to each task.

        Returns:
            A sentence for each task that is harmed, or one that none is.
        """
        found = [
            f"the merge harms {name}: {points(self.gains[name].value)} points against the new base "
            f"(95 % interval {between(self.gains[name])}); give its task vector a smaller part "
            "(--coefficients each), or leave it out"
            for name in self.harmed
        ]
        return found or ["no task is worse than at the new base beyond luck"]

    def plain(self) -> dict[str, object]:
        """Give the table as JSON.

        Returns:
            Scores by model and task, and gains with their intervals.
        """
        return {
            "judged_on": self.on,
            "scores": {
                model: {task: self.scores[model][task].score for task in self.tasks} for model in self.models
            },
            "gains": {
                name: {"value": gain.value, "low": gain.low, "high": gain.high}
                for name, gain in self.gains.items()
            },
            "harmed": self.harmed,
        }

    def markdown(self) -> str:
        """Give the table for a README.

        Returns:
            Markdown.
        """
        shown = self.summary()
        lines = [
            "| " + " | ".join(row) + " |" for row in (shown.columns, "-" * len(shown.columns), *shown.rows)
        ]
        return "\n".join(
            [f"Score {shown.title.removeprefix('score ')}:", "", *lines, "", *self.remarks(), ""]
        )


@dataclass(frozen=True)
class MergedModel:
    """What is to be written.

    Attributes:
        vector: The merged task vector, coefficients included.
        target: Where it is added.
        alpha: Of the addition.
        weights: The coefficient of each task vector; None where one α stands for all.
        table: What it does; None without samples.
    """

    vector: TaskVector
    target: Checkpoint
    alpha: float
    weights: tuple[float, ...] | None = None
    table: MergedTable | None = None


def merged_model(recipe: MergeRecipe, found: Findings, *, progress: Progress = silent) -> MergedModel:
    """Merge task vectors on a target, and choose how far to go where there are samples.

    Args:
        recipe: The validated options, with a target.
        found: Told what is found.
        progress: Told what is being done.

    Returns:
        The merged vector, how far to go, and the table.

    Raises:
        GradfixError: if the inputs don't allow it.
    """
    target = Checkpoint.open(str(recipe.target_base))
    placements = [place(TaskVector.load(path), target) for path in recipe.task_vector]
    for placement in placements:
        note_placement(found, placement, target)
    vectors = [placement.vector for placement in placements]
    joined = joining(recipe, vectors, target, progress)
    if not recipe.samples:
        return MergedModel(joined(None), target, 1.0 if recipe.alpha is None else recipe.alpha)
    model, columns = _ready(recipe, joined(None), target, found)

    def at(weights: Sequence[float] | None) -> TaskVector:
        return model.restricted(joined(weights))

    vectors = [model.restricted(vector) for vector in vectors]
    scale = len(vectors) if recipe.method == "mean" else 1
    candidates = [alpha * scale for alpha in ALPHAS]
    chooser = _Chooser(model, [column for column in columns if column.samples is not None], progress)
    weights: tuple[float, ...] | None = None
    alpha = recipe.alpha
    if alpha is None:
        alpha = chooser.best(lambda value: (at(None), value), candidates)
    if recipe.coefficients == "each":
        chosen = [alpha] * len(vectors)
        for t in [*range(len(vectors))] * ROUNDS:

            def moved(value: float, t: int = t) -> tuple[TaskVector, float]:
                return at([*chosen[:t], value, *chosen[t + 1 :]]), 1.0

            chosen[t] = chooser.best(moved, sorted({*candidates, chosen[t]}))
        alpha, weights = 1.0, tuple(chosen)
    vector = at(weights)
    return MergedModel(
        vector, target, alpha, weights, _table(recipe, model, columns, vectors, (vector, alpha))
    )


def joining(
    recipe: MergeRecipe, vectors: Sequence[TaskVector], target: Checkpoint | None, progress: Progress
) -> Callable[[Sequence[float] | None], TaskVector]:
    """Make the function from coefficients to the merged vector.

    Args:
        recipe: How to merge.
        vectors: τ_t, laid onto the target where there is one.
        target: θ_B, at which votes must have been counted.
        progress: Told the coordinates ranked.

    Returns:
        The function; None stands for coefficients of 1.
    """
    votes = None if recipe.votes is None else [Votes.load(path) for path in recipe.votes]
    if target is not None:
        for each in votes or []:
            each.check_target(target, match_names(each.specs, target.specs).names)

    def joined(weights: Sequence[float] | None) -> TaskVector:
        return merge(
            vectors,
            votes,
            method=recipe.method,
            weights=weights,
            density=recipe.density,
            order=recipe.order,
            strategy=recipe.mask,
            seed=recipe.seed,
            **({"level": recipe.confidence} if recipe.mask == "confident" else {}),
            progress=progress,
        )

    return joined


@dataclass
class _Chooser:
    """Chooses among moves of a model by the losses of all tasks."""

    model: TargetModel
    columns: Sequence[Column]
    progress: Progress

    def __post_init__(self) -> None:
        self.model.restore()
        self._base = [self._loss(column) for column in self.columns]
        self._tried = 0

    def _loss(self, column: Column) -> float:
        assert column.samples is not None
        return self.model.evaluate(column.samples, task=column.task).loss

    def best(self, move: Callable[[float], tuple[TaskVector, float]], candidates: Sequence[float]) -> float:
        found: list[tuple[float, float]] = []
        for number, value in enumerate(candidates):
            self.model.move(*move(value))
            ratios = [
                self._loss(column) / max(base, 1e-12)
                for column, base in zip(self.columns, self._base, strict=True)
            ]
            found.append((sum(ratios) / len(ratios), value))
            self.progress("choosing coefficients", number + 1, len(candidates), "candidates")
        self.model.restore()
        return min(found)[1]


def _ready(
    recipe: MergeRecipe, vector: TaskVector, target: Checkpoint, found: Findings
) -> tuple[TargetModel, list[Column]]:
    """Load the model with the first task, and encode the rows of all."""
    names = recipe.task * (len(recipe.samples) if len(recipe.task) == 1 else 1)
    roles = {role: name for role, _, name in (entry.partition("=") for entry in recipe.column)}
    tasks, rows, tests = [], [], []
    for number, (name, location) in enumerate(zip(names, recipe.samples, strict=True)):
        own = load_rows(location)
        task = get_task(name, **roles).for_rows(own)
        bind(task, target, vector, own, trust_remote_code=recipe.trust_remote_code)
        task.check(own)
        tasks.append(task)
        rows.append(counted_once(task, own, found))
        tests.append(load_rows(recipe.test[number]) if recipe.test else rows[-1])
        task.check(tests[-1])
    model = TargetModel.load(
        tasks[0], target, place(vector, target), device=recipe.device, batch_size=recipe.batch_size,
        trust_remote_code=recipe.trust_remote_code,
    )  # fmt: skip
    model.require_weights()
    silent = [name for name in vector.specs if name not in model.vector.specs and not vector.is_zero(name)]
    if silent and len({*names}) > 1:
        raise GradfixError(
            f"merge: {names[0]} does not depend on {listed(silent, 3)}, so tasks of other kinds can't be measured on "
            "its model; give the task vectors in another order, or merge without samples"
        )
    if silent:
        found.add(
            "note",
            f"{len(silent)} of {len(vector)} tensors keep the new base's values, because the tasks' losses do not "
            f"depend on them: {listed(silent)}",
        )
    for task in tasks[1:]:
        task.prepare(model.model)
    for number, task in enumerate(tasks):
        model.keep_reference(rows[number], tests[number], task=task)
    labels = _distinct([vector_name(path) for path in recipe.task_vector])
    columns = [
        Column(label, task, model.encode(own, task=task), model.encode(test, task=task))
        for label, task, own, test in zip(labels, tasks, rows, tests, strict=True)
    ]
    if recipe.retain is not None:
        kept = load_rows(recipe.retain)
        task = get_task(names[0], **roles).for_rows(kept)
        bind(task, target, None, kept, trust_remote_code=recipe.trust_remote_code)
        task.check(kept)
        task.prepare(model.model)
        model.keep_reference(kept, task=task)
        columns.append(Column("retained", task, None, model.encode(kept, task=task)))
    return model, columns


def vector_name(path: Path) -> str:
    """Name a task vector in a table.

    Args:
        path: Its file.

    Returns:
        The file's name without its suffix.
    """
    return path.stem


def _distinct(names: Sequence[str]) -> list[str]:
    return [name if names.count(name) == 1 else f"{name} {at + 1}" for at, name in enumerate(names)]


def _table(
    recipe: MergeRecipe,
    model: TargetModel,
    columns: Sequence[Column],
    vectors: Sequence[TaskVector],
    merged: tuple[TaskVector, float],
) -> MergedTable:
    alone = [column.name for column in columns if column.samples is not None]
    moves: dict[str, tuple[TaskVector, float]] = {
        BASE: (merged[0], 0.0),
        **{f"{name} alone": (vector, 1.0) for name, vector in zip(alone, vectors, strict=True)},
        MERGED: merged,
    }
    scores: dict[str, dict[str, Evaluation]] = {}
    for name, (vector, alpha) in moves.items():
        model.move(vector, alpha)
        scores[name] = {
            column.name: model.evaluate(column.judged, task=column.task.judging()) for column in columns
        }
    model.restore()
    gains = {
        column.name: paired_samples(scores[MERGED][column.name].scores, scores[BASE][column.name].scores)
        for column in columns
    }
    names = tuple(column.name for column in columns)
    return MergedTable(tuple(moves), names, scores, "test" if recipe.test else "samples", gains)
