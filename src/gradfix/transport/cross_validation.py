"""A method walked over its settings, each judged on labelled samples that had no part in it."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from gradfix.alignment.teacher import Teacher
from gradfix.evaluation.calibration import SPLITS, calibrated, doubted
from gradfix.evaluation.evaluate import EncodedRows, Evaluation
from gradfix.evaluation.target_model import TargetModel
from gradfix.progress import Progress, silent
from gradfix.recipes.settings import SelectionSettings
from gradfix.tasks import ModelTask
from gradfix.transport.candidates import Candidate, Key, Seen, Values, best_setting
from gradfix.transport.context import Held, SelectionContext, Setting
from gradfix.transport.methods import FineTune, Method, Revote
from gradfix.vectors.task_vector import TaskVector


@dataclass(frozen=True)
class _Part:
    """What judges a way that it had no part in.

    Attributes:
        held: Folds of samples.
        places: Positions of these.
        rows: The samples.
        asked: Numbers of the teacher's inputs among all that are asked; none where it is not asked on the way.
        inputs: These inputs.
    """

    held: Held
    places: Sequence[int]
    rows: EncodedRows
    asked: Sequence[int] = ()
    inputs: EncodedRows | None = None

    def of(self, candidate: Candidate) -> Seen:
        """Another method, uncalibrated, by what judges in this part: samples, then inputs where they were asked."""
        seen = Seen(candidate.losses, candidate.losses, candidate.scores).at(self.places)
        return seen.beside(candidate.taught.at(self.asked) if candidate.taught and self.asked else None)


@dataclass(frozen=True)
class _Look:
    """What a part says of one setting: its samples and, where the teacher is asked, its inputs."""

    samples: Evaluation
    inputs: Evaluation | None
    losses: Values
    scores: Values

    @classmethod
    def of(cls, found: Evaluation) -> "_Look":
        return cls(found, None, np.asarray(found.losses), np.asarray(found.scores))


class _Table:
    """What held-out samples said of every setting that was tried."""

    def __init__(self, parts: Sequence[_Part], task: ModelTask, teacher: Teacher | None = None) -> None:
        self.parts, self.task, self.teacher = parts, task, teacher
        self.classes: int | None = None
        """How many classes the losses are cross-entropies of, where logits don't tell."""
        self.count = sum(len(part.places) for part in parts)
        self.losses: dict[Key, Values] = {}
        self.scores: dict[Key, Values] = {}
        self.logits: dict[Key, Values] = {}
        self.statistics: dict[Key, torch.Tensor] = {}
        self.measured: dict[float, Evaluation] = {}
        self.answers: dict[Key, Values] = {}
        """Logits of the teacher's inputs, ``[asked, classes]``."""

    def add(self, setting: Setting, part: _Part, found: Evaluation) -> None:
        key, places = tuple(setting.items()), list(part.places)
        self.losses.setdefault(key, np.full(self.count, np.nan))[places] = found.losses
        self.scores.setdefault(key, np.full(self.count, np.nan))[places] = found.scores
        if found.logits is not None:
            empty = np.full((self.count, found.logits.shape[1]), np.nan)
            self.logits.setdefault(key, empty)[places] = found.logits.double().numpy()
        if found.statistics is not None:
            self._count(key, places, found.statistics)
        if setting.keys() == {"alpha"}:
            self.measured[setting["alpha"]] = found

    def add_answers(self, setting: Setting, part: _Part, found: Evaluation) -> None:
        key, logits = tuple(setting.items()), _logits(found)
        if logits is None:  # losses of a task of the caller's own that are no cross-entropies here
            return
        empty = np.full((sum(len(part.asked) for part in self.parts), logits.shape[1]), np.nan)
        self.answers.setdefault(key, empty)[list(part.asked)] = logits

    def _count(self, key: Key, places: Sequence[int], statistics: torch.Tensor) -> None:
        """Keep what a metric over all samples is made of: of a few samples alone it would say little."""
        empty = torch.full((self.count, statistics.shape[1]), torch.nan, dtype=statistics.dtype)
        known = self.statistics.setdefault(key, empty)
        known[places] = statistics
        if not known.isnan().any():
            self.scores[key] = self.task.totals(known).contributions

    def judged(self, key: Key) -> Values:
        """The losses after calibration."""
        places = [part.places for part in self.parts]
        if key in self.logits and not np.isnan(self.logits[key]).any():
            return calibrated(self.logits[key], self.losses[key], places)
        return self.losses[key] if self.classes is None else doubted(self.losses[key], self.classes, places)

    def taught(self, key: Key) -> Seen | None:
        """What the teacher's inputs say, where they were asked."""
        if self.teacher is None or key not in self.answers or np.isnan(self.answers[key]).any():
            return None
        asked = [part.asked for part in self.parts]
        return Seen(*self.teacher.judge(self.answers[key], range(len(self.answers[key])), asked))

    def choose(self, way: Method, settings: SelectionSettings, *, validated: bool) -> Candidate:
        """Choose among the settings that every part judged, and judge that choice itself.

        The smallest of many losses is too small by luck. So each part judges the setting that the other parts would
        choose: what is compared with other methods has no part in its own choice, however many settings there were.

        Args:
            way: The method.
            settings: The numbers of the selection.
            validated: Validation data judged, whose measurements serve again.

        Returns:
            The choice among its settings.
        """
        complete = [key for key, values in self.losses.items() if not np.isnan(values).any()]
        taught = {key: self.taught(key) for key in complete}
        asked = all(one is not None for one in taught.values())
        seen = {
            key: Seen(self.judged(key), self.losses[key], self.scores[key]).beside(
                taught[key] if asked else None
            )
            for key in complete
        }
        best = best_setting(seen, way.usual, settings)
        nested = Seen(*(values.copy() for values in seen[best]))
        everything = np.arange(len(nested.judged))
        for places in self._places():
            others = np.setdiff1d(everything, places)
            if not len(others):
                continue
            chosen = seen[
                best_setting({key: one.at(others) for key, one in seen.items()}, way.usual, settings)
            ]
            for own, found in zip(nested, chosen, strict=True):
                own[places] = found[places]
        curve = tuple(
            (dict(key), float(self.losses[key].mean()), float(self.scores[key].mean())) for key in complete
        )
        return Candidate(
            way.name,
            way.label,
            dict(best),
            self.losses[best],
            self.scores[best],
            nested.at(everything[: self.count]),
            curve,
            classes=self.logits[best].shape[1] if best in self.logits else self.classes,
            measured=self.measured if validated else {},
            taught=nested.at(everything[self.count :]) if asked else None,
        )

    def _places(self) -> list[Sequence[int]]:
        """What judges, by part, inputs after samples; what came in one part is dealt into several."""
        if len(self.parts) > 1:
            return [[*part.places, *(self.count + number for number in part.asked)] for part in self.parts]
        return [range(first, self.count, SPLITS) for first in range(min(SPLITS, self.count))]


