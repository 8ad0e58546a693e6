"""``gradfix run``: any command from a recipe file."""

from pathlib import Path

import typer

from gradfix.cli.command import JOBS, app, refusals
from gradfix.cli.console import Console
from gradfix.errors import options_as_on
from gradfix.recipes import load_recipe


@app.command("run")
def run_recipe(
    recipe: str = typer.Argument(help="the YAML file"),
    output: str | None = typer.Option(None, help="where to write, in place of the recipe's output"),
    overwrite: bool = typer.Option(False, "--overwrite", help="replace an existing output"),
    as_json: bool = typer.Option(False, "--json", help="print a machine-readable result on stdout"),
    debug: bool = typer.Option(False, "--debug", help="show tracebacks"),
) -> None:
    """Run any command from a recipe file, such as the recipe.yaml of an output."""
    with options_as_on("recipe"), refusals("run", debug=debug), Console(as_json) as console:
        changes = {"output": output} if output is not None else {}
        loaded = load_recipe(Path(recipe), **changes, **({"overwrite": True} if overwrite else {}))
        JOBS[loaded.command](loaded, console)
