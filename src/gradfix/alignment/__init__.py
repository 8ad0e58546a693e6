"""Carry a task vector over to a model that was trained independently: observe, rotate, fit."""

from gradfix.alignment.activations import Activations, Point
from gradfix.alignment.align import (
    CLOSE,
    Aligned,
    align_by_regression,
    align_by_rotation,
    same_tokens,
    similarity,
)
from gradfix.alignment.source import Observed, observe

__all__ = [
    "CLOSE",
    "Activations",
    "Aligned",
    "Observed",
    "Point",
    "align_by_regression",
    "align_by_rotation",
    "observe",
    "same_tokens",
    "similarity",
]
