"""Which way to go: every candidate is judged on labelled samples that had no part in it, the simplest one winning.

Ways that no label shaped (nothing, naive addition, an aligned τ) come first: they have one number to choose and hardly
overfit, so the smallest loss decides; that number stays 1, as far as the fine-tune itself went, unless another one is
better beyond luck. A way that labels shaped (masks, re-votes, training) must then beat the best of
these by more than the standard error of the paired difference: with few samples, luck is as large as what it gains.

Losses are compared after calibration, and the score may overrule them: an overconfident model has a high loss and a
high accuracy at once, and it is the score that people want (see :mod:`gradfix.evaluation.calibration`).
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gradfix.evaluation.calibration import calibrated
from gradfix.evaluation.evaluate import EncodedRows, Evaluation
from gradfix.evaluation.intervals import Interval, paired_samples
from gradfix.progress import Progress, silent
from gradfix.recipes.settings import SelectionSettings
from gradfix.transport.folds import AlphaChoice, AlphaPoint
from gradfix.transport.methods import (
    AddVector,
    FineTune,
    Held,
    MaskVector,
    Method,
    Revote,
    SelectionContext,
    Setting,
    StartingPoint,
)
from gradfix.vectors.task_vector import TaskVector

NOTHING = "nothing"
OVERRULES = 2.0
"""Standard errors of a paired difference of scores from which it overrules the losses."""

Values = npt.NDArray[np.float64]


class Seen(NamedTuple):
    """What held-out samples say of one setting: calibrated losses, losses as they are, and scores, one a sample."""

    judged: Values
    losses: Values
    scores: Values


Key = tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Candidate:
    """One way with its best setting, as held-out samples judged it.

    Attributes:
        name: The way's.
        label: What people read.
        setting: The best setting.
        losses: Each sample's loss there.
        judged: The same after calibration: what is compared. As ``losses`` for a task without class scores.
        scores: Each sample's score there.
        curve: Every setting tried, with mean loss and score.
        measured: By α, what validation data gave where α is all there is to set.
    """

    name: str
    label: str
    setting: Setting
    losses: Values
    judged: Values
    scores: Values
    curve: tuple[tuple[Setting, float, float], ...]
    measured: Mapping[float, Evaluation] = field(default_factory=dict)

    @classmethod
    def given(cls, way: Method, setting: Setting) -> "Candidate":
        """Stand for a setting that nobody chose and nothing measured.

        Args:
            way: The way.
            setting: What was given.

        Returns:
            A candidate without losses.
        """
        return cls(way.name, way.label, setting, np.empty(0), np.empty(0), np.empty(0), ())

    @property
    def seen(self) -> Seen:
        """What is compared."""
        return Seen(self.judged, self.losses, self.scores)

    @property
    def loss(self) -> float:
        """Mean loss at the best setting."""
        return float(self.losses.mean())

    @property
    def score(self) -> float:
        """Mean score at the best setting."""
        return float(self.scores.mean())

    @property
    def calibrated_loss(self) -> float:
        """Mean calibrated loss at the best setting."""
        return float(self.judged.mean())

    @property
    def alpha(self) -> float:
        """α of the best setting; 1 where it has none."""
        return self.setting.get("alpha", 1.0)


@dataclass(frozen=True)
class Choice:
    """The way that was chosen, and why.

    Attributes:
        way: It.
        candidate: Its measurement.
        candidates: All that were tried, in the order tried.
        ways: Their ways, in the same order.
        why: One sentence.
        chosen_on: ``"validation"``, ``"cross-fit"`` or ``"given"``.
    """

    way: Method
    candidate: Candidate
    candidates: tuple[Candidate, ...]
    ways: tuple[Method, ...]
    why: str
    chosen_on: str

    @property
    def runner_up(self) -> Candidate | None:
        """The best of the other candidates, by calibrated loss; None where there is no other."""
        others = [one for one in self.candidates if one is not self.candidate]
        return min(others, key=lambda one: one.calibrated_loss, default=None)

    @property
    def over_runner_up(self) -> Interval | None:
        """The difference of scores to the runner-up, paired by sample."""
        second = self.runner_up
        return (
            None if second is None else paired_samples(self.candidate.scores.tolist(), second.scores.tolist())
        )

    def alpha(self, alpha: float) -> AlphaChoice:
        """Give the curve of the chosen way as a choice of α.

        Args:
            alpha: With which its vector is added.

        Returns:
            The choice; its curve holds the best point of each α.
        """
        best: dict[float, AlphaPoint] = {}
        for setting, loss, score in self.candidate.curve:
            value = setting.get("alpha", alpha)
            if value not in best or loss < best[value].loss:
                best[value] = AlphaPoint(value, loss, score)
        curve = tuple(best[value] for value in sorted(best))
        return AlphaChoice(alpha, self.chosen_on, len(self.candidate.losses), curve)

    def steps(self) -> list[dict[str, Any]] | None:
        """Give the losses step by step, where the chosen way has steps.

        Returns:
            JSON, a mapping a step; None for a way without.
        """
        found = [
            {"step": int(setting["steps"]), "loss": loss, "score": score, "kept": None}
            for setting, loss, score in self.candidate.curve
            if "steps" in setting
        ]
        return found or None


@dataclass(frozen=True)
class _Part:
    """Samples that judge what they had no part in: their folds, their positions, and themselves, encoded."""

    held: Held
    places: Sequence[int]
    rows: EncodedRows


class _Table:
    """What held-out samples said of every setting that was tried."""

    def __init__(self, parts: Sequence[_Part]) -> None:
        self.parts = parts
        self.count = sum(len(part.places) for part in parts)
        self.losses: dict[Key, Values] = {}
        self.scores: dict[Key, Values] = {}
        self.logits: dict[Key, Values] = {}
        self.measured: dict[float, Evaluation] = {}

    def add(self, setting: Setting, part: _Part, found: Evaluation) -> None:
        key, places = tuple(setting.items()), list(part.places)
        self.losses.setdefault(key, np.full(self.count, np.nan))[places] = found.losses
        self.scores.setdefault(key, np.full(self.count, np.nan))[places] = found.scores
        if found.logits is not None:
            empty = np.full((self.count, found.logits.shape[1]), np.nan)
            self.logits.setdefault(key, empty)[places] = found.logits.double().numpy()
        if setting.keys() == {"alpha"}:
            self.measured[setting["alpha"]] = found

    def judged(self, key: Key) -> Values:
        """The losses after calibration."""
        if key not in self.logits:
            return self.losses[key]
        return calibrated(self.logits[key], self.losses[key], [part.places for part in self.parts])

    def candidate(self, way: Method, settings: SelectionSettings, *, validated: bool) -> Candidate:
        """Choose among the settings that every part judged."""
        complete = [key for key, values in self.losses.items() if not np.isnan(values).any()]
        seen = {key: Seen(self.judged(key), self.losses[key], self.scores[key]) for key in complete}
        best = min(complete, key=lambda key: float(seen[key].judged.mean()))
        scored = max(complete, key=lambda key: float(seen[key].scores.mean()))
        if _score_error(seen[best].scores, seen[scored].scores) > OVERRULES:
            best = scored
        usual = next((key for key in complete if dict(key) == way.usual), None)
        if usual is not None:
            lowest = min(complete, key=lambda key: float(seen[key].losses.mean()))
            rivals, best = (best, lowest), usual
            for rival in rivals:
                best = rival if _beats(seen[best], seen[rival], settings) else best
        curve = tuple(
            (dict(key), float(self.losses[key].mean()), float(self.scores[key].mean())) for key in complete
        )
        return Candidate(
            way.name,
            way.label,
            dict(best),
            seen[best].losses,
            seen[best].judged,
            seen[best].scores,
            curve,
            self.measured if validated else {},
        )


def cross_validate(
    context: SelectionContext,
    way: Method,
    *,
    validation: EncodedRows | None = None,
    rival: Candidate | None = None,
    progress: Progress = silent,
) -> Candidate:
    """Walk a way and judge every setting on samples that had no part in it: each method and each baseline alike.

    Args:
        context: The model and its samples.
        way: What to walk.
        validation: Samples to judge on; without them the support set is cross-fitted.
        rival: Where re-votes or training set out: a walk that only leads away from it is given up early.
        progress: Told the parts done.

    Returns:
        The best setting by the rule of :mod:`gradfix.transport.selection`, with each sample's loss.
    """
    table = _Table(_parts(context, way, validation))
    if isinstance(way, FineTune):
        _search_training(context, way, table, rival, progress)
    else:
        _walk(context, way, table, progress, rival)
    return table.candidate(way, context.settings, validated=validation is not None)


def _parts(context: SelectionContext, way: Method, validation: EncodedRows | None) -> list[_Part]:
    """Who judges: validation data, all samples where none shaped the way, else each part what the others shaped."""
    if validation is not None:
        return [_Part((), range(sum(map(len, validation.positions))), validation)]
    if not way.labelled:
        return [_Part((), range(len(context.support)), context.encoded(()))]
    parts = context.halves if isinstance(way, FineTune | Revote) else context.singles
    return [_Part(held, context.places(held), context.encoded(held)) for held in parts]


def _walk(
    context: SelectionContext, way: Method, table: _Table, progress: Progress, rival: Candidate | None = None
) -> list[float]:
    """Measure every setting of a way; of training, as many as the first part found worth while.

    Returns:
        The mean loss of each setting that was measured, in the order of the walk.
    """
    means: list[float] = []
    for number, part in enumerate(table.parts):
        measured: list[Evaluation] = []
        try:
            for setting in way.candidates(context, part.held):
                measured.append(context.model.evaluate(part.rows, logits=True))
                table.add(setting, part, measured[-1])
                if number and len(measured) == len(means):
                    break
                new = not number and isinstance(way, FineTune | Revote)
                if new and _hopeless(measured, part, rival, context.settings):
                    break
        finally:
            context.model.restore()
        weight = len(part.places) / table.count
        means = [(means[index] if number else 0.0) + weight * one.loss for index, one in enumerate(measured)]
        progress(f"trying {way.label}", number + 1, len(table.parts), "parts")
    return means


def _hopeless(
    measured: Sequence[Evaluation], part: _Part, rival: Candidate | None, settings: SelectionSettings
) -> bool:
    """Whether more steps are not worth their time: they make it worse, or what is ahead is out of reach."""
    places = list(part.places)
    losses, scores = [one.loss for one in measured], [one.score for one in measured]
    if rival is not None:
        losses.insert(0, float(rival.losses[places].mean()))
        scores.insert(0, float(rival.scores[places].mean()))
    recent = losses[-settings.patience - 1 :]
    worse = len(recent) > settings.patience and recent == sorted(set(recent))
    if worse and scores[-1] <= max(scores[:-1]):
        return True
    if rival is None or len(measured) < 2:
        return False
    behind = np.asarray(measured[-1].losses) - rival.losses[places]
    gap, error = float(behind.mean()), float(behind.std()) / math.sqrt(len(behind))
    reach = 2 * max(measured[-2].loss - measured[-1].loss, 0.0)
    return gap > max(settings.behind * error, reach) and scores[-1] < scores[0]


def _search_training(
    context: SelectionContext, way: FineTune, table: _Table, rival: Candidate | None, progress: Progress
) -> None:
    """Try learning rates and steps; where the best is at an end of what was tried, go on there.

    A walk that is still getting better at its last stop asks for a larger rate first, which is cheaper than more
    steps, and only then for more steps; one that gets worse from the start asks for a smaller one.
    """
    settings = context.settings

    def attempt(rate: float, stops: Sequence[int]) -> float:
        means = _walk(context, replace(way, rates=(rate,), stops=stops), table, progress, rival)
        return min(means)

    found = {rate: attempt(rate, way.stops) for rate in way.rates[:1]}
    if len(way.stops) == 1:  # the steps were given
        for rate in way.rates[1:]:
            attempt(rate, way.stops)
        return
    ladder = sorted({*way.rates, *settings.more_rates})
    start = math.inf if rival is None else rival.loss
    first = way.rates[0]
    upwards = found[first] < start
    rates = [rate for rate in ladder if (rate > first) == upwards and rate != first]
    for rate in rates if upwards else reversed(rates):
        found[rate] = attempt(rate, way.stops)
        if found[rate] > min(found.values()):
            break
    best = min(found, key=lambda rate: found[rate])
    steps = max(way.stops)
    while steps < settings.most_steps and table.losses.keys() and _at_end(table, best, steps):
        steps = min(2 * steps, settings.most_steps)
        attempt(best, (steps,))


def _at_end(table: _Table, rate: float, steps: int) -> bool:
    """Whether the best of a rate is at the most steps that were tried."""
    means = {
        dict(key)["finetune_steps"]: float(values.mean())
        for key, values in table.losses.items()
        if dict(key)["learning_rate"] == rate and not np.isnan(values).any()
    }
    return bool(means) and min(means, key=lambda step: means[step]) == steps


def select(
    context: SelectionContext,
    aligned: TaskVector | None = None,
    *,
    alike: float | None = None,
    steps: int | None = None,
    training: bool = True,
    most_training: int | None = None,
    validation: EncodedRows | None = None,
    progress: Progress = silent,
) -> Choice:
    """Choose between nothing, naive addition, GradFix, confident, aligned, re-voting and training on the samples.

    Args:
        context: The model and its samples; at least two folds unless ``validation`` is given.
        aligned: τ' of an alignment, a task vector; None without one.
        alike: How alike the two bases are, as :func:`gradfix.vectors.similarity.likeness` tells it; None if unknown.
        steps: Most re-votes to try; 0 for none, as many as the settings say if None.
        training: Also try a few steps of training from the best way that no label shaped: from θ_B where that is
            nothing, which is few-shot fine-tuning.
        most_training: Steps of training at most, in place of the settings'.
        validation: See :func:`cross_validate`.
        progress: Told what is being tried.

    Returns:
        The choice.
    """
    tau, settings = context.model.vector, context.settings
    found: list[tuple[Method, Candidate]] = []

    def attempt(way: Method, rival: Candidate | None = None) -> tuple[Method, Candidate]:
        candidate = cross_validate(context, way, validation=validation, rival=rival, progress=progress)
        found.append((way, candidate))
        return way, candidate

    def better(best: tuple[Method, Candidate], new: tuple[Method, Candidate]) -> tuple[Method, Candidate]:
        return new if _beats(best[1].seen, new[1].seen, settings) else best

    best = attempt(nothing(tau))
    naive = AddVector("naive", "naive addition", vector=tau, grid=settings.alphas)
    if aligned is not None:
        straight = AddVector("aligned", "aligned addition", vector=aligned, grid=settings.aligned_alphas)
        best = _simpler(best, attempt(straight), settings)
    # Where the bases are strangers, τ's own coordinates mean nothing: that must be shown wrong beyond luck.
    strangers = alike is not None and alike < settings.apart
    best = _simpler(best, attempt(naive), settings, beyond_luck=strangers)
    start = StartingPoint() if best[1].name == NOTHING else StartingPoint(best[0], best[1].setting)
    here = best
    for way in _shaped(context, best, start, settings.revotes if steps is None else steps):
        here = better(here, attempt(way, best[1] if isinstance(way, Revote) else None))
    if training:
        trained = attempt(training_from(start, best[1], settings, most_training), best[1])
        if start.way is not None and alike is not None and alike < settings.close:
            # Little may carry over from a base that is not alike: then the samples alone can do better.
            alone = training_from(StartingPoint(), None, settings, most_training)
            trained = _simpler(trained, attempt(alone, found[0][1]), settings)
        here = better(here, trained)
    candidates = tuple(one for _, one in found)
    chosen_on = "cross-fit" if validation is None else "validation"
    ways = tuple(way for way, _ in found)
    return Choice(*here, candidates, ways, _why(here[1], candidates, chosen_on), chosen_on)


def nothing(tau: TaskVector) -> AddVector:
    """Make the way that stays at θ_B.

    Args:
        tau: Any vector of the target.

    Returns:
        The way.
    """
    return AddVector(NOTHING, "the new base as it is", vector=tau, grid=(0.0,))


def _shaped(
    context: SelectionContext, best: tuple[Method, Candidate], start: StartingPoint, steps: int
) -> Iterator[Method]:
    """The ways that votes shape: masks, and re-votes from the best way that no label shaped."""
    tau, settings = context.model.vector, context.settings
    yield MaskVector("gradfix", "GradFix", vector=tau, grid=settings.alphas)
    if best[1].name == "naive" and context.vote == "majority":
        # Votes where the model will be, rather than where it was.
        yield MaskVector(
            "confident",
            "confident mask, votes at θ_B + τ",
            vector=tau,
            grid=(best[1].setting["alpha"],),
            at=start,
            strategy="confident",
            levels=settings.levels,
        )
    if steps:
        length = settings.step_from_base if start.way is None else settings.step_from_start
        label = "re-voting" if start.way is None else f"{best[1].label}, then re-voting"
        yield Revote("re-voted", label, vector=tau, step=length, count=steps, start=start)


def training_from(
    start: StartingPoint, candidate: Candidate | None, settings: SelectionSettings, most: int | None = None
) -> FineTune:
    """Make the way that trains on the samples: the same from θ_B, as a baseline, and from a transported model.

    Args:
        start: Where from.
        candidate: Of the start; None for θ_B.
        settings: Rates and stops.
        most: Steps at most, in place of the settings'.

    Returns:
        The way.
    """
    stops = settings.stops if most is None else (*(stop for stop in settings.stops if stop < most), most)
    if start.way is None or candidate is None:
        return FineTune(
            "few-shot", "few-shot fine-tuning", start=StartingPoint(), rates=settings.rates, stops=stops
        )
    label = f"{candidate.label}, then fine-tuning"
    return FineTune("fine-tuned", label, start=start, rates=settings.rates, stops=stops)


def _simpler(
    best: tuple[Method, Candidate],
    new: tuple[Method, Candidate],
    settings: SelectionSettings,
    *,
    beyond_luck: bool = False,
) -> tuple[Method, Candidate]:
    """Take the smaller loss, unless what counts more says otherwise beyond luck; the first of equals does less."""
    sign = _verdict(best[1].seen, new[1].seen, settings)
    within = sign == 0 and not beyond_luck and new[1].loss < best[1].loss
    return new if sign > 0 or within else best


def _score_error(old: Values, new: Values) -> float:
    """The paired difference of scores in standard errors under no difference (McNemar's, for right and wrong)."""
    gain = new - old
    error = math.sqrt(float(np.square(gain).sum()))
    return float(gain.sum()) / error if error else 0.0


def _beats(old: Seen, new: Seen, settings: SelectionSettings) -> bool:
    """Whether the new one is better beyond luck and rounding, in whatever speaks clearly first."""
    return (_verdict(old, new, settings) or _loss_sign(old.losses, new.losses, settings)) > 0


def _verdict(old: Seen, new: Seen, settings: SelectionSettings) -> int:
    """Which is better beyond luck, by scores, else by calibrated losses: 1 the new one, −1 the old one."""
    # Calibration says nothing where models are no better than chance; who calls may then ask the losses as they are.
    contradiction = _score_error(old.scores, new.scores)
    if abs(contradiction) > OVERRULES:
        return 1 if contradiction > 0 else -1
    return _loss_sign(old.judged, new.judged, settings)


def _loss_sign(old: Values, new: Values, settings: SelectionSettings) -> int:
    """The sign of the mean fall of the same samples' losses; 0 within rounding, or its standard error."""
    gain = old - new
    error = float(gain.std(ddof=1)) / math.sqrt(len(gain)) if len(gain) > 1 else math.inf
    mean = float(gain.mean())
    if abs(mean) <= max(settings.luck * error, settings.rounding * float(np.abs(old).mean())):
        return 0
    return 1 if mean > 0 else -1


def _why(chosen: Candidate, candidates: Sequence[Candidate], chosen_on: str) -> str:
    """Say in one sentence what decided."""
    judged = (
        f"{len(chosen.losses)} {'validation' if chosen_on == 'validation' else 'held-out support'} samples"
    )
    others = ", ".join(f"{one.label} {one.judged.mean():.3f}" for one in candidates if one is not chosen)
    smaller = [one for one in candidates if one.judged.mean() < chosen.judged.mean()]
    beaten = (
        f"; {smaller[0].label} had {smaller[0].judged.mean():.3f}, a difference that can be luck"
        if smaller
        else ""
    )
    return f"{chosen.label} was chosen: its mean loss on {judged} is {chosen.judged.mean():.3f} ({others}){beaten}."
