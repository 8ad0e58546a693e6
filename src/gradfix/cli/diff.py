"""``gradfix diff``: write a task vector."""

from gradfix.cli.command import command
from gradfix.cli.console import Console
from gradfix.recipes import DiffRecipe


@command(DiffRecipe)
def diff(recipe: DiffRecipe, console: Console) -> None:
    """Write tuned − base as one safetensors file."""
    import torch

    from gradfix.checkpoints import Checkpoint
    from gradfix.transport.checks import Findings, check_tuned
    from gradfix.vectors.task_vector import TaskVector

    found = Findings(tell=console.tell, hold=True)
    base = Checkpoint.open(recipe.source_base)
    tuned = Checkpoint.open(recipe.source_tuned, base=base)
    tau = TaskVector.between(base, tuned)
    check_tuned(base, tuned, tau, found)
    found.release()
    tau.save(
        recipe.output,
        dtype=getattr(torch, recipe.dtype),
        overwrite=recipe.overwrite,
        progress=console.progress,
    )
    norm = TaskVector.load(recipe.output).norm()
    console.say(f"wrote {recipe.output}: {tau!r}, norm {norm:.4g}")
    console.result({"output": str(recipe.output), "norm": norm, "tensors": len(tau), "origin": tau.origin})
