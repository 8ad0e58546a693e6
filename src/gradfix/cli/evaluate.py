"""``gradfix evaluate``: measure one model."""

from gradfix.cli.command import command
from gradfix.cli.console import Console
from gradfix.recipes import EvaluateRecipe


@command(EvaluateRecipe)
def evaluate(recipe: EvaluateRecipe, console: Console) -> None:
    """Print score, interval and loss."""
    from gradfix.report.facts import Evaluation
    from gradfix.transport.pipeline import measure

    found = measure(recipe, tell=console.tell, progress=console.progress)
    interval = found.interval
    bounds = "" if interval.low is None else f" (95 % interval {interval.low:.3f} to {interval.high:.3f})"
    also = "".join(f", {name.replace('_', ' ')} {value:.3f}" for name, value in found.also.items())
    console.answer(
        f"{found.metric.replace('_', ' ')} {found.score:.3f}{bounds}{also}, loss {found.loss:.4f}, {found.n} samples"
    )
    if found.truncated:
        console.say(f"{found.truncated} samples were cut to the model's context")
    console.result(Evaluation.model_validate(found))
