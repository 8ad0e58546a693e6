"""What the selection of a method depends on beside the samples: every number in one place, and in every record."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class SelectionSettings:
    """The numbers of a selection.

    Attributes:
        folds: Parts that the samples are dealt into; each judges what the others shaped.
        few: Up to so many samples, training is cross-fitted on all folds; with more on two halves, which is faster.
        alphas: Values of α that are tried; 0, not transporting at all, is one of them.
        aligned_alphas: The same for a τ that was carried over by activations, which has the target's scale.
        levels: Levels of confidence, κ, that are tried.
        step_from_base: α of one re-vote from θ_B: the whole way is to go.
        step_from_start: α of one re-vote from a transported model: the rest of it.
        revotes: Re-votes at most.
        rates: Learning rates of AdamW that are tried first.
        more_rates: Tried further on, from the end of ``rates`` at which the best is, as long as they are better.
        stops: Steps of training, of at most 16 samples, at which is measured; the last is gone beyond while it is the
            best.
        most_steps: Steps of training at most.
        patience: Steps or stops in a row, each with a larger loss and none with a better score, after which a walk is
            given up; of training, from its second stop on, one is enough.
        behind: Standard errors by which a walk may be behind its start, further than another gain like its last would
            take it, before it is given up.
        luck: Standard errors of the paired difference by which a method that labels shaped must beat a simpler one.
        luck_of_many: The same where the tuned source's answers judge, too.
        certain: Standard errors from which labels decide alone, where the tuned source's answers judge with them;
            without these, by which the new base itself must beat the fine-tune added to it between close releases.
        shared: Share of the tuned source's errors that may speak for one method and against another: so many inputs are
            asked about, beside the labelled samples, as would tell a difference of so much by labels.
        rounding: Share of a loss that is rounding: the same weights and samples in other batches differ by less, all
            in one direction as it happens.
        close: Cosine of two bases' weights, as far as training touched them, from which no alignment is tried.
        apart: Cosine below which τ's own coordinates are taken to mean nothing in the target, until samples show the
            contrary beyond luck. In between the samples alone decide.
        align_inputs: Inputs whose activations are compared: all of them pass through the target in one batch.
        most_measured: Labelled rows at most that the tuned source is asked about, where they have classes: what it
            knows of those that are drawn tells how far it is believed.
        sure: Confidence, from 0 at chance to 1 at certainty, from which the source's label of an input counts as a
            vote.
        left_out: Up to one input in so many may be left out of an alignment at once: one fit then judges for all folds.
    """

    folds: int = 4
    few: int = 40
    alphas: tuple[float, ...] = (0.0, 0.1, 0.2, 0.3, 0.45, 0.6, 0.8, 1.0, 1.3, 1.6, 2.0, 2.5, 3.0)
    aligned_alphas: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
    levels: tuple[float, ...] = (0.02, 0.1, 0.3)
    step_from_base: float = 0.25
    step_from_start: float = 0.1
    revotes: int = 4
    rates: tuple[float, ...] = (1e-4, 3e-4)
    more_rates: tuple[float, ...] = (1e-5, 3e-5, 1e-3, 3e-3)
    stops: tuple[int, ...] = (5, 15, 40, 100)
    most_steps: int = 400
    patience: int = 2
    behind: float = 2.0
    luck: float = 1.0
    luck_of_many: float = 0.5
    certain: float = 2.0
    shared: float = 0.4
    rounding: float = 1e-5
    close: float = 0.97
    apart: float = 0.5
    align_inputs: int = 256
    most_measured: int = 1024
    sure: float = 0.5
    left_out: int = 4

    def to_json(self) -> dict[str, Any]:
        """Give the numbers as JSON.

        Returns:
            The attributes.
        """
        return asdict(self)


SETTINGS = SelectionSettings()
"""What every command uses."""
