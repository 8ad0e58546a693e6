"""What the tuned source says of inputs, as a judge of where a target has arrived: many inputs, and no label.

A few labelled samples can't tell two transports apart that differ by ten points. What both stand for can be asked on
every input at hand: the transport that answers more as the tuned model does carried more of it over. Agreement with the
teacher as a measure of distillation: Stanton et al., "Does Knowledge Distillation Really Work?", NeurIPS 2021.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from gradfix.evaluation.calibration import Values, calibrated_to
from gradfix.evaluation.target_model import TargetModel
from gradfix.recipes.settings import SETTINGS
from gradfix.vectors.task_vector import TaskVector


@dataclass(frozen=True)
class Teacher:
    """The tuned source's answers.

    Attributes:
        inputs: Samples, whose labels nothing reads.
        answers: Class probabilities, ``[inputs, classes]``.
        places: By what numbers a refit leaves the inputs out.
        parts: What was fitted to the inputs is fitted again without each of so many parts, which judges that fit.
    """

    inputs: Sequence[Any]
    answers: Tensor
    places: Sequence[int]
    parts: int = SETTINGS.teacher_parts

    def losses(
        self,
        model: TargetModel,
        vector: TaskVector,
        alpha: float,
        refit: Callable[[frozenset[int]], TaskVector] | None = None,
    ) -> Values:
        """Judge a place by how far its answers are from the teacher's.

        Args:
            model: The target, at θ_B, also afterwards.
            vector: δ.
            alpha: α; θ_B + α·δ is judged.
            refit: Gives δ fitted without some inputs; None for one that was fitted to none.

        Returns:
            Cross-entropies of the answers after calibration, ``[inputs]``; no input judges a fit that it had a part in.
        """
        count = len(self.inputs)
        parts = [range(first, count, self.parts) for first in range(min(self.parts, count))]
        if refit is None:
            parts = [range(count)]
        places = []
        for part in parts:
            delta = vector if refit is None else refit(frozenset(self.places[one] for one in part))
            places.append((delta, alpha, model.encode([self.inputs[one] for one in part])))
        logits = np.empty(tuple(self.answers.shape))
        try:
            for part, found in zip(parts, model.evaluate_each(places, logits=True), strict=True):
                assert found.logits is not None
                logits[list(part)] = found.logits.double().numpy()
        finally:
            model.restore()
        return calibrated_to(logits, self.answers.double().numpy(), parts)
