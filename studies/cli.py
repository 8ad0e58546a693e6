"""``python -m studies``: the paper's studies on the embedded pair of models."""

import typer

from gradfix.cli.command import command
from gradfix.cli.console import Console
from studies.recipe import StudiesRecipe

app = typer.Typer(rich_markup_mode=None)


@command(StudiesRecipe, app)
def tables(recipe: StudiesRecipe, console: Console) -> None:
    """Print what the studies show, and write tables, figures and raw values."""
    from studies.tables import tables as make

    found = make(recipe, progress=console.progress, say=console.say)
    for line in found["findings"]:
        console.say(line)
    console.say(f"wrote {recipe.output}")
    console.result(found)
