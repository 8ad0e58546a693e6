"""Recipes of the commands that show what there is: inspect, report, demo."""

from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field

from gradfix.recipes.base import ASKED_EACH_TIME, Recipe


class InspectRecipe(Recipe):
    """Tell what is in a file: votes, a task vector, a transport's output or any checkpoint."""

    command: ClassVar[str] = "inspect"
    file: Annotated[
        Path, Field(description="votes, task vector, output folder", json_schema_extra={"argument": True})
    ]


class ReportRecipe(Recipe):
    """Make the report of a result again: one page that opens offline."""

    command: ClassVar[str] = "report"
    folder: Annotated[
        Path,
        Field(
            description="output of transport, compare or demo",
            json_schema_extra={"argument": True},
        ),
    ]
    output: Annotated[
        Path | None, Field(description="the HTML file; report.html in the folder if not given")
    ] = None
    overwrite: Annotated[
        bool, Field(description="replace a file of another name", json_schema_extra=ASKED_EACH_TIME)
    ] = False


class DemoRecipe(Recipe):
    """Show a transport on the embedded pair of models, offline, in about a minute."""

    command: ClassVar[str] = "demo"
    output: Annotated[Path, Field(description="folder for models, tables and picture")] = Path("gradfix-demo")
    overwrite: Annotated[
        bool, Field(description="replace an earlier demo's folder", json_schema_extra=ASKED_EACH_TIME)
    ] = False
