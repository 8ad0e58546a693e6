"""Which way to go: every candidate is judged on labelled samples that had no part in it, the simplest one winning.

Ways that no label shaped (nothing, naive addition, an aligned τ) come first: they have one number to choose and hardly
overfit, so the smallest loss decides; that number stays 1, as far as the fine-tune itself went, unless another one is
better beyond luck. A way that labels shaped (masks, re-votes, training) must then beat the best of
these by more than the standard error of the paired difference: with few samples, luck is as large as what it gains.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from gradfix.evaluation.evaluate import EncodedRows, Evaluation
from gradfix.progress import Progress, silent
from gradfix.transport.folds import GRID, PATIENCE, AlphaChoice, AlphaPoint
from gradfix.transport.methods import (
    AddVector,
    FineTune,
    MaskVector,
    Method,
    Revote,
    SelectionContext,
    Setting,
    StartingPoint,
)
from gradfix.vectors.task_vector import TaskVector

ALIGNED_GRID = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
LEVELS = (0.02, 0.1, 0.3)
"""Of confidence, κ, that are tried."""

STEP_FROM_BASE, STEP_FROM_START = 0.25, 0.1
"""α of one re-vote: from θ_B the whole way is to go, from a transported model the rest of it."""

FINETUNE_RATES, FINETUNE_STOPS = (5e-5,), (5, 15, 40)
NOTHING = "nothing"
ROUNDING = 1e-5
"""Of a loss: the same weights and samples in other batches differ by less, all in one direction as it happens."""


@dataclass(frozen=True)
class Candidate:
    """One way with its best setting, as held-out samples judged it.

    Attributes:
        name: The way's.
        label: What people read.
        setting: The best setting.
        losses: Each sample's loss there.
        score: Mean score there.
        curve: Every setting tried, with mean loss and score.
        measured: By α, what validation data gave where α is all there is to set.
    """

    name: str
    label: str
    setting: Setting
    losses: npt.NDArray[np.float64]
    score: float
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
        return cls(way.name, way.label, setting, np.empty(0), math.nan, ())

    @property
    def loss(self) -> float:
        """Mean loss at the best setting."""
        return float(self.losses.mean())

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
        chosen_on: ``"validation"`` or ``"cross-fit"``.
    """

    way: Method
    candidate: Candidate
    candidates: tuple[Candidate, ...]
    ways: tuple[Method, ...]
    why: str
    chosen_on: str

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


def cross_validate(
    context: SelectionContext,
    way: Method,
    *,
    validation: EncodedRows | None = None,
    progress: Progress = silent,
) -> Candidate:
    """Walk a way and judge every candidate on samples that had no part in it.

    Args:
        context: The model, at θ_B before and after, also after an error, and its samples.
        way: The way.
        validation: Samples to judge on; without them each fold of the support set judges what the others made.
        progress: Told the walks done.

    Returns:
        The way with its best setting: the smallest mean loss, the first of equals.
    """
    everything = list(range(len(context.support)))
    parts: Sequence[Sequence[int]] = context.folds if way.labelled and validation is None else [everything]
    count = len(context.support) if validation is None else sum(map(len, validation.positions))
    losses: dict[tuple[tuple[str, float], ...], npt.NDArray[np.float64]] = {}
    scores: dict[tuple[tuple[str, float], ...], float] = {}
    measured: dict[float, Evaluation] = {}
    for number, part in enumerate(parts):
        held = validation or context.model.encode([context.support[index] for index in part])
        places = np.asarray(part if validation is None else range(count))
        recent: list[float] = []
        try:
            for setting in way.candidates(context, number if len(parts) > 1 else None):
                found = context.model.evaluate(held)
                key = tuple(setting.items())
                losses.setdefault(key, np.full(count, np.nan))[places] = found.losses
                scores[key] = scores.get(key, 0.0) + found.score * len(places) / count
                if validation is not None and setting.keys() == {"alpha"}:
                    measured[setting["alpha"]] = found
                recent = [*recent[-PATIENCE:], found.loss]
                if not way.labelled and len(recent) > PATIENCE and recent == sorted(set(recent)):
                    break
        finally:
            context.model.restore()
        progress(f"trying {way.label}", number + 1, len(parts), "walks")
    complete = [key for key, values in losses.items() if not np.isnan(values).any()]
    best = min(complete, key=lambda key: float(losses[key].mean()))
    usual = next((key for key in complete if dict(key) == way.usual), None)
    if usual is not None and not _beats(losses[usual], losses[best]):
        best = usual
    curve = tuple((dict(key), float(losses[key].mean()), scores[key]) for key in complete)
    return Candidate(way.name, way.label, dict(best), losses[best], scores[best], curve, measured)


