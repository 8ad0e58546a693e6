"""What a public function was given, as the recipe of its command and the rows that came from memory."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from gradfix.evaluation.binding import Rows
from gradfix.plugins import Kind, named
from gradfix.recipes import IN_PYTHON, TaskRecipe, validate
from gradfix.tasks import CustomTask, ModelTask
from gradfix.tasks.data_memory import rows_in_memory

R = TypeVar("R", bound=TaskRecipe)

HELD_ROWS = ("support", "data", "validation", "test", "unlabelled", "align_data", "retain")
"""The options of whichever function that may hold rows in place of a location."""

PLUGINS: Mapping[str, Kind] = {"mask": "mask", "align": "alignment"}
"""The options that may be functions."""


@dataclass(frozen=True)
class Given(Generic[R]):
    """What a function was given.

    Attributes:
        recipe: The options.
        task: A task of the caller's own; None for one by name.
        rows: Rows in memory, by option.
    """

    recipe: R
    task: ModelTask | None
    rows: Mapping[str, Rows]


def given(kind: type[R], keywords: Mapping[str, Any]) -> Given[R]:
    """Validate the keywords of a public function.

    Args:
        kind: The recipe of the same command.
        keywords: Its fields, of which ``task`` may be an object and rows may be in memory; ``columns`` says what the
            parts of tuples are. Others are left aside.

    Returns:
        The recipe, task and rows.
    """
    task, columns = keywords["task"], keywords["columns"]
    options = {name: keywords[name] for name in kind.model_fields if name in keywords}
    rows = {
        name: rows_in_memory(value, name, columns, class_names=not isinstance(task, CustomTask))
        for name in HELD_ROWS
        if (value := options.get(name)) is not None and not isinstance(value, str | Path)
    }
    for name in rows:
        # Test rows shape nothing, so a transport's recipe makes the same model without them.
        optional = name == "test" and not kind.model_fields[name].is_required()
        options[name] = None if optional else IN_PYTHON
    options |= {name: str(value) for name, value in options.items() if isinstance(value, Path)}
    options |= {
        name: named(PLUGINS[name], value) for name, value in options.items() if name in PLUGINS and value
    }
    if "methods" in options:
        options["methods"] = [named("mask", value) for value in options["methods"]]
    options |= {name: list(value) for name, value in options.items() if isinstance(value, tuple)}
    options |= {name: str(value) for name, value in options.items() if name == "memory"}
    own = task if isinstance(task, ModelTask) else None
    options["task"] = task.name if own is not None else named("task", task)
    return Given(validate(kind, options, kind.command), own, rows)
