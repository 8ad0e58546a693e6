"""``gradfix evaluate``: measure one model."""

from gradfix.cli.command import command
from gradfix.cli.console import Console
from gradfix.recipes import EvaluateRecipe


@command(EvaluateRecipe)
def evaluate(recipe: EvaluateRecipe, console: Console) -> None:
    """Print score, interval and loss."""
    import json
    from contextlib import nullcontext

    from gradfix.checkpoints.writing.single import claimed, write_text
    from gradfix.report.facts import EvaluatedSamples, Evaluation
    from gradfix.transport.pipeline import measure

    # Before anything is measured: minutes of work must not end at a path.
    claim = claimed(recipe.output, overwrite=recipe.overwrite) if recipe.output is not None else nullcontext()
    with claim as output:
        found = measure(recipe, tell=console.tell, progress=console.progress)
        if output is not None:
            content = json.dumps(EvaluatedSamples.model_validate(found).plain(), indent=1) + "\n"
            write_text(output, content, overwrite=recipe.overwrite)
    interval = found.interval
    bounds = "" if interval.low is None else f" (95 % interval {interval.low:.3f} to {interval.high:.3f})"
    console.answer(
        f"{found.metric.replace('_', ' ')} {found.score:.3f}{bounds}, loss {found.loss:.4f}, {found.n} samples"
    )
    if found.truncated:
        console.say(f"{found.truncated} samples were cut to the model's context")
    console.result(Evaluation.model_validate(found))
