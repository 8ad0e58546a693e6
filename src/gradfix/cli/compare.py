"""``gradfix compare``: a transport beside all baselines."""

from gradfix.cli.command import command
from gradfix.cli.console import Console
from gradfix.cli.tables import comparison_table
from gradfix.recipes import CompareRecipe


@command(CompareRecipe)
def compare(recipe: CompareRecipe, console: Console) -> None:
    """Print the table, and write it as JSON, CSV and Markdown."""
    from gradfix.transport.comparison import compare as run

    comparison = run(recipe, tell=console.tell, progress=console.progress)
    console.answer_table(comparison_table(comparison.lines, comparison.caption))
    console.say(f"wrote {recipe.output}")
    console.result(comparison.record())
