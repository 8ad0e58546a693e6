"""``gradfix compare``: a transport beside all baselines."""

from gradfix.cli.command import command
from gradfix.cli.console import Console
from gradfix.recipes import CompareRecipe


@command(CompareRecipe)
def compare(recipe: CompareRecipe, console: Console) -> None:
    """Print the table, and write it as JSON, CSV and Markdown."""
    from rich.table import Table

    from gradfix.comparison import Line
    from gradfix.comparison import compare as run
    from gradfix.evaluation import Interval
    from gradfix.folders import write_folder

    comparison = run(recipe, progress=console.progress)
    write_folder(recipe.output, comparison.files(), overwrite=recipe.overwrite)

    def cell(interval: Interval | None) -> str:
        if interval is None:
            return ""
        return f"{interval.value:.3f}" + (
            "" if interval.low is None else f" ± {interval.value - interval.low:.3f}"
        )

    def row(line: Line) -> list[str]:
        cells = [str(line.budget), line.label, cell(line.score), cell(line.gain), cell(line.over_control)]
        return cells + ([cell(line.retained)] if recipe.retain else [])

    columns = ["samples a class", "method", "score", "over the new base", "over the control"]
    table = Table(*columns, *(["retained"] if recipe.retain else []), caption=comparison.caption)
    for line in comparison.lines:
        table.add_row(*row(line))
    console.show(table)
    console.say(f"wrote {recipe.output}")
    console.result(comparison.to_json())
