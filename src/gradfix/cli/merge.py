"""``gradfix merge``: several task vectors into one, or into a model."""

from typing import TYPE_CHECKING

from gradfix.cli.command import command
from gradfix.cli.console import Console
from gradfix.recipes import MergeRecipe

if TYPE_CHECKING:
    from gradfix.vectors.task_vector import TaskVector


@command(MergeRecipe)
def merge(recipe: MergeRecipe, console: Console) -> None:
    """Merge; then write the task vector, or θ_B + α times it."""
    from gradfix.checkpoints import Checkpoint, match_names
    from gradfix.transport.checks import Findings, note_placement
    from gradfix.vectors.merging import merge as join
    from gradfix.vectors.placement import place
    from gradfix.vectors.task_vector import TaskVector
    from gradfix.votes import Votes

    vectors = [TaskVector.load(path) for path in recipe.task_vector]
    votes = None if recipe.votes is None else [Votes.load(path) for path in recipe.votes]
    target = None if recipe.target_base is None else Checkpoint.open(recipe.target_base)
    found = Findings(tell=console.tell, hold=True)
    if target is not None:
        placements = [place(vector, target) for vector in vectors]
        for placement in placements:
            note_placement(found, placement, target)
        vectors = [placement.vector for placement in placements]
        for each in votes or []:
            each.check_target(target, match_names(each.specs, target.specs).names)
    merged = join(
        vectors,
        votes,
        method=recipe.method,
        density=recipe.density,
        order=recipe.order,
        strategy=recipe.mask,
        seed=recipe.seed,
        **({"level": recipe.confidence} if recipe.mask == "confident" else {}),
        progress=console.progress,
    )
    if target is None:
        _write_vector(merged, recipe, console)
        return
    from gradfix.report.facts import Applied
    from gradfix.vectors.output import write_output

    applied = write_output(recipe, merged, target, alpha=recipe.alpha, progress=console.progress)
    found.release()
    for note in applied.notes(told=True):
        console.say(note)
    console.result(Applied.model_validate(applied))


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
