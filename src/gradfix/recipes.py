"""What each command may be told, once: the options of the command line, the keys of a YAML file, and their checks.

A recipe is validated before anything heavy starts, and saved beside the output it made. This module imports
neither torch nor transformers, so that ``gradfix --help`` answers at once.
"""

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from gradfix.errors import GradfixError

Mask = Literal["agreement", "force", "soft", "random", "none"]
Dtype = Literal["float32", "bfloat16", "float16"]
Rounding = Literal["nearest", "stochastic"]

SourceBase = Annotated[
    str, Field(description="the old base model, θ_A: directory, file or Hub id (id@revision)")
]
SourceTuned = Annotated[str, Field(description="the model fine-tuned from it, θ_A^ft, or a LoRA adapter")]
TargetBase = Annotated[str, Field(description="the new base model, θ_B")]
Output = Annotated[Path, Field(description="where to write; it appears there only when whole")]
Overwrite = Annotated[bool, Field(description="replace an existing output once the new one is whole")]
Resume = Annotated[bool, Field(description="go on with an interrupted run of the same inputs")]
Restart = Annotated[bool, Field(description="discard an interrupted run")]


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


class DiffRecipe(Recipe):
    """Write the task vector between a base and its fine-tune."""

    command: ClassVar[str] = "diff"
    source_base: SourceBase
    source_tuned: SourceTuned
    output: Output
    dtype: Annotated[Dtype, Field(description="element type on disk")] = "float32"
    overwrite: Overwrite = False


class ApplyRecipe(Recipe):
    """Add a task vector, masked by votes, to a new base model."""

    command: ClassVar[str] = "apply"
    target_base: TargetBase
    output: Output
    source_base: SourceBase | None = None
    source_tuned: SourceTuned | None = None
    task_vector: Annotated[
        Path | None, Field(description="a file of `gradfix diff`, in place of the two sources")
    ] = None
    votes: Annotated[
        Path | None, Field(description="a file of `gradfix votes`; without it the addition is naive")
    ] = None
    mask: Annotated[Mask | None, Field(description="mask strategy; agreement with votes, none without")] = (
        None
    )
    alpha: Annotated[float, Field(description="scaling coefficient α")] = 1.0
    dtype: Annotated[Dtype | None, Field(description="of the output; the target's if not given")] = None
    rounding: Annotated[
        Rounding, Field(description="stochastic keeps small changes in bfloat16 on average")
    ] = "nearest"
    seed: Annotated[int, Field(description="for what is drawn at random")] = 0
    shard_size: Annotated[str, Field(description="largest weights file, as 5GB or 500MB")] = "5GB"
    overwrite: Overwrite = False
    resume: Resume = False
    restart: Restart = False

    @model_validator(mode="after")
    def _one_source(self) -> "ApplyRecipe":
        pair = self.source_base is not None and self.source_tuned is not None
        partial = self.source_base is not None or self.source_tuned is not None
        if (self.task_vector is not None) == partial or partial != pair:
            raise ValueError("give either source_base and source_tuned, or task_vector")
        if self.mask not in {None, "none", "random"} and self.votes is None:
            raise ValueError(f"mask {self.mask} needs votes")
        parse_size(self.shard_size)
        return self


class CheckRecipe(Recipe):
    """Tell from headers, configurations and a few rows whether three models fit each other."""

    command: ClassVar[str] = "check"
    source_base: SourceBase
    source_tuned: SourceTuned
    target_base: TargetBase
    output: Annotated[
        Path | None, Field(description="where the result would go: its disk is checked too")
    ] = None


def parse_size(text: str) -> int:
    """Read a size such as ``5GB`` or ``500MB``, in powers of ten as disks are sold.

    Args:
        text: Digits, optionally with a unit of B, KB, MB, GB or TB.

    Returns:
        Bytes.

    Raises:
        ValueError: if it is not a positive size.
    """
    units = {"TB": 10**12, "GB": 10**9, "MB": 10**6, "KB": 10**3, "B": 1}
    cleaned = text.strip().upper()
    unit = next((unit for unit in units if cleaned.endswith(unit)), "")
    try:
        size = float(cleaned.removesuffix(unit)) * units.get(unit, 1)
    except ValueError:
        size = 0.0
    if not size >= 1:
        raise ValueError(f"expected a size such as 5GB or 500MB, found {text!r}")
    return int(size)


def recipes() -> dict[str, type[Recipe]]:
    """List the commands that a recipe can name.

    Returns:
        Recipe classes by command.
    """
    return {kind.command: kind for kind in Recipe.__subclasses__()}


def load_recipe(path: Path) -> Recipe:
    """Read and validate a recipe.

    Args:
        path: A YAML file with a ``command`` and that command's options.

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
    options = {key: value for key, value in content.items() if key != "command"}
    return validate(known[command], options, str(path))


def validate(kind: type[Recipe], options: dict[str, Any], where: str) -> Recipe:
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
            f"{'.'.join(map(str, e['loc'])) or kind.command}: {e['msg'].removeprefix('Value error, ')}"
            for e in error.errors()
        ]
        raise GradfixError(f"{where}: {'; '.join(problems)}") from error
