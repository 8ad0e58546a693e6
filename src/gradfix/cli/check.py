"""``gradfix check``: would this transport work, before anything heavy starts?"""

import typer

from gradfix.cli.command import REFUSED, command
from gradfix.cli.console import Console
from gradfix.recipes import CheckRecipe


@command(CheckRecipe)
def check(recipe: CheckRecipe, console: Console) -> None:
    """Print findings as they are made, errors last; exit 1 if a transport is not possible."""
    from gradfix.report.facts import Check
    from gradfix.transport.inputs import check_inputs

    found = check_inputs(recipe, tell=console.tell)
    if found.ok:
        size = (found.output_bytes or 0) / 1e9
        what = (
            "these inputs fit"
            if recipe.task
            else "these models fit (give --task and the data to check them, too)"
        )
        console.say(f"{what}: {size:.2f} GB to write, about {max(1, round(found.seconds or 0))} s")
    for finding in found.findings:
        if finding.level == "error":
            console.say(f"error: {finding.text}")
    console.result(Check.model_validate(found))
    if not found.ok:
        raise typer.Exit(REFUSED)
