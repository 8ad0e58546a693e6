"""What the tuned source says of inputs, as a judge of where a target has arrived: many inputs, and no label.

A few labelled samples can't tell two transports apart that differ by ten points. What all of them stand for can be
asked on every input at hand: the one that answers more as the tuned model does carried more of it over. Agreement with
the teacher as a measure of distillation: Stanton et al., "Does Knowledge Distillation Really Work?", NeurIPS 2021.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from gradfix.evaluation.calibration import Values, calibrated_to, cross_entropies_to, temperature
from gradfix.evaluation.evaluate import Evaluation

OF_ITSELF = 4
"""Labelled samples that the teacher's mean confidence is worth: what it expects to get right."""


class Judged(NamedTuple):
    """What inputs say of a model.

    Attributes:
        calibrated: Cross-entropies of the answers after calibration, ``[inputs]``.
        losses: The same as they are.
        scores: The probability that the teacher gives to the class named.
    """

    calibrated: Values
    losses: Values
    scores: Values


@dataclass(frozen=True)
class Teacher:
    """The tuned source's answers.

    Attributes:
        inputs: Samples, whose labels nothing reads.
        answers: Class probabilities, ``[inputs, classes]``.
        places: By what numbers a refit leaves the inputs out.
        among: Finds the numbers of samples among the inputs, whatever their labels.
        measured: The tuned source on labelled rows, with logits; None where these are not known.
        find: Finds samples among those rows.
    """

    inputs: Sequence[Any]
    answers: Tensor
    places: Sequence[int]
    among: Callable[[Sequence[Any]], frozenset[int]] = lambda samples: frozenset()
    measured: Evaluation | None = None
    find: Callable[[Sequence[Any]], frozenset[int]] = lambda samples: frozenset()

    def believed(self, samples: Sequence[Any]) -> tuple["Teacher", float]:
        """Take the answers for as sure as they are right about labelled samples.

        Args:
            samples: Labelled samples, as far as they are among the rows that the source was measured on.

        Returns:
            The teacher, whose answers have the temperature that these ask for, and the share of them that it gets
            wrong: what it says of itself counts as much as :data:`OF_ITSELF` samples.
        """
        known = sorted(self.find(samples))
        expected = 1 - float(self.answers.max(dim=1).values.mean())
        if self.measured is None or self.measured.logits is None or not known:
            return self, expected
        logits = self.measured.logits[known].double().numpy()
        scores = np.asarray(self.measured.scores)[known]
        found = temperature(logits, np.asarray(self.measured.losses)[known])
        tiny = torch.finfo(self.answers.dtype).tiny
        answers = (self.answers.clamp(min=tiny).log() / found).softmax(dim=1)
        wrong = (float((1 - scores).sum()) + OF_ITSELF * expected) / (len(known) + OF_ITSELF)
        return replace(self, answers=answers), wrong

    def of(self, numbers: Sequence[int]) -> "Teacher":
        """Take some of the inputs.

        Args:
            numbers: Which, in the order wanted.

        Returns:
            What is said of these.
        """
        inputs, places = ([these[number] for number in numbers] for these in (self.inputs, self.places))
        return replace(self, inputs=inputs, answers=self.answers[list(numbers)], places=places)

    def judge(self, logits: Values, asked: Sequence[int], parts: Sequence[Sequence[int]]) -> Judged:
        """Judge a model by how far its answers are from the teacher's.

        Args:
            logits: ``[asked, classes]``, each of a model that had no part of that input.
            asked: Which inputs, ``[asked]``.
            parts: Positions among the asked by part: the temperature of one is fitted to the others.

        Returns:
            What each input says.
        """
        answers = self.answers[list(asked)].double().numpy()
        named = answers[np.arange(len(answers)), logits.argmax(axis=1)]
        return Judged(calibrated_to(logits, answers, parts), cross_entropies_to(logits, answers), named)
