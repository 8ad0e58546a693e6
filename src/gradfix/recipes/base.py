"""A recipe: validated before anything heavy starts, unchanged afterwards, and saved beside the output it made."""

from pathlib import Path
from typing import Any, ClassVar, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from gradfix.errors import GradfixError, option

R = TypeVar("R", bound="Recipe")


class Recipe(BaseModel):
    """Base of all recipes: unknown keys are errors, and nothing changes after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    command: ClassVar[str]

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


def load_recipe(path: Path, **changes: Any) -> Recipe:
    """Read and validate a recipe.

    Args:
        path: A YAML file with a ``command`` and that command's options.
        **changes: Options in place of the file's.

    Returns:
        The recipe of that command.

    Raises:
        GradfixError: if the file can't be read, is not YAML, or does not fit the command.
    """
    try:
        content: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise GradfixError(f"{path}: not a readable YAML file: {' '.join(str(error).split())}") from error
    known = recipes()
    command = content.get("command") if isinstance(content, dict) else None
    if command not in known:
        raise GradfixError(f"{path}: command: expected one of {', '.join(sorted(known))}, found {command!r}")
    options = {key: value for key, value in content.items() if key != "command"} | changes
    return validate(known[command], options, str(path))


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


def _spelled(key: tuple[int | str, ...]) -> str:
    """A field as its user writes it, and which of its values."""
    if not key:
        return ""
    return ".".join([option(str(key[0])).rstrip("=:"), *map(str, key[1:])])
