"""A recipe: validated before anything heavy starts, unchanged afterwards, and saved beside the output it made."""

import re
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError, model_validator

from gradfix.errors import GradfixError, option
from gradfix.plugins import CODE_FIELDS, is_path
from gradfix.text_files import read_yaml

R = TypeVar("R", bound="Recipe")

ASKED_EACH_TIME: dict[str, Any] = {"asked": "each time"}
"""Marks a field that a recipe file can't turn on: it runs code, or deletes what is there."""

INPUTS = (
    "source_base", "source_tuned", "target_base", "target_tuned", "task_vector", "votes", "model", "support", "data",
    "validation", "test", "samples", "unlabelled", "align_data", "retain", "templates",
    "text_from",
)  # fmt: skip
"""Options, of whichever command, that say where something is read."""


class Recipe(BaseModel):
    """Base of all recipes: unknown keys are errors, and nothing changes after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    command: ClassVar[str]
    shared: ClassVar[bool] = False
    """Whether several ranks can do it together."""

    @model_validator(mode="before")
    @classmethod
    def _some_place(cls, options: Any) -> Any:
        # A path of no letters is the folder one stands in: a shell makes it of a variable that is not set.
        for name in (*INPUTS, "output") if isinstance(options, dict) else ():
            given = options.get(name)
            if given == "" or (isinstance(given, list | tuple) and "" in given):
                raise ValueError(f"{option(name)}: expected a path or a name, found an empty text")
        return options

    def inputs(self) -> list[str]:
        """List the locations that the command reads, as they were given."""
        given = [getattr(self, name, None) for name in INPUTS]
        places = [place for value in given for place in (value if isinstance(value, list) else [value])]
        named = [str(place) for place in places if place is not None]
        # A prompt stands where a file of prompts may.
        return [part for place in named if "{}" not in place for part in _summands(place)]

    @property
    def pushed_to(self) -> str | None:
        """The repository of the Hub that the output is pushed to; None for nowhere."""
        return None

    def dump(self) -> str:
        """Write the recipe as YAML that :func:`load_recipe` reads back.

        Returns:
            The text; options left at their default are included, so that a later default changes nothing.
        """
        return yaml.safe_dump({"command": self.command, **self.model_dump(mode="json")}, sort_keys=False)


def recipes() -> dict[str, type[Recipe]]:
    """List the commands that a recipe can name.

    Returns:
        Recipe classes by command.
    """
    found: dict[str, type[Recipe]] = {}
    pending: list[type[Recipe]] = [Recipe]
    while pending:
        kind = pending.pop()
        pending += kind.__subclasses__()
        if "command" in vars(kind):
            found[kind.command] = kind
    return found


def load_recipe(path: Path, *, trust_plugins: bool = False, **changes: Any) -> Recipe:
    """Read and validate a recipe.

    A file is never believed where that would widen trust: options that run a repository's code or replace what is
    there (those marked ``ASKED_EACH_TIME``) hold only where ``changes`` has them, whatever the file says; a file that
    names functions is refused unless they are trusted.

    Args:
        path: A YAML file with a ``command`` and that command's options.
        trust_plugins: The functions that it names may be run.
        **changes: Options in place of the file's; None for the file's own.

    Returns:
        The recipe of that command.

    Raises:
        GradfixError: if the file can't be read, is not YAML, or does not fit the command.
    """
    content = read_yaml(path)
    known = recipes()
    command = content.get("command") if isinstance(content, dict) else None
    if not isinstance(command, str) or command not in known:
        raise GradfixError(
            f"{path}: command: expected one of {', '.join(sorted(known))}, found {command!r:.80}"
        )
    kind = known[command]
    asked = {name for name, field in kind.model_fields.items() if field.json_schema_extra == ASKED_EACH_TIME}
    options = {str(key): value for key, value in content.items() if key != "command" and key not in asked}
    code = [
        f"{name} {value}" for name in CODE_FIELDS for value in _texts(options.get(name)) if is_path(value)
    ]
    if code and not trust_plugins:
        raise GradfixError(
            f"{path}: {code[0]}: names a function, and a recipe does not run code by itself: read that function, then "
            "allow it with --trust-plugins"
        )
    if trust_plugins and "trust_plugins" in kind.model_fields:
        options["trust_plugins"] = True  # of the recipes that it names
    return validate(
        kind, options | {key: value for key, value in changes.items() if value is not None}, str(path)
    )


def validate(kind: type[R], options: dict[str, Any], where: str) -> R:
    """Build a recipe, with errors in one line.

    Args:
        kind: The recipe class.
        options: Its fields.
        where: Where they come from, for messages.

    Returns:
        The recipe.

    Raises:
        GradfixError: naming each wrong field, what it should be and what it is.
    """
    try:
        return TypeAdapter(kind).validate_python(options)
    except ValidationError as error:
        problems = [
            ": ".join(filter(None, (_spelled(e["loc"]), e["msg"].removeprefix("Value error, "))))
            for e in error.errors()
        ]
        raise GradfixError(f"{where}: {'; '.join(problems)}") from error


def _summands(place: str) -> list[str]:
    """The adapters of a sum such as first+0.5*second; a location by itself otherwise."""
    if Path(place).exists() or not re.search(r"[+*]", place):
        return [place]
    return [re.sub(r"^[^*]*\*", "", part).strip() for part in re.split(r"(?<!\d[eE])\+", place)]


def _texts(value: Any) -> list[str]:
    return [each for each in (value if isinstance(value, list) else [value]) if isinstance(each, str)]


def _spelled(key: tuple[int | str, ...]) -> str:
    """A field as its user writes it, and which of its values."""
    if not key:
        return ""
    return ".".join([option(str(key[0])).rstrip("=:"), *map(str, key[1:])])
