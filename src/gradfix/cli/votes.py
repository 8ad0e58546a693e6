"""``gradfix votes``: count the votes of labelled samples, and keep them in a file."""

from gradfix.cli.command import command
from gradfix.cli.console import Console
from gradfix.recipes import VotesRecipe


@command(VotesRecipe)
def votes(recipe: VotesRecipe, console: Console) -> None:
    """Write a votes file."""
    from gradfix.transport.pipeline import count

    counted, facts = count(recipe, tell=console.tell, progress=console.progress)
    console.say(f"wrote {recipe.output}: {counted!r}, {facts.tie_rate:.1%} tied")
    if facts.stability is not None:
        console.say(f"drawn again, {facts.stability.redraw:.1%} of the signs would be expected to agree")
    console.result({"output": str(recipe.output), **facts.plain()})
