"""Every method on one draw of the support set: each chooses its settings there, then is measured."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from gradfix.alignment import Aligned
from gradfix.alignment.teacher import Teacher
from gradfix.errors import GradfixError
from gradfix.evaluation.evaluate import EncodedRows
from gradfix.evaluation.target_model import TargetModel
from gradfix.recipes.fields import BEST_ON_TEST, BY_VALIDATION
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
PERMUTATION = "permutation"

LABELS = {
    ZERO_SHOT: "new base as it is",
    "naive": "naive addition",
    PERMUTATION: "addition of the permuted τ (as TransFusion)",
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
"""The methods that need neither a fine-tune of the target nor its coordinates matched."""

_CHOSEN = {BY_VALIDATION: "α on validation data", BEST_ON_TEST: "best α on test"}


def label_of(method: str) -> str:
    """Say what tables call a method.

    Args:
        method: Its name.

    Returns:
        The label; of a mask of the user's own its name.
    """
    for suffix, how in _CHOSEN.items():
        if method.endswith(suffix):
            return f"{label_of(method.removesuffix(suffix))}: {how}"
    return LABELS.get(method, method)


def baseline(name: str, tau: TaskVector, settings: SelectionSettings, seed: int) -> Method:
    """Make a baseline: a way like any other, so that its setting is chosen as those of a transport are.

    Args:
        name: One of :data:`BASELINES`, ``permutation`` or ``few-shot``; or a mask of the user's own.
        tau: The target's task vector; of ``permutation`` the permuted one.
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
    if name in {"naive", PERMUTATION}:
        return AddVector(name, label, vector=tau, grid=grid)
    if name in {"random", "random-sign"}:
        return AddVector(name, label, vector=tau, grid=grid, strategy=name)
    strategy = name if name in {"force", "soft"} else "agreement"
    vote = "mean" if name == "mean" else "majority"
    vector = shuffled(tau, seed) if name == CONTROL else tau
    return MaskVector(name, label, vector=vector, grid=grid, strategy=strategy, vote=vote)


Place = tuple[int, float]
"""A vector that lasts, by its id, and α."""


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
        validation: Samples to choose each method's α on, too; None for not.
        best_on_test: Also give the best score of all α on the test samples, of each method that has an α.
        lasting: Vectors that are the same in every draw, beside the model's own.
    """

    model: TargetModel
    test: EncodedRows
    retain: tuple[ModelTask, EncodedRows] | None = None
    validation: EncodedRows | None = None
    best_on_test: bool = False
    lasting: Sequence[TaskVector] = ()
    _best: dict[str, Outcome] = field(init=False, default_factory=dict, repr=False)
    _measured: dict[Place, Outcome] = field(init=False, default_factory=dict, repr=False)

    def forget(self) -> None:
        """Measure everything anew: the model is another one from now on."""
        self._best.clear()
        self._measured.clear()

    def place(self, delta: TaskVector, alpha: float) -> Place | None:
        """Tell a place that other draws lead to as well from others.

        Args:
            delta: δ.
            alpha: α.

        Returns:
            A key for :meth:`measure`; None for a place of this draw alone.
        """
        if not alpha:
            return 0, 0.0
        lasts = any(delta is one for one in (self.model.vector, *self.lasting))
        return (id(delta), alpha) if lasts else None

    def measure(
        self, setting: Mapping[str, float], seconds: Callable[[], float], place: Place | None = None
    ) -> Outcome:
        """Measure the model where it stands.

        Args:
            setting: What brought it there.
            seconds: Tells how long its method took so far.
            place: What :meth:`place` gave; what was measured there serves again.

        Returns:
            The outcome.
        """
        known = self._measured.get(place) if place is not None else None
        if known is not None:
            return replace(known, setting=setting, seconds=known.seconds + seconds())
        started = time.perf_counter()
        found = self.model.evaluate(self.test, task=self.model.judging)
        retained = None
        if self.retain is not None:
            task, rows = self.retain
            retained = self.model.evaluate(rows, task=task).score
        outcome = Outcome(found.score, found.loss, setting, retained, time.perf_counter() - started)
        if place is not None:
            self._measured[place] = outcome
        return replace(outcome, seconds=seconds())

    def best(self, context: SelectionContext, way: Method) -> Outcome | None:
        """Find a way's best setting on the test samples, which nothing else may do: a bound, and marked as such.

        Args:
            context: The model and its samples; the model is at θ_B afterwards.
            way: The way.

        Returns:
            The best of the settings that the samples choose among, the first of equals; None where that was not asked
            for, or the way has no α.
        """
        started = time.perf_counter()
        places = way.places(context, ()) if self.best_on_test else None
        if places is None:
            return None
        # Nothing is drawn, and nobody is asked.
        same_each_draw = isinstance(way, AddVector) and way.strategy == "none"
        if same_each_draw and way.name in self._best:
            return self._best[way.name]
        known = list(places)
        try:
            wanted = [(delta, alpha, self.test) for _, delta, alpha in known]
            scores = list(self.model.evaluate_each(wanted, task=self.model.judging))
        finally:
            self.model.restore()
        found, (setting, _, _) = max(zip(scores, known, strict=True), key=lambda pair: pair[0].score)
        best = Outcome(found.score, found.loss, setting, None, time.perf_counter() - started)
        if same_each_draw:
            self._best[way.name] = best
        return best


def draw(
    judge: Judge,
    support: Sequence[Any],
    *,
    seed: int,
    methods: Sequence[str] = BASELINES,
    others: Sequence[Method] = (),
    permuted: TaskVector | None = None,
    oracle: TaskVector | None = None,
    few_shot: bool = True,
    settings: SelectionSettings = SETTINGS,
    aligned: Aligned | None = None,
    teacher: Teacher | None = None,
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
        methods: Which of :data:`BASELINES` and ``permutation``, and masks of the user's own.
        others: Further ways, each known by its name.
        permuted: τ with its units in the target's order, for ``permutation``.
        oracle: τ_B, restricted like the target's vector, for the oracle mask and full fine-tuning.
        few_shot: Also fine-tune on the samples alone.
        settings: What every method may select among.
        aligned: τ in the target's coordinates, with its control, for ``auto`` to select.
        teacher: What the tuned source says of inputs, which judge besides the samples what ``auto`` selects.
        alike: How alike the two bases are; None if unknown.
        auto: Also select the method itself, as a transport does by default, and measure its control.
        bounds: Which of the oracle mask and full fine-tuning, where there is an oracle.
        more: Samples that the tuned source labelled.
        tell: Told each method before it begins.

    Yields:
        Method name and outcome; after a method with an α, where the judge is asked for it, the same with α chosen
        otherwise, under names that end with :data:`BY_VALIDATION` and :data:`BEST_ON_TEST`.

    Raises:
        GradfixError: if there is only one sample.
    """
    model = judge.model
    tau = model.vector
    folds = split_folds(model.task.classes(support), settings.folds, seed)
    if len(folds) < 2:
        raise GradfixError("one sample is too few to select settings on; draw at least two")
    with SelectionContext(
        model, support, folds, seed=seed, settings=settings, more=more, aligned=aligned, teacher=teacher
    ) as context:
        yield ZERO_SHOT, judge.measure({}, context.clock(), judge.place(tau, 0.0))
        for name in methods:
            vector = permuted if name == PERMUTATION else tau
            if vector is None:
                raise GradfixError(f"{PERMUTATION}: there is no permuted task vector")
            yield from _measured(judge, context, baseline(name, vector, settings, seed), tell)
        for way in others:
            yield from _measured(judge, context, way, tell)
        if auto:
            tell(AUTO)
            yield from _auto(judge, context, alike)
        if few_shot:
            tell(FEW_SHOT)
            yield FEW_SHOT, chosen_along(judge, context, baseline(FEW_SHOT, tau, settings, seed))
        if oracle is not None and ORACLE in bounds:
            bound = AddVector(ORACLE, LABELS[ORACLE], vector=mask(tau, oracle), grid=settings.alphas)
            yield from _measured(judge, context, bound, tell)
        if oracle is not None and FULL in bounds:
            tell(FULL)
            full = AddVector(FULL, LABELS[FULL], vector=oracle, grid=(1.0,))
            yield FULL, arrived(judge, context, full, {"alpha": 1.0}, context.clock())