def _look(model: TargetModel, part: _Part, teacher: Teacher | None) -> _Look:
    """Measure the model where it stands."""
    found = _Look.of(model.evaluate(part.rows, logits=True))
    if part.inputs is None or teacher is None:
        return found
    told = model.evaluate(part.inputs, logits=True)
    logits = _logits(told)
    if logits is None:
        return found
    by_answers = teacher.judge(logits, part.asked, ())
    losses = np.concatenate([found.losses, by_answers.losses])
    return _Look(found.samples, told, losses, np.concatenate([found.scores, by_answers.scores]))


def _logits(found: Evaluation) -> Values | None:
    return None if found.logits is None else found.logits.double().numpy()


def cross_validate(
    context: SelectionContext,
    way: Method,
    *,
    validation: EncodedRows | None = None,
    rival: Candidate | None = None,
    ahead: Candidate | None = None,
    asking: bool = True,
    progress: Progress = silent,
) -> Candidate:
    """Walk a way and judge every setting on samples that had no part in it: each method and each baseline alike.

    Args:
        context: The model and its samples.
        way: What to walk.
        validation: Samples to judge on; without them the support set is cross-fitted.
        rival: Where re-votes or training set out: a walk that only leads away from it is given up early.
        ahead: The best of other trainings: a walk that it leaves far behind is given up early, too.
        asking: Let the tuned source's answers judge, too, where the context has them; never beside validation data.
        progress: Told the parts done.

    Returns:
        The best setting by the rule of :func:`gradfix.transport.candidates.best_setting`, with each sample's loss.
    """
    asking = asking and validation is None and context.believed is not None
    teacher = context.believed if asking else None
    table = _Table(_parts(context, way, validation, asking=asking), context.model.task, teacher)
    if isinstance(way, FineTune):
        _search_training(context, way, table, rival, ahead, progress)
    else:
        _walk_parts(context, way, table, table.parts, rival, progress)
    if not table.logits:
        table.classes = context.classes()
    candidate = table.choose(way, context.settings, validated=validation is not None)
    if not asking or candidate.taught is not None:
        return candidate
    return replace(candidate, taught=_ask(context, way, candidate.setting))


def _ask(context: SelectionContext, way: Method, setting: Setting) -> Seen | None:
    """Ask the teacher about a place, of every input as it is without it: α costs no passes over inputs but the best."""
    parts = _asked_parts(context, [held for held in context.halves if context.asked(held)])
    table = _Table(parts, context.model.task, context.believed)
    places = [(*way.build(context, setting, part.held), context.encoded_inputs(part.held)) for part in parts]
    try:
        measured = context.model.evaluate_each(places, logits=True)
        for part, found in zip(parts, measured, strict=True):
            table.add_answers(setting, part, found)
    finally:
        context.model.restore()
    return table.taught(tuple(setting.items()))


