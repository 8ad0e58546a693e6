"""What each command may be told, once: the options of the command line, the keys of a YAML file, and their checks.

A recipe is validated before anything heavy starts, and saved beside the output it made. This module imports
neither torch nor transformers, so that ``gradfix --help`` answers at once.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from gradfix.errors import GradfixError

Mask = Literal["agreement", "confident", "force", "soft", "random", "none"]
Dtype = Literal["float32", "bfloat16", "float16"]
Rounding = Literal["nearest", "stochastic"]
MergeMethod = Literal["mean", "ties"]
MergeOrder = Literal["merge-then-mask", "mask-then-merge"]

SourceBase = Annotated[
    str, Field(description="the old base model, θ_A: directory, file or Hub id (id@revision)")
]
SourceTuned = Annotated[str, Field(description="the model fine-tuned from it, θ_A^ft, or a LoRA adapter")]
TargetBase = Annotated[str, Field(description="the new base model, θ_B")]
Output = Annotated[Path, Field(description="where to write; it appears there only when whole")]
Confidence = Annotated[
    float,
    Field(
        gt=0,
        le=0.5,
        description="for mask confident: a coordinate is dropped where so many votes against it would be by luck "
        "with at most this probability",
    ),
]
Overwrite = Annotated[bool, Field(description="replace an existing output once the new one is whole")]
Resume = Annotated[bool, Field(description="go on with an interrupted run of the same inputs")]
Restart = Annotated[bool, Field(description="discard an interrupted run")]


TASKS = (
    "text-classification",
    "text-to-text",
    "causal-lm",
    "zero-shot-image-classification",
    "image-classification",
)
"""The tasks that a recipe can name."""

IN_PYTHON = "rows given in Python"
"""What a recipe says in place of a location where rows came from memory."""

ROWS = ("support", "data", "validation", "unlabelled", "align_data")
"""The options of a transport that name rows which shape the model."""

AUTO_STEPS = 4
"""Re-votes that ``--method auto`` tries at most."""

Align = Literal["auto", "none", "regression", "procrustes", "permutation"]
AlignData = Annotated[
    str | None, Field(description="inputs to align on, labels not needed; else the labelled data's own")
]

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


class DiffRecipe(Recipe):
    """Write the task vector between a base and its fine-tune."""

    command: ClassVar[str] = "diff"
    source_base: SourceBase
    source_tuned: SourceTuned
    output: Output
    dtype: Annotated[Dtype, Field(description="element type on disk")] = "float32"
    overwrite: Overwrite = False


class WritingRecipe(Recipe):
    """How a model directory is written, for every command that writes one."""

    dtype: Annotated[Dtype | None, Field(description="of the output; the target's if not given")] = None
    rounding: Annotated[
        Rounding, Field(description="stochastic keeps small changes in bfloat16 on average")
    ] = "nearest"
    seed: Annotated[int, Field(description="for what is drawn at random")] = 0
    shard_size: Annotated[str, Field(description="largest weights file, as 5GB or 500MB")] = "5GB"
    overwrite: Overwrite = False
    resume: Resume = False
    restart: Restart = False

    @field_validator("shard_size")
    @classmethod
    def _size(cls, size: str) -> str:
        parse_size(size)
        return size

    def writing(self) -> dict[str, Any]:
        """Give the options that :func:`gradfix.update.apply` takes by these names.

        Returns:
            Keyword arguments.
        """
        options = {name: getattr(self, name) for name in WritingRecipe.model_fields}
        return {**options, "shard_size": parse_size(self.shard_size)}


class ApplyRecipe(WritingRecipe):
    """Add a task vector, masked by votes, to a new base model."""

    command: ClassVar[str] = "apply"
    target_base: TargetBase
    output: Output
    source_base: Annotated[str | None, Field(description="the old base model, θ_A; with source_tuned")] = None
    source_tuned: Annotated[
        str | None, Field(description="the model fine-tuned from it, or a LoRA adapter")
    ] = None
    task_vector: Annotated[
        Path | None, Field(description="a file of `gradfix diff`, in place of the two sources")
    ] = None
    votes: Annotated[
        Path | None, Field(description="a file of `gradfix votes`; without it the addition is naive")
    ] = None
    mask: Annotated[Mask | None, Field(description="mask strategy; agreement with votes, none without")] = (
        None
    )
    confidence: Confidence = 0.1
    alpha: Annotated[float, Field(description="scaling coefficient α")] = 1.0

    @model_validator(mode="after")
    def _one_source(self) -> "ApplyRecipe":
        pair = self.source_base is not None and self.source_tuned is not None
        partial = self.source_base is not None or self.source_tuned is not None
        if (self.task_vector is not None) == partial or partial != pair:
            raise ValueError("give either source_base and source_tuned, or task_vector")
        if self.mask not in {None, "none", "random"} and self.votes is None:
            raise ValueError(f"mask {self.mask} needs votes")
        return self


class MergeRecipe(Recipe):
    """Merge task vectors into one, as a file; or, with a target, into a model."""

    command: ClassVar[str] = "merge"
    task_vector: Annotated[
        list[Path], Field(min_length=2, description="a file of `gradfix diff`; give the option once a file")
    ]
    output: Output
    votes: Annotated[
        list[Path] | None,
        Field(description="a file of `gradfix votes` for each task vector, in the same order; masks by them"),
    ] = None
    method: Annotated[MergeMethod, Field(description="average, or trim, elect a sign and average")] = "mean"
    density: Annotated[
        float, Field(gt=0, le=1, description="for ties: share of its coordinates a task vector keeps")
    ] = 0.2
    order: Annotated[
        MergeOrder, Field(description="the first is best for several tasks, the second for several sources")
    ] = "merge-then-mask"
    mask: Annotated[Mask | None, Field(description="mask strategy; agreement with votes, none without")] = (
        None
    )
    confidence: Confidence = 0.1
    target_base: Annotated[
        str | None, Field(description="the new base model, θ_B; without it a task vector file is written")
    ] = None
    alpha: Annotated[float, Field(description="scaling coefficient α, with a target")] = 1.0
    dtype: Annotated[Dtype | None, Field(description="of the output; the target's, or float32 of a file")] = (
        None
    )
    rounding: Annotated[Rounding, Field(description="with a target, as in `gradfix apply`")] = "nearest"
    seed: Annotated[int, Field(description="for what is drawn at random")] = 0
    shard_size: Annotated[str, Field(description="with a target: largest weights file")] = "5GB"
    overwrite: Overwrite = False
    resume: Resume = False
    restart: Restart = False

    @model_validator(mode="after")
    def _fits(self) -> "MergeRecipe":
        if self.votes is not None and len(self.votes) != len(self.task_vector):
            raise ValueError(f"give votes for each of the {len(self.task_vector)} task vectors, or none")
        if self.mask not in {None, "none", "random"} and self.votes is None:
            raise ValueError(f"mask {self.mask} needs votes")
        of_models = ("alpha", "rounding", "shard_size", "resume", "restart")
        fields = type(self).model_fields
        given = [name for name in of_models if getattr(self, name) != fields[name].default]
        if given and self.target_base is None:
            raise ValueError(f"{', '.join(given)}: only with target_base")
        parse_size(self.shard_size)
        return self


Vote = Literal["majority", "mean"]
Sampling = Literal["random", "herding", "k-medoids", "coreset"]


class TaskRecipe(Recipe):
    """What every command that runs a task on labelled data may be told of it."""

    task: Annotated[str, Field(description=f"{', '.join(TASKS[:-1])} or {TASKS[-1]}")]
    column: Annotated[
        list[str], Field(description="role=name, where the data's columns have other names")
    ] = []
    label: Annotated[
        list[str], Field(description="class names in order, where neither model nor data has them")
    ] = []
    candidate: Annotated[
        list[str], Field(description="text-to-text: answers to rank, in place of generating")
    ] = []
    prefix: Annotated[str | None, Field(description="text-to-text: put before every input")] = None
    templates: Annotated[
        Path | None, Field(description="prompt templates for zero-shot images, one a line")
    ] = None
    max_length: Annotated[
        int | None, Field(description="longest input in tokens; the model's context if not given")
    ] = None
    batch_size: Annotated[int, Field(ge=1, description="samples a pass")] = 32
    device: Annotated[str, Field(description="cpu, cuda or mps")] = "cpu"
    strict: Annotated[bool, Field(description="refuse samples that would be truncated")] = False
    trust_remote_code: Annotated[bool, Field(description="run code that a model repository brings")] = False

    @field_validator("column")
    @classmethod
    def _roles(cls, column: list[str]) -> list[str]:
        wrong = [entry for entry in column if not all(entry.partition("="))]
        if wrong:
            raise ValueError(f"expected role=name, found {wrong[0]!r}")
        return column

    def task_options(self) -> dict[str, Any]:
        """Give the options of the task itself.

        Returns:
            Columns by role, and class names, templates or a length where they were given.
        """
        options: dict[str, Any] = {
            role: name for role, _, name in (entry.partition("=") for entry in self.column)
        }
        given = {
            "labels": self.label,
            "candidates": self.candidate,
            "prefix": self.prefix,
            "templates": self.templates,
            "max_length": self.max_length,
        }
        return {**options, **{key: value for key, value in given.items() if value}}

    def loading(self) -> dict[str, Any]:
        """Give the options that :meth:`gradfix.target_model.TargetModel.load` takes by these names.

        Returns:
            Keyword arguments.
        """
        return {name: getattr(self, name) for name in ("device", "batch_size", "strict", "trust_remote_code")}


class SupportRecipe(TaskRecipe):
    """Where the support set comes from: all rows of a file, or some of a larger one."""

    support: Annotated[
        str | None, Field(description="the labelled samples: jsonl, csv, parquet, images, Hub id")
    ] = None
    data: Annotated[
        str | None, Field(description="labelled data to choose samples from, in place of support")
    ] = None
    split: Annotated[str | None, Field(description="of the data, where it has several")] = None
    samples_per_class: Annotated[
        int | None, Field(ge=1, description="how many of the data to choose a class")
    ] = None
    sampling: Annotated[Sampling, Field(description="how to choose them")] = "random"
    seed: Annotated[int, Field(description="for what is drawn at random")] = 0
    vote: Annotated[Vote, Field(description="one vote a sample, or the sign of the mean gradient")] = (
        "majority"
    )
    votes_dtype: Annotated[
        Literal["bfloat16"] | None, Field(description="compute gradients under autocast")
    ] = None

    @model_validator(mode="after")
    def _one_support(self) -> "SupportRecipe":
        if self.support is not None and self.data is not None:
            raise ValueError("give either support or data, not both")
        if (self.data is None) != (self.samples_per_class is None):
            raise ValueError("data and samples_per_class go together")
        return self

    def drawing(self) -> dict[str, Any]:
        """Give the options that :func:`gradfix.preparation.choose_support` takes by these names.

        Returns:
            Keyword arguments.
        """
        return {name: getattr(self, name) for name in ("samples_per_class", "sampling", "seed")}


class VotesRecipe(SupportRecipe):
    """Count the votes of labelled samples at a model, and write them to a file."""

    command: ClassVar[str] = "votes"
    target_base: TargetBase
    output: Output
    source_base: Annotated[
        str | None, Field(description="with source_tuned: votes for the tuned model's head")
    ] = None
    source_tuned: Annotated[
        str | None, Field(description="where the head is from, if the new base has none")
    ] = None
    overwrite: Overwrite = False

    @model_validator(mode="after")
    def _both_sources(self) -> "VotesRecipe":
        if (self.source_base is None) != (self.source_tuned is None):
            raise ValueError("source_base and source_tuned go together")
        return self


class TransportRecipe(SupportRecipe, WritingRecipe):
    """Move a fine-tune to a new base model: from three models and a few samples to a model directory."""

    command: ClassVar[str] = "transport"
    source_base: SourceBase
    source_tuned: SourceTuned
    target_base: TargetBase
    output: Output
    validation: Annotated[
        str | None, Field(description="labelled data to choose α on; else cross-fitting")
    ] = None
    test: Annotated[
        str | None, Field(description="labelled data to judge the result on; nothing is chosen there")
    ] = None
    alpha: Annotated[str, Field(description="auto, a number, or candidates as 0,0.5,1")] = "auto"
    method: Annotated[
        Literal["auto", "gradfix"] | None,
        Field(
            description="auto chooses among nothing, naive addition, GradFix, confident, aligned and re-voted; gradfix "
            "does what alpha, mask, steps … say (if one of them is given, it is the default)"
        ),
    ] = None
    align: Annotated[
        Align | None,
        Field(description="carry τ over by activations first; auto: where the two bases are not alike"),
    ] = None
    align_data: AlignData = None
    steps: Annotated[
        int, Field(ge=1, description="re-votes at most; 1 is the paper's method, auto tries up to 4")
    ] = 1
    vote_at: Annotated[Literal["base", "naive"], Field(description="count votes at θ_B, or at θ_B + τ")] = (
        "base"
    )
    finetune_steps: Annotated[
        int | None, Field(ge=1, description="then train so many steps on the samples; with auto: try it")
    ] = None
    unlabelled: Annotated[
        str | None, Field(description="inputs without labels that vote too, as the tuned source labels them")
    ] = None
    mask: Annotated[Mask, Field(description="mask strategy")] = "agreement"
    confidence: Confidence = 0.1
    head: Annotated[
        Literal["copy", "probe"], Field(description="copy the tuned head, or refit it on samples")
    ] = "copy"
    examples: Annotated[
        int, Field(ge=0, description="judged inputs to show in the report; 0 keeps them out of the output")
    ] = 12

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, options: Any) -> Any:
        """Settle what is the default of what, so that the saved recipe says it."""
        if not isinstance(options, dict):
            return options
        fields = cls.model_fields
        told = [
            name
            for name in ("alpha", "mask", "confidence", "vote_at")
            if options.get(name, fields[name].default) != fields[name].default
        ]
        method = options.get("method")
        if method == "auto" and told:
            raise ValueError(
                f"method auto chooses {', '.join(told)} itself; leave it out, or give method gradfix"
            )
        # A re-vote asks for the method that has steps; without anything said, auto may take up to four.
        steps = options.get("steps", fields["steps"].default)
        plain = bool(told) or (steps != fields["steps"].default and method is None)
        method = method or ("gradfix" if plain else "auto")
        if method == "auto" and steps == fields["steps"].default:
            steps = AUTO_STEPS
        align = options.get("align") or ("auto" if method == "auto" else "none")
        return {**options, "method": method, "align": align, "steps": steps}

    @model_validator(mode="after")
    def _readable(self) -> "TransportRecipe":
        self.alphas()
        if self.vote_at == "naive" and self.mask in {"none", "random"}:
            raise ValueError(f"vote_at naive: mask {self.mask} asks for no votes")
        if self.mask == "confident" and self.vote == "mean":
            raise ValueError(
                "mask confident counts votes, and a mean vote is one ballot: it needs vote majority"
            )
        return self

    def fixed_alpha(self) -> float | None:
        """Tell whether α was given.

        Returns:
            It, or None where it must be chosen.
        """
        candidates = self.alphas()
        return candidates[0] if candidates is not None and len(candidates) == 1 else None

    def alphas(self) -> list[float] | None:
        """Read ``alpha``.

        Returns:
            The candidates, one for a fixed α; None for ``auto``.

        Raises:
            ValueError: if it is neither.
        """
        if self.alpha == "auto":
            return None
        try:
            candidates = [float(part) for part in self.alpha.split(",")]
        except ValueError:
            candidates = []
        if not candidates or not all(math.isfinite(alpha) and alpha >= 0 for alpha in candidates):
            raise ValueError(
                f"alpha: expected auto, a number or numbers such as 0,0.5,1, found {self.alpha!r}"
            )
        return candidates


class CheckRecipe(TransportRecipe):
    """Tell from headers, configurations, rows and a few weights whether a transport of the same options is possible."""

    command: ClassVar[str] = "check"
    task: Annotated[str, Field(description="as for transport; without it the models alone are checked")] = ""
    # Wider than a transport's: nothing is written, so it may be missing.
    output: Annotated[
        Path | None, Field(description="where the result would go: its disk is checked too")
    ] = None  # type: ignore[assignment]


class EvaluateRecipe(TaskRecipe):
    """Measure one model on labelled data."""

    command: ClassVar[str] = "evaluate"
    model: Annotated[str, Field(description="directory or Hub id")]
    data: Annotated[str, Field(description="labelled data")]
    split: Annotated[str | None, Field(description="of the data, where it has several")] = None
    output: Annotated[Path | None, Field(description="write the result, each sample's included, as JSON")] = (
        None
    )


class CompareRecipe(TaskRecipe):
    """Measure a transport beside all baselines, over several draws of the samples."""

    command: ClassVar[str] = "compare"
    source_base: SourceBase
    source_tuned: SourceTuned
    target_base: TargetBase
    target_tuned: Annotated[str | None, Field(description="θ_B fully fine-tuned, for the upper bounds")] = (
        None
    )
    data: Annotated[str, Field(description="labelled data to draw samples from")]
    split: Annotated[str | None, Field(description="of the data, where it has several")] = None
    test: Annotated[str, Field(description="labelled data to judge on; nothing is chosen there")]
    align: Annotated[
        Align, Field(description="for auto: carry τ over by activations first, where the bases are not alike")
    ] = "auto"
    align_data: AlignData = None
    retain: Annotated[str | None, Field(description="labelled data of what the model could do before")] = None
    samples_per_class: Annotated[list[int], Field(description="budgets to compare, repeatable")] = [
        1,
        2,
        5,
        10,
    ]
    sampling: Annotated[Sampling, Field(description="how to choose samples")] = "random"
    seeds: Annotated[int, Field(ge=1, description="draws a budget")] = 3
    output: Annotated[Path, Field(description="folder for the table as JSON and CSV")]
    overwrite: Overwrite = False


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
            description="output of transport, compare, demo or lab tables",
            json_schema_extra={"argument": True},
        ),
    ]
    output: Annotated[
        Path | None, Field(description="the HTML file; report.html in the folder if not given")
    ] = None


class DemoRecipe(Recipe):
    """Show a transport on the embedded pair of models, offline, in about a minute."""

    command: ClassVar[str] = "demo"
    output: Annotated[Path, Field(description="folder for models, tables and picture")] = Path("gradfix-demo")
    overwrite: Annotated[bool, Field(description="replace an earlier demo's folder")] = False


STUDIES = ("main", "beyond", "masks", "votes", "sampling", "merging", "signs", "pairs", "retention")


class LabTablesRecipe(Recipe):
    """Measure the paper's studies on the embedded pair, and write each as a table, raw CSV and figure."""

    command: ClassVar[str] = "lab tables"
    output: Annotated[
        Path, Field(description="folder for tables; what is finished in it is not measured again")
    ]
    quick: Annotated[bool, Field(description="a small version, in about three minutes")] = False
    study: Annotated[
        list[str], Field(description=f"only this one of {', '.join(STUDIES)}, repeatable; all if not given")
    ] = []
    draws: Annotated[int | None, Field(ge=1, description="support sets a cell; 5, or 2 with --quick")] = None
    test_samples: Annotated[
        int | None, Field(ge=1, description="test images a task; 500, or 200 with --quick")
    ] = None
    jobs: Annotated[int | None, Field(ge=1, description="processes; as many as processors if not given")] = (
        None
    )
    only_write: Annotated[bool, Field(description="measure nothing; write what is finished")] = False
    write_docs: Annotated[
        Path | None, Field(description="also write the page here, and its figures into figures/ beside it")
    ] = None

    @field_validator("study")
    @classmethod
    def _known(cls, study: list[str]) -> list[str]:
        unknown = [name for name in study if name not in STUDIES]
        if unknown:
            raise ValueError(f"expected some of {', '.join(STUDIES)}, found {unknown[0]!r}")
        return study


def only_in_python(recipe: Mapping[str, Any]) -> list[str]:
    """Name what a transport's recipe does not hold, so that it can't make the same model again.

    Args:
        recipe: Its options as JSON.

    Returns:
        ``task`` where that was made of functions, and options whose rows came from memory.
    """
    rows = [name for name in ROWS if recipe.get(name) == IN_PYTHON]
    return [*([] if recipe.get("task") in TASKS else ["task"]), *rows]


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
    found: dict[str, type[Recipe]] = {}
    pending: list[type[Recipe]] = [Recipe]
    while pending:
        kind = pending.pop()
        pending += kind.__subclasses__()
        if "command" in vars(kind):
            found[kind.command] = kind
    return found


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
            ": ".join(filter(None, (".".join(map(str, e["loc"])), e["msg"].removeprefix("Value error, "))))
            for e in error.errors()
        ]
        raise GradfixError(f"{where}: {'; '.join(problems)}") from error
