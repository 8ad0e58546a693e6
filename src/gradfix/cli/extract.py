"""``gradfix extract``: what a fine-tune changed, as a LoRA adapter on its base."""

from gradfix.cli.command import command
from gradfix.cli.console import Console
from gradfix.recipes import ExtractRecipe


@command(ExtractRecipe)
def extract(recipe: ExtractRecipe, console: Console) -> None:
    """Write tuned − base as an adapter that peft loads on the base."""
    import torch

    from gradfix.checkpoints import Checkpoint
    from gradfix.checkpoints.writing.atomic import refuse_taken
    from gradfix.report.facts import Applied
    from gradfix.transport.checks import Findings, check_tuned
    from gradfix.vectors.adapter_output import write_adapter
    from gradfix.vectors.task_vector import TaskVector
    from gradfix.vectors.truncation import Extraction

    refuse_taken(recipe.output, overwrite=recipe.overwrite)
    found = Findings(tell=console.tell, hold=True)
    base = Checkpoint.open(recipe.source_base)
    tuned = Checkpoint.open(recipe.source_tuned, base=base)
    tau = TaskVector.between(base, tuned)
    check_tuned(base, tuned, tau, found)
    found.release()
    extraction = Extraction(
        tau,
        base,
        rank=recipe.rank,
        energy=recipe.energy,
        whole=recipe.whole,
        seed=recipe.seed,
        progress=console.progress,
    )
    dtype = getattr(torch, recipe.dtype) if recipe.dtype else None
    applied = write_adapter(
        extraction.vector,
        base,
        extraction.output(1.0, dtype),
        alpha=1.0,
        output=recipe.output,
        overwrite=recipe.overwrite,
        progress=console.progress,
    )
    for note in applied.notes(told=True):
        console.say(note)
    console.result(Applied.model_validate(applied))
