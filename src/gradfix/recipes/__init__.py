"""What each command may be told, once: the options of the command line, the keys of a YAML file, and their checks.

A recipe is validated before anything heavy starts, and saved beside the output it made. This package imports
neither torch nor transformers, so that ``gradfix --help`` answers at once.
"""

from gradfix.recipes.base import Recipe, load_recipe, recipes, validate
from gradfix.recipes.fields import (
    AUTO_STEPS,
    IN_PYTHON,
    TASKS,
    Mask,
    MergeMethod,
    MergeOrder,
    Sampling,
    parse_size,
)
from gradfix.recipes.paper import PaperFinetuneRecipe, PaperLanguageRecipe, PaperRecipe, PaperVisionRecipe
from gradfix.recipes.running import (
    CompareRecipe,
    CountRecipe,
    EvaluateRecipe,
    MergeVotesRecipe,
    SupportRecipe,
    TableRecipe,
    TaskRecipe,
    TasksRecipe,
    VotesRecipe,
)
from gradfix.recipes.showing import DemoRecipe, InspectRecipe, ReportRecipe
from gradfix.recipes.transport import CheckRecipe, TransportRecipe, only_in_python
from gradfix.recipes.writing import ApplyRecipe, DiffRecipe, ExtractRecipe, MergeRecipe, WritingRecipe

__all__ = [
    "AUTO_STEPS",
    "IN_PYTHON",
    "TASKS",
    "ApplyRecipe",
    "CheckRecipe",
    "CompareRecipe",
    "CountRecipe",
    "DemoRecipe",
    "DiffRecipe",
    "EvaluateRecipe",
    "ExtractRecipe",
    "InspectRecipe",
    "Mask",
    "MergeMethod",
    "MergeOrder",
    "MergeRecipe",
    "MergeVotesRecipe",
    "PaperFinetuneRecipe",
    "PaperLanguageRecipe",
    "PaperRecipe",
    "PaperVisionRecipe",
    "Recipe",
    "ReportRecipe",
    "Sampling",
    "SupportRecipe",
    "TableRecipe",
    "TaskRecipe",
    "TasksRecipe",
    "TransportRecipe",
    "VotesRecipe",
    "WritingRecipe",
    "load_recipe",
    "only_in_python",
    "parse_size",
    "recipes",
    "validate",
]
