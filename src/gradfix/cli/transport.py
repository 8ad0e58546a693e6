"""``gradfix transport``: the main job."""

from gradfix.cli.command import command
from gradfix.cli.console import Console
from gradfix.recipes import TransportRecipe


@command(TransportRecipe)
def transport(recipe: TransportRecipe, console: Console) -> None:
    """Write the transported model and say whether it was worth it."""
    from gradfix.transport.pipeline import run_transport

    result = run_transport(recipe, tell=console.tell, progress=console.progress)
    for note in result.applied.notes(told=True):
        console.say(note)
    if result.record.method is not None:
        console.say(f"method: {result.record.method.why}")
    console.say(f"the page with the evidence: {recipe.output / 'report.html'}")
    console.say(f"\n{result.verdict}")
    console.result(result.record)
