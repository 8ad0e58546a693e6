"""Every method on one draw of the support set: each chooses its settings there, then is measured."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from gradfix.alignment import Aligned
from gradfix.errors import GradfixError
from gradfix.evaluation.evaluate import EncodedRows
from gradfix.evaluation.finetuning import FewShot, FineTuning, finetune
from gradfix.evaluation.target_model import TargetModel
from gradfix.recipes import AUTO_STEPS
from gradfix.tasks import ModelTask
from gradfix.transport.comparison.baselines import BASELINES, Method, choose_finetuning
from gradfix.transport.folds import FOLDS, GRID, VotesByFold, cross_fit, split_folds
from gradfix.transport.methods import SelectionContext
from gradfix.transport.selection import select
from gradfix.vectors.control import shuffled
from gradfix.vectors.masks import mask
from gradfix.vectors.task_vector import TaskVector

ZERO_SHOT, CONTROL, FEW_SHOT, ORACLE, FULL = "zero-shot", "control", "few-shot", "oracle", "full"
AUTO, AUTO_CONTROL = "auto", "auto-control"

LABELS = {
    ZERO_SHOT: "new base as it is",
    **{name: method.label for name, method in BASELINES.items()},
    AUTO: "auto: method chosen on the samples",
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
    methods: Mapping[str, Method] = BASELINES,
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
        few_shot: What fine-tuning on the samples may select among; None for no such row.
        grid: Candidates for α.
        aligned: τ in the target's coordinates, with its control, for ``auto`` to select.
        auto: Also select the method itself, as a transport does by default, and measure its control.

    Yields:
        Method name and outcome.

    Raises:
        GradfixError: if there is only one sample.
    """
    model = judge.model
    folds = split_folds(model.task.classes(support), FOLDS, seed)
    if len(folds) < 2:
        raise GradfixError("one sample is too few to select settings on; draw at least two")
    started = time.perf_counter()
    yield ZERO_SHOT, judge.measure({}, started)
    with ExitStack() as stack:
        votes_without: dict[str | None, VotesByFold] = {}
        for name, method in methods.items():
            started = time.perf_counter()
            if method.vote is not None and method.vote not in votes_without:
                votes_without[method.vote] = stack.enter_context(
                    VotesByFold(model, support, folds, vote=method.vote, seed=seed)
                )
            yield (
                name,
                _directed(judge, support, folds, method, votes_without.get(method.vote), seed, grid, started),
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
    votes_without: VotesByFold | None,
    seed: int,
    grid: Sequence[float],
    started: float,
) -> Outcome:
    model = judge.model

    @cache
    def unvoted() -> TaskVector:  # one for all folds, so that they share each move
        return method.build(model.vector, None, seed)

    def direction(left_out: int | None) -> TaskVector:
        if votes_without is None:
            return unvoted()
        votes = votes_without.all() if left_out is None else votes_without.without(left_out)
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
    with SelectionContext(judge.model, support, folds, seed=seed) as context:
        found = select(context, aligned.vector if aligned else None, steps=AUTO_STEPS)
        setting = found.candidate.setting
        control = found.way.control(lambda vector: controls.get(id(vector), vector))
        for name, way in ((AUTO, found.way), (AUTO_CONTROL, control)):
            try:
                judge.model.move(*way.build(context, setting))
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
