"""Every method on one draw of the support set: each chooses its settings there, then is measured."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gradfix.alignment import Aligned
from gradfix.errors import GradfixError
from gradfix.evaluation.evaluate import EncodedRows
from gradfix.evaluation.target_model import TargetModel
from gradfix.recipes.settings import SETTINGS, SelectionSettings
from gradfix.tasks import ModelTask
from gradfix.transport.context import SelectionContext, Setting, StartingPoint, controls
from gradfix.transport.cross_validation import cross_validate
from gradfix.transport.folds import split_folds
from gradfix.transport.methods import AddVector, FineTune, MaskVector, Method
from gradfix.transport.selection import nothing, select, training_from
from gradfix.vectors.control import shuffled
from gradfix.vectors.mask_strategies import find_strategy
from gradfix.vectors.masks import mask
from gradfix.vectors.task_vector import TaskVector

ZERO_SHOT, CONTROL, FEW_SHOT, ORACLE, FULL = "zero-shot", "control", "few-shot", "oracle", "full"
AUTO, AUTO_CONTROL = "auto", "auto-control"

LABELS = {
    ZERO_SHOT: "new base as it is",
    "naive": "naive addition",
    "random": "random mask",
    "random-sign": "random signs",
    "mean": "mean vote",
    "force": "majority, force",
    "soft": "majority, soft",
    "gradfix": "GradFix (majority, agreement)",
    CONTROL: "control: τ shuffled, then masked",
    AUTO: "auto: method chosen on the samples",
    AUTO_CONTROL: "control of auto: τ shuffled first",
    FEW_SHOT: "few-shot fine-tuning",
    ORACLE: "oracle mask",
    FULL: "full fine-tuning",
}
"""What tables call each method, in the order of tables."""

BASELINES = ("naive", "random", "random-sign", "mean", "force", "soft", "gradfix", CONTROL)
"""The methods that need no fine-tune of the target."""


def baseline(name: str, tau: TaskVector, settings: SelectionSettings, seed: int) -> Method:
    """Make a baseline: a way like any other, so that its setting is chosen as those of a transport are.

    Args:
        name: One of :data:`BASELINES`, or ``few-shot``; or a mask of the user's own.
        tau: The target's task vector.
        settings: The numbers of the selection.
        seed: Of the control's shuffle.

    Returns:
        The way.
    """
    label, grid = LABELS.get(name, name), settings.alphas
    if name not in LABELS:
        if find_strategy(name).needs == "nothing":
            return AddVector(name, label, vector=tau, grid=grid, strategy=name)
        return MaskVector(name, label, vector=tau, grid=grid, strategy=name)
    if name == FEW_SHOT:
        return training_from(StartingPoint(), None, settings)
    if name == "naive":
        return AddVector(name, label, vector=tau, grid=grid)
    if name in {"random", "random-sign"}:
        return AddVector(name, label, vector=tau, grid=grid, strategy=name)
    strategy = name if name in {"force", "soft"} else "agreement"
    vote = "mean" if name == "mean" else "majority"
    vector = shuffled(tau, seed) if name == CONTROL else tau
    return MaskVector(name, label, vector=vector, grid=grid, strategy=strategy, vote=vote)


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
        found = self.model.evaluate(self.test, task=self.model.judging)
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
    methods: Sequence[str] = BASELINES,
    others: Sequence[Method] = (),
    oracle: TaskVector | None = None,
    few_shot: bool = True,
    settings: SelectionSettings = SETTINGS,
    aligned: Aligned | None = None,
    alike: float | None = None,
    auto: bool = False,
    bounds: Sequence[str] = (ORACLE, FULL),
    more: Sequence[Any] = (),
    tell: Callable[[str], None] = lambda method: None,
) -> Iterator[tuple[str, Outcome]]:
    """Run every method on one support set: each chooses its settings by cross-fitting there, then is measured.

    Args:
        judge: The target and the data to judge on. The model is at θ_B afterwards.
        support: The drawn samples.
        seed: Of folds, random masks and shuffles.
        methods: Which of :data:`BASELINES`, and masks of the user's own.
        others: Further ways, each known by its name.
        oracle: τ_B, restricted like the target's vector, for the oracle mask and full fine-tuning.
        few_shot: Also fine-tune on the samples alone.
        settings: What every method may select among.
        aligned: τ in the target's coordinates, with its control, for ``auto`` to select.
        alike: How alike the two bases are; None if unknown.
        auto: Also select the method itself, as a transport does by default, and cross_validate its control.
        bounds: Which of the oracle mask and full fine-tuning, where there is an oracle.
        more: Samples that the tuned source labelled.
        tell: Told each method before it begins.

    Yields:
        Method name and outcome.

    Raises:
        GradfixError: if there is only one sample.
    """
    model = judge.model
    tau = model.vector
    folds = split_folds(model.task.classes(support), settings.folds, seed)
    if len(folds) < 2:
        raise GradfixError("one sample is too few to select settings on; draw at least two")
    yield ZERO_SHOT, judge.measure({}, time.perf_counter())
    with SelectionContext(model, support, folds, seed=seed, settings=settings, more=more) as context:
        for way in (*(baseline(name, tau, settings, seed) for name in methods), *others):
            tell(way.name)
            yield way.name, chosen_along(judge, context, way)
        if auto:
            tell(AUTO)
            yield from _auto(judge, context, aligned, alike)
        if few_shot:
            tell(FEW_SHOT)
            yield FEW_SHOT, chosen_along(judge, context, baseline(FEW_SHOT, tau, settings, seed))
        if oracle is not None and ORACLE in bounds:
            tell(ORACLE)
            bound = AddVector(ORACLE, LABELS[ORACLE], vector=mask(tau, oracle), grid=settings.alphas)
            yield ORACLE, chosen_along(judge, context, bound)
        if oracle is not None and FULL in bounds:
            tell(FULL)
            full = AddVector(FULL, LABELS[FULL], vector=oracle, grid=(1.0,))
            yield FULL, arrived(judge, context, full, {"alpha": 1.0}, time.perf_counter())


def chosen_along(judge: Judge, context: SelectionContext, way: Method) -> Outcome:
    """Choose a way's setting on the samples, and cross_validate it.

    Args:
        judge: Who measures.
        context: The model and its samples.
        way: The way; where it trains, not training at all is a candidate, too.

    Returns:
        The outcome.
    """
    started, spared = time.perf_counter(), context.spared
    found = cross_validate(context, way)
    started -= context.spared - spared
    if isinstance(way, FineTune):
        still = cross_validate(context, nothing(judge.model.vector))
        if still.calibrated_loss <= found.calibrated_loss:
            return judge.measure({"learning_rate": 0.0, "finetune_steps": 0.0}, started)
    return arrived(judge, context, way, found.setting, started)


def arrived(
    judge: Judge, context: SelectionContext, way: Method, setting: Setting, started: float
) -> Outcome:
    """Measure where a way arrives.

    Args:
        judge: Who measures; the model is at θ_B afterwards.
        context: The model and its samples.
        way: The way.
        setting: Its candidate.
        started: When its method began, by ``time.perf_counter``.

    Returns:
        The outcome.
    """
    try:
        judge.model.move(*way.build(context, setting))
        return judge.measure(setting, started)
    finally:
        judge.model.restore()


def _auto(
    judge: Judge, context: SelectionContext, aligned: Aligned | None, alike: float | None
) -> Iterator[tuple[str, Outcome]]:
    started, spared = time.perf_counter(), context.spared
    found = select(context, aligned, alike=alike)
    started -= context.spared - spared
    swap = controls(judge.model.vector, aligned, context.seed)
    for name, way in ((AUTO, found.way), (AUTO_CONTROL, found.way.control(swap))):
        outcome = arrived(judge, context, way, found.candidate.setting, started)
        yield name, replace(outcome, way=found.candidate.label)
        started = time.perf_counter()
