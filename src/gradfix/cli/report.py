"""``gradfix report``: the page of a result, made again from its record."""

from gradfix.cli.command import command
from gradfix.cli.console import Console
from gradfix.recipes import ReportRecipe


@command(ReportRecipe)
def report(recipe: ReportRecipe, console: Console) -> None:
    """Write the page."""
    from gradfix.checkpoints.writing.single import claimed, write_text
    from gradfix.report import REPORT_FILE, report_of

    page = report_of(recipe.folder)
    # The report of this very folder is gradfix's own to make again; any other file is the user's.
    own = recipe.output is None
    overwrite = own or recipe.overwrite
    with claimed(recipe.output or recipe.folder / REPORT_FILE, overwrite=overwrite) as output:
        write_text(output, page, overwrite=overwrite)
    console.say(f"wrote {output}: {len(page) / 1e6:.1f} MB, opens in any browser, offline")
    console.result({"output": str(output), "bytes": len(page.encode())})