def _parts(
    context: SelectionContext, way: Method, validation: EncodedRows | None, *, asking: bool
) -> list[_Part]:
    """Who judges: validation data, all samples where none shaped the way, else each part what the others shaped."""
    if validation is not None:
        return [_Part((), range(sum(map(len, validation.positions))), validation)]
    if not way.shaped(context):
        return [_Part((), range(len(context.support)), context.encoded(()))]
    walked = isinstance(way, FineTune | Revote)
    if walked and asking:
        return _asked_parts(context, context.halves)
    return [
        _Part(held, context.places(held), context.encoded(held))
        for held in (context.halves if walked else context.singles)
    ]


def _asked_parts(context: SelectionContext, parts: Sequence[Held]) -> list[_Part]:
    """Held-out folds, each with the inputs that the teacher is asked with them."""
    return [
        _Part(
            held,
            context.places(held),
            context.encoded(held),
            context.asked(held),
            context.encoded_inputs(held) if context.asked(held) else None,
        )
        for held in parts
    ]


def _walk_parts(
    context: SelectionContext,
    way: Method,
    table: _Table,
    parts: Sequence[_Part],
    rival: Candidate | None,
    progress: Progress,
    *,
    ahead: Candidate | None = None,
    whole: bool = False,
) -> list[float]:
    """Measure settings of a way: all if ``whole``, else of re-votes and training those that the first part goes to.

    Returns:
        The mean loss of each setting that was measured, in the order of the walk.
    """
    if context.model.streams and (found := _measure_at_once(context, way, table, parts)) is not None:
        progress(f"trying {way.label}", len(parts), len(parts), "parts")
        return found
    sums: list[float] = []
    for number, part in enumerate(parts):
        losses: list[float] = []
        measured: list[_Look] = []
        try:
            for setting, seen in _measured(context, way, table, part):
                measured.append(seen)
                table.add(setting, part, seen.samples)
                if seen.inputs is not None:
                    table.add_answers(setting, part, seen.inputs)
                losses.append(float(seen.losses.sum()))
                if number and len(losses) == len(sums):
                    break
                steps = not whole and not number and isinstance(way, FineTune | Revote)
                if steps and (
                    _hopeless(measured, part, rival, context.settings, training=isinstance(way, FineTune))
                    or (
                        len(measured) > context.settings.patience
                        and _behind(measured, part, ahead, context.settings)
                    )
                ):
                    break
        finally:
            context.model.restore()
        sums = [(sums[index] if number else 0.0) + loss for index, loss in enumerate(losses)]
        progress(f"trying {way.label}", number + 1, len(parts), "parts")
    count = sum(len(part.places) + len(part.asked) for part in parts)
    return [loss / count for loss in sums]


def _measured(
    context: SelectionContext, way: Method, table: _Table, part: _Part
) -> Iterator[tuple[Setting, _Look]]:
    """Walk through the candidates, each measured on a part's samples.

    Places that are known beforehand, and training from θ_B, are asked for by several methods; a search for training
    steps goes further again and again. What was measured serves again, and training begins only where it was not.

    Yields:
        Each candidate with its measurement.
    """
    model = context.model
    places = way.places(context, part.held)
    if places is not None:
        for setting, delta, alpha in places:
            yield setting, _Look.of(context.evaluate(delta, alpha, part.rows))
        return
    if not isinstance(way, FineTune) or way.start.way is not None:
        for setting in way.candidates(context, part.held):
            yield setting, _look(model, part, table.teacher)
        return
    (rate,) = way.rates
    # Whoever asks first: others may ask for what the teacher says, too.
    (judging,) = _asked_parts(context, [part.held]) if context.asked(part.held) else [part]
    walk: Iterator[Setting] | None = None
    reached = 0

    def arrive(number: int) -> _Look:
        nonlocal walk, reached
        if walk is None:
            walk, reached = replace(way, stops=way.stops[number:]).candidates(context, part.held), number - 1
        for _ in range(number - reached):  # past stops that were known
            next(walk)
        reached = number
        return _look(model, judging, context.believed)

    for number, stop in enumerate(way.stops):
        found = context.remembered(("training", rate, part.held, stop), (part.rows,), partial(arrive, number))
        seen = found if part.inputs is not None else _Look.of(found.samples)
        yield {"learning_rate": rate, "finetune_steps": float(stop)}, seen


