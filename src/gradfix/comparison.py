"""A transport beside everything it could be mistaken for: all baselines, several draws, paired intervals."""

import csv
import io
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from typing import Any

from gradfix.alignment import Aligned
from gradfix.baselines import METHODS, FewShot, FineTuning, Method, choose_finetuning, finetune, shuffled
from gradfix.checkpoints import Checkpoint
from gradfix.compatibility import Compatibility, Finding, check_weights, open_models, unheard
from gradfix.data import load_rows
from gradfix.errors import GradfixError
from gradfix.evaluation import EncodedRows, Interval, mean_interval, paired_difference
from gradfix.masks import mask
from gradfix.methods import choose
from gradfix.observation import look_at_source
from gradfix.placement import place
from gradfix.preparation import Data, bind, choose_support, ready_task
from gradfix.progress import Progress, silent
from gradfix.recipes import AUTO_STEPS, CompareRecipe
from gradfix.report import REPORT_FILE, report
from gradfix.scaling import FOLDS, GRID, FoldedVotes, cross_fit, split_folds
from gradfix.target_model import TargetModel
from gradfix.tasks import ModelTask, get_task
from gradfix.vectors import TaskVector
from gradfix.ways import Ground

ZERO_SHOT, CONTROL, FEW_SHOT, ORACLE, FULL = "zero-shot", "control", "few-shot", "oracle", "full"
AUTO, AUTO_CONTROL = "auto", "auto-control"

LABELS = {
    ZERO_SHOT: "new base as it is",
    **{name: method.label for name, method in METHODS.items()},
    AUTO: "auto: the method chosen on the samples",
    AUTO_CONTROL: "control of auto: τ shuffled first",
    FEW_SHOT: "few-shot fine-tuning",
    ORACLE: "oracle mask",
    FULL: "full fine-tuning",
}
"""What tables call each method, in the order of tables."""


@dataclass(frozen=True)
class Outcome:
    """One method on one draw of the support set.

    Attributes:
        score: On the test data.
        loss: On the test data.
        setting: What was chosen on the support set: α, or learning rate and steps.
        retained: Score on the retention data, where there were any.
        seconds: Wall time, choosing included.
        way: What ``auto`` chose, as people read it; None for a method that is what it is.
    """

    score: float
    loss: float
    setting: Mapping[str, float]
    retained: float | None = None
    seconds: float = 0.0
    way: str | None = None


@dataclass
class Judge:
    """What every method is measured on: encoded once, the same for all.

    Attributes:
        model: The target.
        test: Test samples of the task.
        retain: Samples of what the model could do before, and the task they are of; None for neither.
    """

    model: TargetModel
    test: EncodedRows
    retain: tuple[ModelTask, EncodedRows] | None = None

    def measure(self, setting: Mapping[str, float], started: float) -> Outcome:
        """Measure the model where it stands.

        Args:
            setting: What brought it there.
            started: When its method began, by ``time.perf_counter``.

        Returns:
            The outcome.
        """
        found = self.model.evaluate(self.test)
        retained = None
        if self.retain is not None:
            task, rows = self.retain
            retained = self.model.evaluate(rows, task=task).score
        return Outcome(found.score, found.loss, setting, retained, time.perf_counter() - started)


