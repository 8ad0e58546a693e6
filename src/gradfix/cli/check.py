"""``gradfix check``: do these models fit, before anything heavy starts?"""

import typer

from gradfix.cli.command import REFUSED, command
from gradfix.cli.console import Console
from gradfix.recipes import CheckRecipe


@command(CheckRecipe)
def check(recipe: CheckRecipe, console: Console) -> None:
    """Print findings, worst last; exit 1 if a transport is not possible."""
    from gradfix.compatibility import check as look

    found = look(recipe.source_base, recipe.source_tuned, recipe.target_base, output=recipe.output)
    for level in ("note", "warning", "error"):
        for finding in found.findings:
            if finding.level == level:
                console.say(f"{level}: {finding.text}")
    if found.ok:
        size = (found.output_bytes or 0) / 1e9
        console.say(f"these models fit: {size:.2f} GB to write, about {max(1, round(found.seconds or 0))} s")
    console.result(found.to_json())
    if not found.ok:
        raise typer.Exit(REFUSED)