def _measure_at_once(
    context: SelectionContext, way: Method, table: _Table, parts: Sequence[_Part]
) -> list[float] | None:
    """Measure all settings of all parts while the model's weights pass once; None for a way that has to be walked."""
    wanted: list[tuple[Setting, TaskVector, float, _Part]] = []
    for part in parts:
        places = way.places(context, part.held)
        if places is None:
            return None
        wanted += [(setting, delta, alpha, part) for setting, delta, alpha in places]
    sums: dict[Key, float] = {}
    try:
        found = context.model.evaluate_each(
            [(delta, alpha, part.rows) for _, delta, alpha, part in wanted], logits=True
        )
        for (setting, _, _, part), measured in zip(wanted, found, strict=True):
            table.add(setting, part, measured)
            key = tuple(setting.items())
            sums[key] = sums.get(key, 0.0) + len(part.places) * measured.loss
    finally:
        context.model.restore()
    count = sum(len(part.places) for part in parts)
    return [loss / count for loss in sums.values()]


def _hopeless(
    measured: Sequence[_Look],
    part: _Part,
    rival: Candidate | None,
    settings: SelectionSettings,
    *,
    training: bool,
) -> bool:
    """Whether more steps are not worth their time: they make it worse, or what is ahead is out of reach."""
    losses = [float(one.losses.mean()) for one in measured]
    scores = [float(one.scores.mean()) for one in measured]
    if rival is not None:
        theirs = part.of(rival)
        losses.insert(0, float(theirs.losses.mean()))
        scores.insert(0, float(theirs.scores.mean()))
    if measured[-1].samples.statistics is not None:
        scores = [-loss for loss in losses]  # a metric over all samples says little of a part
    # Each stop of training takes longer than all before it: from the second on one that is worse is enough.
    patience = 1 if training and len(measured) > 1 else settings.patience
    recent = losses[-patience - 1 :]
    worse = len(recent) > patience and recent == sorted(set(recent))
    if worse and scores[-1] <= max(scores[:-1]):
        return True
    return _behind(measured, part, rival, settings)


def _behind(
    measured: Sequence[_Look], part: _Part, other: Candidate | None, settings: SelectionSettings
) -> bool:
    """Whether another method is out of reach: further ahead than luck, and than what the last steps gained."""
    if other is None or len(measured) < 2:
        return False
    last, theirs = measured[-1], part.of(other)
    # Samples come first, and inputs may be asked of one alone.
    both = min(len(theirs.losses), len(last.losses))
    behind = last.losses[:both] - theirs.losses[:both]
    gap, error = float(behind.mean()), float(behind.std()) / math.sqrt(len(behind))
    reach = 2 * max(float(measured[-2].losses.mean() - last.losses.mean()), 0.0)
    # A metric over all samples says little of a part.
    lower = last.samples.statistics is not None or bool(last.scores.mean() < theirs.scores.mean())
    return gap > max(settings.behind * error, reach) and lower


def _search_training(
    context: SelectionContext,
    way: FineTune,
    table: _Table,
    rival: Candidate | None,
    ahead: Candidate | None,
    progress: Progress,
) -> None:
    """Search a learning rate and steps on half of the parts; the other half joins for the best rate alone.

    A walk that is still getting better at its last stop asks for a larger rate first, which is cheaper than more
    steps, and only then for more steps; one that gets worse from the start asks for a smaller one.
    """
    settings = context.settings
    if len(way.stops) == 1:  # the steps were given
        for rate in way.rates:
            walk = replace(way, rates=(rate,))
            _walk_parts(context, walk, table, table.parts, rival, progress, ahead=ahead)
        return
    half = (len(table.parts) + 1) // 2
    searching, joining = table.parts[:half], table.parts[half:]
    tried: dict[float, dict[int, float]] = {}

    def attempt(rate: float, stops: Sequence[int]) -> float:
        walk = replace(way, rates=(rate,), stops=stops)
        losses = _walk_parts(context, walk, table, searching, rival, progress, ahead=ahead)
        tried.setdefault(rate, {}).update(zip(stops, losses, strict=False))
        return min(losses)

    first, *_ = way.rates
    start = (
        math.inf
        if rival is None
        else float(np.concatenate([part.of(rival).losses for part in searching]).mean())
    )
    upwards = attempt(first, way.stops) < start
    ladder = sorted({*way.rates, *settings.more_rates}, reverse=not upwards)
    lowest = min(tried[first].values())
    for rate in ladder[ladder.index(first) + 1 :]:
        found = attempt(rate, way.stops)
        if found > lowest:
            break
        lowest = found
    best = min(tried, key=lambda rate: min(tried[rate].values()))
    while (steps := max(tried[best])) < way.most and min(tried[best].values()) == tried[best][steps]:
        if steps < max(way.stops):  # given up as hopeless
            break
        attempt(best, (min(2 * steps, way.most),))
    if joining:
        stops = sorted(tried[best])
        turn = min(stops, key=lambda stop: tried[best][stop])
        walk = replace(way, rates=(best,), stops=stops[: stops.index(turn) + 2])
        _walk_parts(context, walk, table, joining, None, progress, whole=True)