def _measured(
    judge: Judge, context: SelectionContext, way: Method, tell: Callable[[str], None]
) -> Iterator[tuple[str, Outcome]]:
    tell(way.name)
    yield way.name, chosen_along(judge, context, way)
    if judge.validation is not None and way.places(context, ()) is not None:
        seconds = context.clock()
        found = cross_validate(context, way, validation=judge.validation)
        yield way.name + BY_VALIDATION, arrived(judge, context, way, found.setting, seconds)
    best = judge.best(context, way)
    if best is not None:
        yield way.name + BEST_ON_TEST, best


def chosen_along(judge: Judge, context: SelectionContext, way: Method) -> Outcome:
    """Choose a way's setting on the samples, by their labels alone, and measure it.

    Args:
        judge: Who measures.
        context: The model and its samples.
        way: The way; where it trains, not training at all is a candidate, too.

    Returns:
        The outcome.
    """
    seconds = context.clock()
    found = cross_validate(context, way, asking=False)
    if isinstance(way, FineTune):
        still = cross_validate(context, nothing(judge.model.vector), asking=False)
        if still.calibrated_loss <= found.calibrated_loss:
            setting = {"learning_rate": 0.0, "finetune_steps": 0.0}
            return judge.measure(setting, seconds, judge.place(judge.model.vector, 0.0))
    return arrived(judge, context, way, found.setting, seconds)


def arrived(
    judge: Judge, context: SelectionContext, way: Method, setting: Setting, seconds: Callable[[], float]
) -> Outcome:
    """Measure where a way arrives.

    Args:
        judge: Who measures; the model is at θ_B afterwards.
        context: The model and its samples.
        way: The way.
        setting: Its candidate.
        seconds: How long its method took so far.

    Returns:
        The outcome.
    """
    try:
        delta, alpha = way.build(context, setting)
        judge.model.move(delta, alpha)
        return judge.measure(setting, seconds, judge.place(delta, alpha))
    finally:
        judge.model.restore()


def _auto(judge: Judge, context: SelectionContext, alike: float | None) -> Iterator[tuple[str, Outcome]]:
    seconds = context.clock()
    found = select(context, alike=alike)
    swap = controls(judge.model.vector, context.aligned, context.seed)
    for name, way in ((AUTO, found.way), (AUTO_CONTROL, found.way.control(swap))):
        outcome = arrived(judge, context, way, found.candidate.setting, seconds)
        yield name, replace(outcome, way=found.candidate.label)
        seconds = context.clock()
