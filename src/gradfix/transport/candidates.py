"""What held-out samples say of a method, and the choice among several."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gradfix.evaluation.evaluate import Evaluation
from gradfix.evaluation.intervals import Interval, paired_samples
from gradfix.recipes.settings import SelectionSettings
from gradfix.transport.context import Setting
from gradfix.transport.folds import AlphaChoice, AlphaPoint
from gradfix.transport.methods import Method

OVERRULES = 2.0
"""Standard errors of a paired difference of scores from which it overrules the losses."""

Values = npt.NDArray[np.float64]


class Seen(NamedTuple):
    """What held-out samples say of one setting: calibrated losses, losses as they are, and scores, one a sample."""

    judged: Values
    losses: Values
    scores: Values

    def at(self, places: Sequence[int] | npt.NDArray[np.signedinteger]) -> "Seen":
        """Take some of the samples.

        Args:
            places: Their positions.

        Returns:
            What these say.
        """
        return Seen(self.judged[places], self.losses[places], self.scores[places])

    def beside(self, other: "Seen | None") -> "Seen":
        """Take others besides.

        Args:
            other: What they say; None for no others.

        Returns:
            What all say, one as much as another.
        """
        return self if other is None else Seen(*map(np.concatenate, zip(self, other, strict=True)))


Key = tuple[tuple[str, float], ...]
"""A setting that can be looked up by."""


def score_error(old: Values, new: Values) -> float:
    """Give the paired difference of scores in standard errors under no difference (McNemar's, for right and wrong).

    Args:
        old: One setting's scores.
        new: Another's, of the same samples.

    Returns:
        How many standard errors the new one is better.
    """
    gain = new - old
    error = math.sqrt(float(np.square(gain).sum()))
    return float(gain.sum()) / error if error else 0.0


def beats(old: Seen, new: Seen, settings: SelectionSettings) -> bool:
    """Tell whether one is better beyond luck and rounding, in whatever speaks clearly first.

    Args:
        old: What was seen of the one to keep.
        new: What was seen of its rival.
        settings: What counts as luck.

    Returns:
        Whether the rival is to be preferred.
    """
    return (verdict(old, new, settings) or loss_sign(old.losses, new.losses, settings)) > 0


def preferred(old: "Candidate", new: "Candidate", settings: SelectionSettings) -> int:
    """Tell which method is better beyond luck: by labels that are sure, else by all that judges both.

    Args:
        old: One method.
        new: Another.
        settings: What counts as luck, and from where labels are sure.

    Returns:
        1 for the new one, −1 for the old one, 0 for neither.
    """
    if old.taught is None or new.taught is None:
        return verdict(old.seen, new.seen, settings)
    # The teacher errs, too: who learnt from labels what it does not know is told by labels alone.
    sure = verdict(old.seen, new.seen, replace(settings, luck=settings.certain))
    return sure or verdict(old.all_seen, new.all_seen, settings)


def verdict(old: Seen, new: Seen, settings: SelectionSettings) -> int:
    """Tell which is better beyond luck, by scores, else by calibrated losses.

    Calibration says nothing where models are no better than chance; who calls may then ask the losses as they are.

    Args:
        old: What was seen of one.
        new: What was seen of another.
        settings: What counts as luck.

    Returns:
        1 for the new one, −1 for the old one, 0 for neither.
    """
    contradiction = score_error(old.scores, new.scores)
    if abs(contradiction) > OVERRULES:
        return 1 if contradiction > 0 else -1
    return loss_sign(old.judged, new.judged, settings)


def loss_sign(old: Values, new: Values, settings: SelectionSettings) -> int:
    """Give the sign of the mean fall of the same samples' losses.

    Args:
        old: Losses of one.
        new: Losses of another.
        settings: How many standard errors are luck, and what share is rounding.

    Returns:
        The sign; 0 within luck or rounding.
    """
    gain = old - new
    error = float(gain.std(ddof=1)) / math.sqrt(len(gain)) if len(gain) > 1 else math.inf
    mean = float(gain.mean())
    luck = settings.luck * error if settings.luck else 0.0
    if abs(mean) <= max(luck, settings.rounding * float(np.abs(old).mean())):
        return 0
    return 1 if mean > 0 else -1


def best_setting(seen: Mapping[Key, Seen], usual: Setting | None, settings: SelectionSettings) -> Key:
    """Choose a setting: the smallest calibrated loss, unless scores or the usual setting say otherwise.

    Args:
        seen: What was seen of each.
        usual: The setting to keep unless another one is better beyond luck.
        settings: The numbers of the selection.

    Returns:
        The setting.
    """
    best = min(seen, key=lambda key: float(seen[key].judged.mean()))
    scored = max(seen, key=lambda key: float(seen[key].scores.mean()))
    if score_error(seen[best].scores, seen[scored].scores) > OVERRULES:
        best = scored
    kept = next((key for key in seen if dict(key) == usual), None)
    if kept is None:
        return best
    for rival in (best, min(seen, key=lambda key: float(seen[key].losses.mean()))):
        kept = rival if beats(seen[kept], seen[rival], settings) else kept
    return kept


@dataclass(frozen=True)
class Candidate:
    """One way with its best setting, as held-out samples judged it.

    Attributes:
        name: The way's.
        label: What people read.
        setting: The best setting.
        losses: Each sample's loss there.
        scores: Each sample's score there.
        seen: What is compared with other methods: each sample judges the setting that samples of other parts chose.
        curve: Every setting tried, with mean loss and score.
        classes: How many classes the losses are cross-entropies of; None where they are something else.
        measured: By α, what validation data gave where α is all there is to set.
        taught: The same by the tuned source's answers to inputs, where it was asked.
    """

    name: str
    label: str
    setting: Setting
    losses: Values
    scores: Values
    seen: Seen
    curve: tuple[tuple[Setting, float, float], ...]
    classes: int | None = None
    measured: Mapping[float, Evaluation] = field(default_factory=dict)
    taught: Seen | None = None

    @classmethod
    def given(cls, way: Method, setting: Setting) -> "Candidate":
        """Stand for a setting that nobody chose and nothing measured.

        Args:
            way: The way.
            setting: What was given.

        Returns:
            A candidate without losses.
        """
        empty = np.empty(0)
        return cls(way.name, way.label, setting, empty, empty, Seen(empty, empty, empty), ())

    @property
    def loss(self) -> float:
        """Mean loss at the best setting."""
        return float(self.losses.mean())

    @property
    def score(self) -> float:
        """Mean score at the best setting."""
        return float(self.scores.mean())

    @property
    def all_seen(self) -> Seen:
        """What labels say and, where it was asked, the tuned source."""
        return self.seen.beside(self.taught)

    @property
    def calibrated_loss(self) -> float:
        """Mean of the calibrated losses by labels and, where it was asked, by the tuned source's answers."""
        return float(self.all_seen.judged.mean())

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
        """The best of the other candidates, by the calibrated loss of all that judges; None where there is no other."""
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
