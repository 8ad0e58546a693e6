"""Carry a task vector over to a model that was trained independently: observe, rotate, fit."""

from gradfix.alignment.activations import Activations, Point
from gradfix.alignment.align import (
    Aligned,
    align_by_regression,
    align_by_rotation,
    same_tokens,
)
from gradfix.alignment.source import Observed, observe

__all__ = [
    "Activations",
    "Aligned",
    "Observed",
    "Point",
    "align_by_regression",
    "align_by_rotation",
    "observe",
    "same_tokens",
]