def draw(
    judge: Judge,
    support: Sequence[Any],
    *,
    seed: int,
    methods: Mapping[str, Method] = METHODS,
    oracle: TaskVector | None = None,
    few_shot: FewShot | None = FewShot(),  # noqa: B008 - frozen
    grid: Sequence[float] = GRID,
    aligned: Aligned | None = None,
    auto: bool = False,
) -> Iterator[tuple[str, Outcome]]:
    """Run every method on one support set: each chooses its settings by cross-fitting there, then is measured.

    Args:
        judge: The target and the data to judge on. The model is at θ_B afterwards.
        support: The drawn samples.
        seed: Of folds, random masks and shuffles.
        methods: Which ways to make a direction.
        oracle: τ_B, restricted like the target's vector, for the oracle mask and full fine-tuning.
        few_shot: What fine-tuning on the samples may choose among; None for no such row.
        grid: Candidates for α.
        aligned: τ in the target's coordinates, with its control, for ``auto`` to choose.
        auto: Also choose the method itself, as a transport does by default, and measure its control.

    Yields:
        Method name and outcome.

    Raises:
        GradfixError: if there is only one sample.
    """
    model = judge.model
    folds = split_folds(model.task.classes(support), FOLDS, seed)
    if len(folds) < 2:
        raise GradfixError("one sample is too few to choose settings on; draw at least two")
    started = time.perf_counter()
    yield ZERO_SHOT, judge.measure({}, started)
    with ExitStack() as stack:
        ballots: dict[str | None, FoldedVotes] = {}
        for name, method in methods.items():
            started = time.perf_counter()
            if method.vote is not None and method.vote not in ballots:
                ballots[method.vote] = stack.enter_context(
                    FoldedVotes(model, support, folds, vote=method.vote, seed=seed)
                )
            yield (
                name,
                _directed(judge, support, folds, method, ballots.get(method.vote), seed, grid, started),
            )
    if auto:
        yield from _chosen(judge, support, folds, aligned, seed)
    if few_shot is not None:
        yield FEW_SHOT, _finetuned(judge, support, few_shot, seed)
    if oracle is not None:
        bound = Method("oracle", None, lambda tau, votes, seed: mask(tau, oracle))
        yield ORACLE, _directed(judge, support, folds, bound, None, seed, grid, time.perf_counter())
        started = time.perf_counter()
        try:
            model.move(oracle, 1.0)
            yield FULL, judge.measure({"alpha": 1.0}, started)
        finally:
            model.restore()


def _directed(
    judge: Judge,
    support: Sequence[Any],
    folds: Sequence[Sequence[int]],
    method: Method,
    ballots: FoldedVotes | None,
    seed: int,
    grid: Sequence[float],
    started: float,
) -> Outcome:
    model = judge.model

    @cache
    def unvoted() -> TaskVector:  # one for all folds, so that they share each move
        return method.build(model.vector, None, seed)

    def direction(left_out: int | None) -> TaskVector:
        if ballots is None:
            return unvoted()
        votes = ballots.all() if left_out is None else ballots.without(left_out)
        return method.build(model.vector, votes, seed)

    choice = cross_fit(model, support, folds, direction, grid=grid)
    try:
        model.move(direction(None), choice.alpha)
        return judge.measure({"alpha": choice.alpha}, started)
    finally:
        model.restore()


def _chosen(
    judge: Judge, support: Sequence[Any], folds: Sequence[Sequence[int]], aligned: Aligned | None, seed: int
) -> Iterator[tuple[str, Outcome]]:
    started = time.perf_counter()
    tau = judge.model.vector
    controls = {id(tau): shuffled(tau, seed)}
    if aligned is not None:
        controls[id(aligned.vector)] = aligned.control or controls[id(tau)]
    with Ground(judge.model, support, folds, seed=seed) as ground:
        found = choose(ground, aligned.vector if aligned else None, steps=AUTO_STEPS)
        setting = found.candidate.setting
        control = found.way.swapped(lambda vector: controls.get(id(vector), vector))
        for name, way in ((AUTO, found.way), (AUTO_CONTROL, control)):
            try:
                judge.model.move(*way.arrive(ground, setting))
                yield name, replace(judge.measure(setting, started), way=found.candidate.label)
            finally:
                judge.model.restore()
            started = time.perf_counter()


def _finetuned(judge: Judge, support: Sequence[Any], candidates: FewShot, seed: int) -> Outcome:
    started = time.perf_counter()
    folds = split_folds(judge.model.task.classes(support), candidates.folds, seed)
    chosen: FineTuning = choose_finetuning(judge.model, support, folds, candidates, seed=seed)
    try:
        if chosen.steps:
            for _ in finetune(
                judge.model, support, learning_rate=chosen.learning_rate, stops=[chosen.steps], seed=seed
            ):
                pass
        return judge.measure({"learning_rate": chosen.learning_rate, "steps": chosen.steps}, started)
    finally:
        judge.model.restore()


