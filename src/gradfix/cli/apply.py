"""``gradfix apply``: add a masked task vector to a new base."""

from gradfix.cli.command import command
from gradfix.cli.console import Console
from gradfix.recipes import ApplyRecipe


@command(ApplyRecipe)
def apply(recipe: ApplyRecipe, console: Console) -> None:
    """Write θ_B + α (m ⊙ τ)."""
    from gradfix.checkpoints import Checkpoint, match_names
    from gradfix.vectors.apply import apply as write
    from gradfix.vectors.mask_strategies import STRATEGIES
    from gradfix.vectors.masks import mask
    from gradfix.vectors.placement import place
    from gradfix.vectors.task_vector import TaskVector
    from gradfix.votes import Votes

    target = Checkpoint.open(recipe.target_base)
    if recipe.task_vector is not None:
        tau = TaskVector.load(recipe.task_vector)
    else:
        tau = TaskVector.between(str(recipe.source_base), str(recipe.source_tuned))
    tau = place(tau, target).vector
    votes = Votes.load(recipe.votes) if recipe.votes else None
    if votes is not None:
        votes.check_target(target, match_names(votes.specs, target.specs).names)
    strategy = recipe.mask or ("agreement" if votes is not None else "none")
    options = STRATEGIES[strategy].taking(level=recipe.confidence)
    applied = write(
        tau if strategy == "none" else mask(tau, votes, strategy=strategy, seed=recipe.seed, **options),
        target,
        alpha=recipe.alpha,
        output=recipe.output,
        **recipe.writing(),
        progress=console.progress,
    )
    for note in applied.notes():
        console.say(note)
    console.result(applied.to_json())
