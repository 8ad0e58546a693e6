"""``gradfix merge``: several task vectors into one, or into a model."""

from typing import TYPE_CHECKING

from gradfix.cli.command import command
from gradfix.cli.console import Console
from gradfix.recipes import MergeRecipe

if TYPE_CHECKING:
    from gradfix.vectors.task_vector import TaskVector


@command(MergeRecipe)
def merge(recipe: MergeRecipe, console: Console) -> None:
    """Merge; then write the task vector, or θ_B + α times it with the table of what that does."""
    from gradfix.checkpoints.writing.atomic import refuse_taken
    from gradfix.report.facts import Applied
    from gradfix.transport.checks import Findings
    from gradfix.transport.merged import joining, merged_model
    from gradfix.vectors.output import write_output
    from gradfix.vectors.task_vector import TaskVector

    if recipe.target_base is None:
        vectors = [TaskVector.load(path) for path in recipe.task_vector]
        _write_vector(joining(recipe, vectors, None, console.progress)(None), recipe, console)
        return
    if not recipe.resume and not recipe.restart:
        refuse_taken(recipe.output, overwrite=recipe.overwrite)
    found = Findings(tell=console.tell, hold=True)
    merged = merged_model(recipe, found, progress=console.progress)
    applied = write_output(
        recipe, merged.vector, merged.target, alpha=merged.alpha, progress=console.progress
    )
    found.release()
    for note in applied.notes(told=True):
        console.say(note)
    result = Applied.model_validate(applied).plain()
    if recipe.samples and recipe.alpha is None and merged.weights is None:
        console.say(f"α = {merged.alpha:g}, chosen on the samples")
    if merged.weights is not None:
        console.say(
            "coefficients, chosen on the samples: " + ", ".join(f"{weight:g}" for weight in merged.weights)
        )
    if merged.table is not None:
        console.answer(merged.table.summary().text())
        for remark in merged.table.remarks():
            console.answer(remark)
        result |= {"table": merged.table.plain(), "coefficients": merged.weights}
    console.result(result)


def _write_vector(merged: "TaskVector", recipe: MergeRecipe, console: Console) -> None:
    import torch

    from gradfix.vectors.task_vector import TaskVector

    merged.save(
        recipe.output,
        dtype=getattr(torch, recipe.dtype or "float32"),
        overwrite=recipe.overwrite,
        progress=console.progress,
    )
    written = TaskVector.load(recipe.output)
    norm = written.norm()
    console.say(f"wrote {recipe.output}: {written!r}, norm {norm:.4g}")
    console.result(
        {"output": str(recipe.output), "norm": norm, "tensors": len(written), "origin": written.origin}
    )
