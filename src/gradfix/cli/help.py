"""The help of a command: options under headings, and the columns that each task reads."""

from typing import Any

from typer.core import TyperCommand

from gradfix.recipes.fields import COLUMNS
from gradfix.recipes.groups import FIRST, GROUPS, OTHERS

ARGUMENTS = "Arguments"


class Command(TyperCommand):
    """A command whose help lists options in named groups, those that matter first."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write a section for each group; called while the help is made.

        Args:
            ctx: The command line so far.
            formatter: Takes the sections.
        """
        groups: dict[str, list[tuple[str, str]]] = {
            ARGUMENTS: [],
            FIRST: [],
            **{name: [] for name in GROUPS},
            OTHERS: [],
        }
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                panel = getattr(parameter, "rich_help_panel", None)
                own = ARGUMENTS if parameter.param_type_name == "argument" else list(GROUPS)[-1]
                groups[panel if panel in groups else own].append(record)
        for name, records in groups.items():
            if records:
                with formatter.section(name):
                    formatter.write_dl(records)


def columns_help() -> str:
    """Say which columns each task reads.

    Returns:
        A line a task, in the form that keeps its lines.
    """
    width = max(map(len, COLUMNS))
    lines = [f"  {task:<{width}}  {columns}" for task, columns in COLUMNS.items()]
    said = "Columns of each task; --column ROLE=NAME says where yours has another name:"
    return "\n".join(["\b", said, *lines])
