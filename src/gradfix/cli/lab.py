"""``gradfix lab``: studies on the embedded pair of models."""

import typer

from gradfix.cli.command import app, command
from gradfix.cli.console import Console
from gradfix.recipes import LabTablesRecipe

lab = typer.Typer(help="Studies on the embedded pair of models.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(lab, name="lab")


@command(LabTablesRecipe, lab)
def tables(recipe: LabTablesRecipe, console: Console) -> None:
    """Print what the studies show, and write tables, figures and raw values."""
    from gradfix.lab.tables import tables as make

    found = make(recipe, progress=console.progress, say=console.say)
    for line in found["findings"]:
        console.say(line)
    console.say(f"wrote {recipe.output}")
    console.result(found)
