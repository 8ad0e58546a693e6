"""What a transport takes from the source models before the target is loaded: activations, and labels for inputs."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from gradfix.alignment import (
    Activations,
    Aligned,
    Observed,
    align_by_regression,
    align_by_rotation,
    observe,
    same_tokens,
)
from gradfix.checkpoints import Checkpoint
from gradfix.data import Row, origin
from gradfix.errors import AlignmentError, GradfixError
from gradfix.kinship import CLOSE
from gradfix.preparation import Rows, bind, without_labels
from gradfix.progress import Progress, silent
from gradfix.target_model import TargetModel
from gradfix.tasks import Classification, ModelTask
from gradfix.vectors import TaskVector

MOST_INPUTS = 256
"""Inputs that are aligned on: all of them pass through the target in one batch."""

SURE = 0.5
"""Confidence, from 0 at chance to 1 at certainty, from which the source's label of an input counts as a vote."""


@dataclass(frozen=True)
class Observation:
    """What was seen of the source.

    Attributes:
        inputs: The samples it was run on.
        observed: What was found.
        activations: Where its activations are.
        method: How the target is aligned; ``none`` where it is not.
        similarity: Cosine of the two bases' weights; None where it is not known.
        unlabelled: How many of the first inputs are to be labelled by the source.
    """

    inputs: Rows
    observed: Observed
    activations: Activations
    method: str
    similarity: float | None
    unlabelled: int

    def align(self, model: TargetModel, *, control_seed: int | None) -> Aligned | None:
        """Carry τ over to the target.

        Args:
            model: The target at θ_B.
            control_seed: Of the control's shuffle; None for no control.

        Returns:
            The alignment; None where none was wanted.
        """
        seen = model, self.inputs, self.observed, self.activations
        if self.method == "none":
            return None
        if self.method == "regression":
            return align_by_regression(*seen, control=control_seed is not None)
        return align_by_rotation(*seen, self.method, control_seed=control_seed)

    def labelled(self, task: ModelTask) -> list[Row]:
        """Label the unlabelled inputs with what the tuned source is sure of.

        Args:
            task: The target's, whose class names are used.

        Returns:
            Rows with a label; those of which the source is not sure are left out.
        """
        if not self.unlabelled or self.observed.probabilities is None or not isinstance(task, Classification):
            return []
        chance = 1 / self.observed.probabilities.shape[1]
        top = self.observed.probabilities[: self.unlabelled].max(dim=1)
        column, names = task.columns["label"], task.labels.names
        return [
            Row({**row, column: names[label]}, origin(row, number))
            for number, (row, label, sure) in enumerate(
                zip(self.inputs, top.indices.tolist(), top.values.tolist(), strict=False)
            )
            if (sure - chance) / (1 - chance) >= SURE
        ]

    def to_json(self, task: ModelTask) -> dict[str, Any]:
        """Give what a report shows.

        Args:
            task: The target's.

        Returns:
            Inputs, similarity, and how good a labeller the source is on the labelled samples.
        """
        support = self.observed.support
        return {
            "inputs": len(self.inputs),
            "similarity": self.similarity,
            "source_on_support": support.to_json() if support is not None else None,
            "unlabelled": self.unlabelled,
            "labelled_by_source": len(self.labelled(task)),
        }


def look_at_source(
    base: Checkpoint,
    tau: TaskVector,
    task: ModelTask,
    pool: Rows,
    stack: ExitStack,
    *,
    align: str,
    alike: float | None,
    align_data: Rows = (),
    unlabelled: Rows = (),
    control_seed: int | None = None,
    loading: Mapping[str, Any],
    remark: Callable[[str], None] = lambda text: None,
    progress: Progress = silent,
) -> Observation | None:
    """Run the source models over inputs, as far as there is something to align or to label.

    Args:
        base: θ_A.
        tau: θ_A^ft − θ_A.
        task: Bound to the target.
        pool: The labelled rows: inputs to align on where no others were given, and a test of the source.
        stack: What is recorded goes with it.
        align: How; ``none``, or ``auto``: by regression where the two bases are not alike.
        alike: Cosine of the two bases' weights, as :func:`gradfix.kinship.similarity` gives it; None if unknown.
        align_data: Inputs to align on; their labels are not used.
        unlabelled: Inputs that the source is to label; they are aligned on, too.
        control_seed: Of the control's shuffle; None for no control.
        loading: How to load a model, as :meth:`gradfix.target_model.TargetModel.load` takes it.
        remark: Told why ``auto`` does without an alignment that the two bases would need.
        progress: Told the passes done.

    Returns:
        What was seen; None where nothing is to be labelled, and the two bases are alike or ``auto`` finds that the
        source can't be aligned: it has no directory to be run from, or no blocks.

    Raises:
        AlignmentError: if the source can't be aligned as asked.
        GradfixError: if the source has no directory to be run from, or inputs can't be labelled.
    """
    asked, apart = align != "auto", ""
    if not asked:
        align = "none"
        if alike is not None and alike < CLOSE:
            align = "regression"
            apart = (
                f"the old base is not like the new one (cosine {alike:.2f}), and the fine-tune is not aligned"
            )
    if align == "none" and not unlabelled:
        return None
    alone = base.directory is None and not task.builds_model
    if alone and not asked and not unlabelled:
        remark(f"{apart}: its weights stand alone, and the source must be run for that; give its directory")
        return None
    if alone:
        raise GradfixError(
            f"{base.location}: the source must be run, and weights alone can't be; give its directory, "
            "or --align none"
        )
    inputs = without_labels(task, [*unlabelled, *align_data] or list(pool)[:MOST_INPUTS])
    ours = deepcopy(task)
    trusted = bool(loading.get("trust_remote_code"))
    bind(ours, base, tau, pool, trust_remote_code=trusted)
    pooled = not same_tokens(ours, task, inputs)
    activations = stack.enter_context(Activations(len(inputs), pooled=pooled))

    def look(method: str) -> Observed:
        return observe(
            base,
            tau,
            ours,
            inputs,
            list(pool)[:MOST_INPUTS],
            activations,
            method=method,
            control_seed=control_seed,
            progress=progress,
            **loading,
        )

    try:
        observed = look(align)
    except AlignmentError as error:
        if asked:
            raise
        remark(f"{apart}: {error}")
        if not unlabelled:
            return None
        align, observed = "none", look("none")
    return Observation(inputs, observed, activations, align, alike, len(unlabelled))