@dataclass(frozen=True)
class Line:
    """A row of the table: one method at one budget.

    Attributes:
        budget: Samples a class.
        method: Its name.
        score: Mean over draws with a 95 % interval.
        gain: Difference to the new base as it is, paired by draw.
        over_control: Difference to the shuffled control, of ``auto`` to its own, paired by draw; None for what no
            control fits.
        retained: Mean retention score, where it was measured.
        outcomes: Of each draw.
    """

    budget: int
    method: str
    score: Interval
    gain: Interval
    over_control: Interval | None
    retained: Interval | None
    outcomes: tuple[Outcome, ...]

    @property
    def label(self) -> str:
        """What tables call the method."""
        return LABELS.get(self.method, self.method)


def summarise(draws: Sequence[Mapping[str, Outcome]], budget: int) -> list[Line]:
    """Turn the outcomes of several draws into rows with intervals.

    Args:
        draws: Outcomes by method, for each draw.
        budget: Samples a class they were drawn with.

    Returns:
        A row a method.
    """
    lines = []
    for method in draws[0]:
        outcomes = tuple(outcome[method] for outcome in draws)
        scores = [outcome.score for outcome in outcomes]
        shuffled_way = AUTO_CONTROL if method == AUTO else CONTROL
        compared = shuffled_way in draws[0] and method not in {ZERO_SHOT, CONTROL, AUTO_CONTROL, FULL}
        kept = [outcome.retained for outcome in outcomes if outcome.retained is not None]
        lines.append(
            Line(
                budget=budget,
                method=method,
                score=mean_interval(scores),
                gain=paired_difference(scores, [outcome[ZERO_SHOT].score for outcome in draws]),
                over_control=(
                    paired_difference(scores, [outcome[shuffled_way].score for outcome in draws])
                    if compared
                    else None
                ),
                retained=mean_interval(kept) if kept else None,
                outcomes=outcomes,
            )
        )
    return lines


def chosen_ways(lines: Sequence[Line]) -> str:
    """Say what ``auto`` chose.

    Args:
        lines: The table's rows.

    Returns:
        A clause for a caption, such as ``auto chose naive addition in 2 of 3 draws, GradFix in 1``; empty where the
        method was not chosen.
    """
    told = []
    auto = [line for line in lines if line.method == AUTO]
    for line in auto:
        ways = Counter(outcome.way for outcome in line.outcomes)
        counts = [f"{way} in {count}" for way, count in ways.most_common()]
        counts[0] += f" of {len(line.outcomes)} draws"
        at = f"with {line.budget} a class " if len(auto) > 1 else ""
        told.append(f"{at}auto chose {', '.join(counts)}")
    return "; ".join(told)


def table_json(lines: Sequence[Line]) -> list[dict[str, Any]]:
    """Give the table as JSON.

    Args:
        lines: Its rows.

    Returns:
        Every value, each draw's included.
    """
    return [{**asdict(line), "label": line.label} for line in lines]


