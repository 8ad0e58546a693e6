"""The lab: an embedded pair of independently pre-trained models, and tasks to move between them."""

from gradfix.demo.datasets import TASKS, LabTask, Split, available_tasks, load_task
from gradfix.demo.pair import load, load_model, names, provenance

__all__ = [
    "TASKS",
    "LabTask",
    "Split",
    "available_tasks",
    "load",
    "load_model",
    "load_task",
    "names",
    "provenance",
]