def select(
    context: SelectionContext,
    aligned: TaskVector | None = None,
    *,
    steps: int = 4,
    finetune: bool = False,
    validation: EncodedRows | None = None,
    progress: Progress = silent,
) -> Choice:
    """Choose between nothing, naive addition, GradFix, confident, aligned, re-voting and, where asked, a warm start.

    Args:
        context: The model and its samples; at least two folds unless ``validation`` is given.
        aligned: τ' of an alignment, a task vector; None without one.
        steps: Most re-votes to try; 0 for none.
        finetune: Also try a few steps of training from the best way.
        validation: See :func:`measure`.
        progress: Told what is being tried.

    Returns:
        The choice.
    """
    tau = context.model.vector
    found: list[tuple[Method, Candidate]] = []

    def attempt(way: Method) -> Candidate:
        candidate = cross_validate(context, way, validation=validation, progress=progress)
        found.append((way, candidate))
        return candidate

    attempt(AddVector(NOTHING, "the new base as it is", vector=tau, grid=(0.0,)))
    if aligned is None:
        attempt(AddVector("naive", "naive addition", vector=tau, grid=GRID))
    else:
        attempt(AddVector("aligned", "aligned addition", vector=aligned, grid=ALIGNED_GRID))
    best = min(found, key=lambda pair: pair[1].loss)  # the first of equals: less is done
    if aligned is not None:
        # The bases are not alike, so τ's own coordinates mean nothing: that must be shown wrong beyond luck.
        attempt(AddVector("naive", "naive addition", vector=tau, grid=GRID))
        best = _better(best, found[-1])
    start = StartingPoint() if best[1].name == NOTHING else StartingPoint(best[0], best[1].setting)
    here = best
    attempt(MaskVector("gradfix", "GradFix", vector=tau, grid=GRID))
    here = _better(here, found[-1])
    if best[1].name == "naive" and context.vote == "majority":
        # Votes where the model will be, rather than where it was.
        attempt(
            MaskVector(
                "confident",
                "confident mask, votes at θ_B + τ",
                vector=tau,
                grid=(best[1].setting["alpha"],),
                at=start,
                strategy="confident",
                levels=LEVELS,
            )
        )
        here = _better(here, found[-1])
    if steps:
        length = STEP_FROM_BASE if start.way is None else STEP_FROM_START
        label = "re-voting" if start.way is None else f"{best[1].label}, then re-voting"
        attempt(Revote("re-voted", label, vector=tau, step=length, count=steps, start=start))
        here = _better(here, found[-1])
    if finetune:
        way, candidate = here
        there = StartingPoint() if candidate.name == NOTHING else StartingPoint(way, candidate.setting)
        label = f"{candidate.label}, then fine-tuning"
        attempt(FineTune("fine-tuned", label, start=there, rates=FINETUNE_RATES, stops=FINETUNE_STOPS))
        here = _better(here, found[-1])
    candidates = tuple(one for _, one in found)
    chosen_on = "cross-fit" if validation is None else "validation"
    ways = tuple(way for way, _ in found)
    return Choice(*here, candidates, ways, _why(here[1], candidates, chosen_on), chosen_on)


def _better(best: tuple[Method, Candidate], new: tuple[Method, Candidate]) -> tuple[Method, Candidate]:
    """Take the new one only where it gains more than luck would."""
    return new if _beats(best[1].losses, new[1].losses) else best


def _beats(old: npt.NDArray[np.float64], new: npt.NDArray[np.float64]) -> bool:
    """Whether the same samples' losses fall by more than rounding, and than the standard error of the difference."""
    gain = old - new
    error = float(gain.std(ddof=1)) / math.sqrt(len(gain)) if len(gain) > 1 else math.inf
    return float(gain.mean()) > max(error, ROUNDING * float(np.abs(old).mean()))


def _why(chosen: Candidate, candidates: Sequence[Candidate], chosen_on: str) -> str:
    """Say in one sentence what decided."""
    judged = (
        f"{len(chosen.losses)} {'validation' if chosen_on == 'validation' else 'held-out support'} samples"
    )
    others = ", ".join(f"{one.label} {one.loss:.3f}" for one in candidates if one is not chosen)
    smaller = [one for one in candidates if one.loss < chosen.loss]
    beaten = (
        f"; {smaller[0].label} had {smaller[0].loss:.3f}, a difference that can be luck" if smaller else ""
    )
    return f"{chosen.label} was chosen: its mean loss on {judged} is {chosen.loss:.3f} ({others}){beaten}."
