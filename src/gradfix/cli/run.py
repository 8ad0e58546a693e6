"""``gradfix run``: any command from a recipe file."""

from pathlib import Path

import typer

from gradfix.cli.command import app, refusals, run_shared
from gradfix.cli.help import Command
from gradfix.errors import options_as_on
from gradfix.recipes import load_recipe


@app.command("run", cls=Command)
def run_recipe(
    recipe: str = typer.Argument(help="the YAML file"),
    output: str | None = typer.Option(None, help="where to write, in place of the recipe's output"),
    overwrite: bool = typer.Option(False, "--overwrite", help="replace an existing output"),
    trust_remote_code: bool = typer.Option(
        False,
        "--trust-remote-code",
        help="run code that a model repository brings, if the recipe's command can",
    ),
    trust_plugins: bool = typer.Option(
        False, "--trust-plugins", help="run the functions that the recipe names as module:function"
    ),
    as_json: bool = typer.Option(False, "--json", help="print a machine-readable result on stdout"),
    debug: bool = typer.Option(False, "--debug", help="show tracebacks"),
) -> None:
    """Run any command from a recipe file, such as the recipe.yaml of an output."""
    with options_as_on("recipe"), refusals("run", debug=debug):
        # What a recipe may not ask for by itself: a file from elsewhere must not run code or replace a folder.
        asked = {"overwrite": overwrite or None, "trust_remote_code": trust_remote_code or None}
        loaded = load_recipe(Path(recipe), trust_plugins=trust_plugins, output=output, **asked)
        run_shared(loaded, as_json)
