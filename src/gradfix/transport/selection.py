"""Which way to go: every candidate is judged on samples that had no part in it, the simplest one winning.

Labelled samples judge and, where it was asked, what the tuned source says of further inputs: a handful of labels can't
tell ways apart that differ by ten points (see :mod:`gradfix.alignment.teacher`). Labels that are sure decide alone.

Ways that no label shaped (nothing, naive addition, an aligned τ) come first: they have one number to choose and hardly
overfit, so the smallest loss decides; that number stays 1, as far as the fine-tune itself went, unless another one is
better beyond luck. Between close releases it takes samples that are sure to leave the fine-tune out. A way that labels
shaped (masks, re-votes, training) must then beat the best of these by more than the standard error of the paired
difference: with few samples, luck is as large as what it gains.

Losses are compared after calibration, and the score may overrule them: an overconfident model has a high loss and a
high accuracy at once, and it is the score that people want (see :mod:`gradfix.evaluation.calibration`).
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from gradfix.evaluation.evaluate import EncodedRows
from gradfix.progress import Progress, silent
from gradfix.recipes.settings import SelectionSettings
from gradfix.transport.candidates import Candidate, Choice, loss_sign, preferred, verdict
from gradfix.transport.context import SelectionContext, StartingPoint
from gradfix.transport.cross_validation import cross_validate
from gradfix.transport.methods import AddVector, FineTune, MaskVector, Method, Revote
from gradfix.vectors.task_vector import TaskVector

NOTHING = "nothing"


ALIGNED = {
    "activations": ("aligned", "aligned addition"),
    "answers": ("answers", "a fit to the tuned model's answers"),
}
"""Names and labels of what alignment makes, by what it was made of."""


def select(
    context: SelectionContext,
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
        context: The model, its samples, and what alignment made of τ, by activations, by the source's answers or by
            both; at least two folds unless ``validation`` is given.
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
    tau, settings, aligned = context.model.vector, context.settings, context.aligned
    found: list[tuple[Method, Candidate]] = []

    def attempt(
        way: Method, rival: Candidate | None = None, ahead: Candidate | None = None
    ) -> tuple[Method, Candidate]:
        candidate = cross_validate(
            context, way, validation=validation, rival=rival, ahead=ahead, progress=progress
        )
        found.append((way, candidate))
        return way, candidate

    def better(best: tuple[Method, Candidate], new: tuple[Method, Candidate]) -> tuple[Method, Candidate]:
        sign = preferred(best[1], new[1], settings)
        # Calibration says nothing where models are no better than chance.
        sign = sign or loss_sign(best[1].all_seen.losses, new[1].all_seen.losses, settings)
        return new if sign > 0 else best

    best = attempt(nothing(tau))
    if best[1].taught is not None:
        settings = replace(settings, luck=settings.luck_of_many)
    elif _at_chance(best[1], context):
        # What is no better than guessing can't be lost: caution would only lose what others gain.
        settings = replace(settings, luck=0.0)
    naive = AddVector("naive", "naive addition", vector=tau, grid=settings.alphas)
    straight = []
    for one in (aligned, aligned.answers) if aligned is not None else ():
        if one is not None:
            name, label = ALIGNED["answers" if one.method == "answers" else "activations"]
            straight.append(attempt(AddVector(name, label, vector=one.vector, grid=settings.aligned_alphas)))
    if not context.model.apart:  # else τ has no place in the target
        straight.append(attempt(naive))
    best = _straight(best, straight, alike, settings, context.settings)
    close = alike is not None and alike >= settings.close
    if close and _loss_of(best) > _loss_of(found[0]):
        # Samples that would rather have no fine-tune at all can't tell what is better than it.
        settings = replace(settings, luck=settings.certain)
    unshaped, start, here = tuple(found), _start(*best), best
    direction = aligned.vector if aligned is not None and context.model.apart else tau
    for way in _shaped(context, direction, best, start, settings.revotes if steps is None else steps):
        here = better(here, attempt(way, best[1] if isinstance(way, Revote) else None))
    if training:
        first, *more = _training_starts(best, unshaped, alike, settings)
        trained = attempt(training_from(start, first[1], settings, most_training), first[1])
        for way, candidate in more:
            again = training_from(_start(way, candidate), candidate, settings, most_training)
            if again.start.way is not None:
                again = replace(again, name=f"{candidate.name}-fine-tuned")
            trained = _simpler(trained, attempt(again, candidate, trained[1]), settings)
        here = better(here, trained)
    candidates = tuple(one for _, one in found)
    chosen_on = "cross-fit" if validation is None else "validation"
    ways = tuple(way for way, _ in found)
    return Choice(*here, candidates, ways, _why(here[1], candidates, chosen_on), chosen_on)


def _straight(
    best: tuple[Method, Candidate],
    straight: Sequence[tuple[Method, Candidate]],
    alike: float | None,
    settings: SelectionSettings,
    cautious: SelectionSettings,
) -> tuple[Method, Candidate]:
    """Choose among the ways that no label shaped, and staying at θ_B.

    What they carry over is what the tuned source says. Where it was asked, the smallest loss of samples and inputs
    decides, unless labels are sure of another; where it was not, how alike the bases are says what is to be shown
    beyond luck. Between close releases θ_B stays only where all that judges is sure of it.

    Args:
        best: Staying at θ_B.
        straight: The others.
        alike: How alike the bases are; None if unknown.
        settings: The numbers of the selection, without caution where θ_B is at chance.
        cautious: The same with caution, for what must be shown beyond luck wherever θ_B is.

    Returns:
        The best.
    """
    close = alike is not None and alike >= settings.close
    if best[1].taught is not None and not close:
        return _simpler(best, min(straight, key=_loss_of), settings)
    fits = [one for one in straight if one[1].name != "naive"]
    if fits:
        *maps, answers = fits
        # A fit to the answers ends at what the tuned model says, a map of activations at what it computes on the way
        # to it: the latter must be shown better beyond luck.
        better = [one for one in maps if verdict(answers[1].seen, one[1].seen, cautious) > 0]
        best = _simpler(best, better[0] if better else answers, settings)
    # Where the bases are strangers, τ's own coordinates mean nothing: that must be shown wrong beyond luck. Between
    # close releases it is the other way round, by more than a handful of samples can tell.
    strangers = alike is not None and alike < settings.apart
    for one in straight[len(fits) :]:
        if close and best[1].name == NOTHING and one[1].alpha:
            sure = replace(settings, luck=settings.certain)
            best = one if preferred(best[1], one[1], sure) >= 0 else best
        else:
            best = _simpler(best, one, settings, beyond_luck=strangers)
    return best


def nothing(tau: TaskVector) -> AddVector:
    """Make the way that stays at θ_B.

    Args:
        tau: Any vector of the target.

    Returns:
        The way.
    """
    return AddVector(NOTHING, "the new base as it is", vector=tau, grid=(0.0,))


def _start(way: Method, candidate: Candidate) -> StartingPoint:
    """Where a way that no label shaped arrives; one that is best not gone at all is gone whole, else it is no start."""
    if candidate.name == NOTHING:
        return StartingPoint()
    return StartingPoint(way, candidate.setting if candidate.alpha else {"alpha": 1.0})


def _training_starts(
    best: tuple[Method, Candidate],
    unshaped: Sequence[tuple[Method, Candidate]],
    alike: float | None,
    settings: SelectionSettings,
) -> list[tuple[Method, Candidate]]:
    """Where training sets out: from the best way that no label shaped, and from others that may lead higher.

    What is ahead before training can be behind after it. Where the bases are not alike, a fit to answers ends where the
    last layers have nothing left to learn, while τ as it is, worse at first, brings what other layers learnt; and
    little may carry over at all, so that the samples alone do better, from θ_B. Between close releases the best way is
    the start, unless the samples prefer θ_B itself: then both are starts, whichever lost before training.

    Args:
        best: The best of those that no label shaped.
        unshaped: All of these.
        alike: How alike the bases are; None if unknown.
        settings: The numbers of the selection.

    Returns:
        The best first.
    """
    others = sorted((one for one in unshaped if one[1] is not best[1]), key=_loss_of)
    moved = [one for one in others if one[1].name != NOTHING][:1]
    home = [one for one in others if one[1].name == NOTHING]
    if alike is None or alike >= settings.close:
        if best[1].name == NOTHING:
            return [best, *moved]
        return [best, *(one for one in home if _loss_of(one) < _loss_of(best))]
    return [best, *moved, *home]


def _shaped(
    context: SelectionContext,
    tau: TaskVector,
    best: tuple[Method, Candidate],
    start: StartingPoint,
    steps: int,
) -> Iterator[Method]:
    """The ways that votes shape: masks, and re-votes from the best way that no label shaped."""
    settings = context.settings
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
    name, label = "few-shot", "few-shot fine-tuning"
    if start.way is not None and candidate is not None:
        name, label = "fine-tuned", f"{candidate.label}, then fine-tuning"
    most = settings.most_steps if most is None else most
    return FineTune(name, label, start=start, rates=settings.rates, stops=stops, most=most)


def _simpler(
    best: tuple[Method, Candidate],
    new: tuple[Method, Candidate],
    settings: SelectionSettings,
    *,
    beyond_luck: bool = False,
) -> tuple[Method, Candidate]:
    """Take the smaller loss, unless what counts more says otherwise beyond luck; the first of equals does less."""
    sign = preferred(best[1], new[1], settings)
    within = sign == 0 and not beyond_luck and _loss_of(new) < _loss_of(best)
    return new if sign > 0 or within else best


def _loss_of(one: tuple[Method, Candidate]) -> float:
    """By what those that are level are put in order: all that judges, where the tuned source was asked."""
    return one[1].loss if one[1].taught is None else one[1].calibrated_loss


def _at_chance(base: Candidate, context: SelectionContext) -> bool:
    """Whether θ_B does no better, beyond luck, than who gives every class the same probability, or names one class."""
    settings = context.settings
    if base.classes is not None:
        guess = np.full_like(base.seen.judged, math.log(base.classes))
        return loss_sign(guess, base.seen.judged, settings) <= 0
    counts = Counter(context.model.task.classes(context.support))
    share = max(counts.values()) / counts.total()
    error = math.sqrt(share * (1 - share) / len(base.scores))
    return len(counts) > 1 and base.score - share <= settings.luck * error


def _why(chosen: Candidate, candidates: Sequence[Candidate], chosen_on: str) -> str:
    """Say in one sentence what decided."""
    judged = (
        f"{len(chosen.losses)} {'validation' if chosen_on == 'validation' else 'held-out support'} samples"
    )
    if chosen.taught is not None:
        judged += f", and of the tuned model's answers to {len(chosen.taught.judged)} inputs,"
    others = ", ".join(f"{one.label} {one.calibrated_loss:.3f}" for one in candidates if one is not chosen)
    smaller = [one for one in candidates if one.calibrated_loss < chosen.calibrated_loss]
    beaten = (
        f"; {smaller[0].label} had {smaller[0].calibrated_loss:.3f}, a difference that can be luck"
        if smaller
        else ""
    )
    return f"{chosen.label} was chosen: its mean loss on {judged} is {chosen.calibrated_loss:.3f} ({others}){beaten}."
