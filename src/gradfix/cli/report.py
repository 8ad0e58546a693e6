"""``gradfix report``: the page of a result, made again from its record."""

from gradfix.cli.command import command
from gradfix.cli.console import Console
from gradfix.recipes import ReportRecipe


@command(ReportRecipe)
def report(recipe: ReportRecipe, console: Console) -> None:
    """Write the page."""
    from gradfix.checkpoints.files import output_file, replace_output
    from gradfix.report import REPORT_FILE, report_of

    page = report_of(recipe.folder)
    # The report of this very folder is gradfix's own to make again; any other file is the user's.
    own = recipe.output is None
    output = output_file(recipe.output or recipe.folder / REPORT_FILE, overwrite=own or recipe.overwrite)
    replace_output(output, page.encode())
    console.say(f"wrote {output}: {len(page) / 1e6:.1f} MB, opens in any browser, offline")
    console.result({"output": str(output), "bytes": len(page.encode())})
