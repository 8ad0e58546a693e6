"""``gradfix table``: comparisons of several tasks in one."""

from gradfix.cli.command import command
from gradfix.cli.console import Console
from gradfix.recipes import TasksRecipe


@command(TasksRecipe)
def table(recipe: TasksRecipe, console: Console) -> None:
    """Print methods by tasks, and write it as Markdown and CSV."""
    from gradfix.transport.comparison import compare_tasks

    made = compare_tasks(recipe, tell=console.tell, progress=console.progress)
    console.answer(made.summary().text())
    columns, rows = made.cells()
    console.result({"columns": columns, "rows": rows, "caption": made.caption})