def table_csv(lines: Sequence[Line]) -> str:
    """Give the table as CSV, a row a method, budget and draw, for other tools.

    Args:
        lines: Its rows.

    Returns:
        The text, with a header.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["samples_per_class", "method", "draw", "score", "loss", "retained", "way", "setting", "seconds"]
    )
    for line in lines:
        for number, outcome in enumerate(line.outcomes):
            setting = " ".join(f"{key}={value:g}" for key, value in outcome.setting.items())
            writer.writerow(
                [
                    line.budget,
                    line.method,
                    number,
                    outcome.score,
                    outcome.loss,
                    outcome.retained,
                    outcome.way,
                    setting,
                    outcome.seconds,
                ]
            )
    return text.getvalue()


def table_markdown(lines: Sequence[Line], caption: str) -> str:
    """Give the table as Markdown: methods down, budgets across, mean and half-width of the interval.

    Args:
        lines: Its rows.
        caption: What stands below.

    Returns:
        The text.
    """
    budgets = sorted({line.budget for line in lines})
    methods = list(dict.fromkeys(line.method for line in lines))
    found = {(line.method, line.budget): line for line in lines}
    rows = ["| samples a class | " + " | ".join(map(str, budgets)) + " |", "|---" * (len(budgets) + 1) + "|"]
    for method in methods:
        cells = [_cell(found.get((method, budget))) for budget in budgets]
        rows.append(f"| {LABELS.get(method, method)} | " + " | ".join(cells) + " |")
    return "\n".join([*rows, "", caption, ""])


def _cell(line: Line | None) -> str:
    if line is None:
        return ""
    score = line.score
    return f"{score.value:.3f}" if score.low is None else f"{score.value:.3f} ± {score.value - score.low:.3f}"


@dataclass(frozen=True)
class Comparison:
    """The whole comparison.

    Attributes:
        lines: The table's rows.
        caption: What was drawn and judged on, and how the intervals were made.
        recipe: What was asked for.
    """

    lines: tuple[Line, ...]
    caption: str
    recipe: CompareRecipe

    def to_json(self) -> dict[str, Any]:
        """Give the comparison as JSON.

        Returns:
            Rows, caption and recipe.
        """
        return {
            "format": "gradfix-comparison",
            "version": 1,
            "caption": self.caption,
            "recipe": self.recipe.model_dump(mode="json"),
            "rows": table_json(self.lines),
        }

    def files(self) -> dict[str, str]:
        """Give the files of the output folder.

        Returns:
            Texts by name.
        """
        record = json.dumps(self.to_json(), indent=1, ensure_ascii=False) + "\n"
        return {
            "comparison.json": record,
            REPORT_FILE: report(json.loads(record)),
            "comparison.csv": table_csv(self.lines),
            "comparison.md": table_markdown(self.lines, self.caption),
            "recipe.yaml": self.recipe.dump(),
        }


def compare(
    recipe: CompareRecipe, *, tell: Callable[[Finding], None] = unheard, progress: Progress = silent
) -> Comparison:
    """Measure all baselines over several budgets and draws.

    Args:
        recipe: The validated options.
        tell: Told what is found of the inputs, at once.
        progress: Told the draws done.

    Returns:
        The comparison.

    Raises:
        GradfixError: if the inputs don't allow it.
    """
    found = Compatibility(tell=tell)
    models = open_models(recipe.source_base, recipe.source_tuned, recipe.target_base, found)
    target = models.target
    data = Data(
        pool=load_rows(recipe.data, split=recipe.split),
        held={"test": load_rows(recipe.test)},
        budget=max(recipe.samples_per_class),
        align_data=load_rows(recipe.align_data) if recipe.align_data else (),
    )
    task = ready_task(recipe, models, data, found)
    check_weights(models, found)
    with ExitStack() as stack:
        sight = look_at_source(
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
        model = TargetModel.load(task, target, models.placement, **recipe.loading())
        model.require_weights()
        aligned = sight.align(model, control_seed=0) if sight is not None else None
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
                draws.append(dict(draw(judge, support, seed=seed, oracle=oracle, aligned=aligned, auto=True)))
                done += 1
                progress("comparing", done, total, "draws")
            lines += summarise(draws, budget)
    caption = (
        f"{task.metric.replace('_', ' ')} on {len(data.held['test'])} test samples; mean over {recipe.seeds} draws "
        f"of the support set ({recipe.sampling}) with the 95 % interval of Student's t; every setting chosen by "
        f"cross-fitting on the support set; {chosen_ways(lines)}"
    )
    return Comparison(tuple(lines), caption, recipe)


def _retention(
    recipe: CompareRecipe, model: TargetModel, target: Checkpoint
) -> tuple[ModelTask, EncodedRows] | None:
    """Prepare what the model could do before: the same kind of task on other data, with class names of its own."""
    if recipe.retain is None:
        return None
    rows = load_rows(recipe.retain)
    options = {key: value for key, value in recipe.task_options().items() if key != "labels"}
    task = get_task(recipe.task, **options)
    bind(task, target, None, rows, trust_remote_code=recipe.trust_remote_code)
    task.check(rows)
    task.prepare(model.model)
    return task, model.encode(rows, task=task)
