"""What a table would take: downloads, and about how long; nothing is fetched, and no model is built."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

from gradfix.errors import option
from gradfix.paper.study import Study, StudyTask
from gradfix.recipes.paper import PAPER_ROWS, PaperRecipe
from gradfix.recipes.settings import SETTINGS

GPU_TERAFLOPS = 20.0
"""What a GPU of the last years does in float32 with a batch of 32, about."""
CORE_GIGAFLOPS = 30.0
"""What one core of a CPU does, about."""

PASSES = {
    "naive": 13,
    "permutation": 13,
    "random": 13,
    "random-sign": 13,
    "few-shot": 900,
    "auto": 1500,
    "oracle": 13,
    "full": 0,
}
"""Forward passes over each support sample that a row makes to choose its setting; three for a backward pass."""
VOTING = 4 * 13 + 4 * 3
SAME_EACH_DRAW = ("naive", "permutation", "oracle")
"""Rows of a vector that no draw shapes: their best α on test is looked for once."""
WITHOUT_ALPHA = ("auto", "few-shot", "full")


@dataclass(frozen=True)
class Plan:
    """What a table would take.

    Attributes:
        downloads: What would be fetched, with about how many megabytes; local places are not.
        forward: Forward passes of a sample, about.
        gigaflops: Of one of them.
    """

    downloads: list[tuple[str, float]]
    forward: int
    gigaflops: float

    def lines(self) -> list[str]:
        """Say it.

        Returns:
            A line a download, their sum, and the time on a GPU and on this machine.
        """
        total = sum(megabytes for _, megabytes in self.downloads)
        work = self.forward * self.gigaflops
        cores = os.cpu_count() or 1
        return [
            *(f"{place}: about {megabytes:,.0f} MB" for place, megabytes in self.downloads),
            f"to download: about {total / 1000:.2f} GB, less what is in the Hub's cache already",
            f"to compute: about {self.forward:,} forward passes; {_time(work / GPU_TERAFLOPS / 1000)} on a GPU that "
            f"does {GPU_TERAFLOPS:g} teraflops, {_time(work / cores / CORE_GIGAFLOPS)} on this machine's {cores} cores "
            "(rough: a factor of three either way)",
            f"shorter with {option('limit')}, fewer {option('seeds')} or {option('samples_per_class')}, or "
            "--no-best-on-test",
        ]


def plan(study: Study, tasks: dict[str, StudyTask], recipe: PaperRecipe) -> Plan:
    """Estimate a table.

    Args:
        study: The study.
        tasks: The tasks that were chosen.
        recipe: The options.

    Returns:
        The estimate.
    """
    base, tuned = study.model_megabytes
    downloads = [(study.source_base, base), (study.target_base, base)]
    forward = 0
    rows = recipe.methods or PAPER_ROWS
    for name, task in tasks.items():
        places = [recipe.source_tuned or study.source_tuned, recipe.target_tuned]
        downloads += [(place.replace("{task}", name), tuned) for place in places if place]
        downloads.append((task.data, task.megabytes))
        judged = min(task.test_samples, recipe.limit or task.test_samples)
        for budget in recipe.samples_per_class:
            support = budget * task.classes
            forward += recipe.seeds * ((len(rows) + 1) * judged + support * _passes(rows))
        with_alpha = sum(row not in WITHOUT_ALPHA for row in rows)
        draws = recipe.seeds * len(recipe.samples_per_class)
        forward += draws * with_alpha * (len(SETTINGS.alphas) * recipe.validation_samples + judged)
        if recipe.best_on_test:
            forward += judged * len(SETTINGS.alphas) * _searches(rows, recipe)
    return Plan(list(dict.fromkeys(downloads)), forward, study.gigaflops)


def _passes(rows: Sequence[str]) -> int:
    return sum(PASSES.get(row, VOTING) for row in rows) + len(SETTINGS.alphas)


def _searches(rows: Sequence[str], recipe: PaperRecipe) -> int:
    """How often all α are measured on the test data."""
    once = sum(row in SAME_EACH_DRAW for row in rows)
    each = sum(row not in (*SAME_EACH_DRAW, *WITHOUT_ALPHA) for row in rows)
    return once + each * recipe.seeds * len(recipe.samples_per_class)


def _time(seconds: float) -> str:
    """Minutes or hours; written here, since the room of reports takes seconds to import."""
    return f"{seconds / 60:,.0f} minutes" if seconds < 7200 else f"{seconds / 3600:,.0f} hours"
