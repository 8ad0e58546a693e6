"""Carry a task vector over to a model that was trained independently: run the source, then rotate or fit."""

from gradfix.alignment.activations import Activations, Point
from gradfix.alignment.align import (
    Aligned,
    align,
    align_by_regression,
    align_by_rotation,
    require_something,
)
from gradfix.alignment.source import Observed, SourceRun, observe, run_source

__all__ = [
    "Activations",
    "Aligned",
    "Observed",
    "Point",
    "SourceRun",
    "align",
    "align_by_regression",
    "align_by_rotation",
    "observe",
    "require_something",
    "run_source",
]
