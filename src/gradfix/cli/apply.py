"""``gradfix apply``: add a masked task vector to a new base."""

from gradfix.cli.command import command
from gradfix.cli.console import Console
from gradfix.errors import GradfixError
from gradfix.recipes import ApplyRecipe


@command(ApplyRecipe)
def apply(recipe: ApplyRecipe, console: Console) -> None:
    """Write θ_B + α (m ⊙ τ), after the same judgement as `gradfix check`."""
    from gradfix.checkpoints import Checkpoint, match_names
    from gradfix.report.facts import Applied, Check
    from gradfix.transport.checks import Findings, check_weights, note_placement, open_models
    from gradfix.vectors.mask_strategies import find_strategy
    from gradfix.vectors.masks import mask
    from gradfix.vectors.output import write_output
    from gradfix.vectors.placement import place
    from gradfix.vectors.task_vector import TaskVector
    from gradfix.votes import Votes

    if recipe.output.exists() and not recipe.overwrite:
        raise GradfixError(f"{recipe.output}: exists already; choose another output or give --overwrite")
    found = Findings(tell=console.tell, hold=True)
    if recipe.task_vector is not None:
        target = Checkpoint.open(recipe.target_base)
        placement = place(TaskVector.load(recipe.task_vector), target)
        note_placement(found, placement, target)
    else:
        pair = str(recipe.source_base), str(recipe.source_tuned)
        models = open_models(
            *pair, recipe.target_base, found, output=recipe.output, overwrite=recipe.overwrite
        )
        check_weights(models, found)
        target, placement = models.target, models.placement
    tau = placement.vector
    votes = Votes.load(recipe.votes) if recipe.votes else None
    if votes is not None:
        votes.check_target(target, match_names(votes.specs, target.specs).names)
    strategy = recipe.mask or ("agreement" if votes is not None else "none")
    options = find_strategy(strategy).taking(level=recipe.confidence)
    masked = tau if strategy == "none" else mask(tau, votes, strategy=strategy, seed=recipe.seed, **options)
    applied = write_output(recipe, masked, target, alpha=recipe.alpha, progress=console.progress)
    found.release()  # only now: a refusal while writing says one thing alone
    for note in applied.notes(told=True):
        console.say(note)
    written, check = Applied.model_validate(applied), Check.model_validate(found)
    console.result({**written.plain(), "check": check.plain()})
