"""``gradfix diff``: write a task vector."""

from gradfix.cli.command import command
from gradfix.cli.console import Console
from gradfix.recipes import DiffRecipe


@command(DiffRecipe)
def diff(recipe: DiffRecipe, console: Console) -> None:
    """Write tuned − base as one safetensors file."""
    import torch

    from gradfix.vectors.task_vector import TaskVector

    tau = TaskVector.between(recipe.source_base, recipe.source_tuned)
    tau.save(
        recipe.output,
        dtype=getattr(torch, recipe.dtype),
        overwrite=recipe.overwrite,
        progress=console.progress,
    )
    norm = TaskVector.load(recipe.output).norm()
    console.say(f"wrote {recipe.output}: {tau!r}, norm {norm:.4g}")
    console.result({"output": str(recipe.output), "norm": norm, "tensors": len(tau), "origin": tau.origin})
