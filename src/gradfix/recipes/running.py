"""Recipes of the commands that run a model on labelled data: votes, evaluate, compare."""

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import Field, field_validator, model_validator

from gradfix.errors import option
from gradfix.recipes.base import ASKED_EACH_TIME, Recipe
from gradfix.recipes.fields import (
    BY_NAME,
    COMPARED,
    MOST,
    TASKS,
    Align,
    AlignData,
    AlignName,
    BatchSize,
    Beta,
    Columns,
    ComputeDtype,
    Encoding,
    GenerateInputs,
    Granularity,
    Head,
    Memory,
    Names,
    Output,
    Overwrite,
    Sampling,
    Seed,
    SourceBase,
    SourceTuned,
    Space,
    TargetBase,
    TaskName,
    Templates,
    Unlabelled,
    Vote,
    known_names,
    mask_of_votes,
    parse_size,
)


class TaskRecipe(Recipe):
    """What every command that runs a task on labelled data may be told of it."""

    task: Annotated[
        TaskName,
        Field(
            description=f"{', '.join(TASKS)}; or a function of yours that makes one",
            json_schema_extra=known_names(*TASKS),
        ),
    ]
    column: Columns = []
    label: Annotated[
        Names, Field(description="class names in order, where neither model nor data has them")
    ] = []
    candidate: Annotated[
        Names, Field(description="text-to-text: answers to rank, in place of generating")
    ] = []
    prefix: Annotated[str | None, Field(description="text-to-text: put before every input")] = None
    templates: Templates = []
    text_from: Annotated[
        str | None,
        Field(
            description="zero-shot images: the whole model, where the target is a vision tower or a file alone"
        ),
    ] = None
    configuration: Annotated[str | None, Field(description="of a Hub data set that has several")] = None
    encoding: Encoding = None
    max_length: Annotated[
        int | None,
        Field(ge=1, le=MOST, description="longest input in tokens; the model's context if not given"),
    ] = None
    metric: Annotated[
        str | None,
        Field(
            description="causal-lm and text-to-text: grade generated answers by exact_match (if not given), rouge_l, "
            "chrf or module:function; causal-lm: token_accuracy generates nothing"
        ),
    ] = None
    max_new_tokens: Annotated[
        int | None, Field(ge=1, description="longest generated answer in tokens; 64, of text-to-text 32")
    ] = None
    beta: Beta = None
    batch_size: BatchSize = 32
    device: Annotated[str, Field(description="cpu, cuda or mps")] = "cpu"
    memory: Memory = "auto"
    compute_dtype: ComputeDtype = "auto"
    strict: Annotated[bool, Field(description="refuse samples that would be truncated")] = False
    trust_remote_code: Annotated[
        bool,
        Field(description="run code that a model repository brings", json_schema_extra=ASKED_EACH_TIME),
    ] = False

    @field_validator("encoding")
    @classmethod
    def _known(cls, encoding: str | None) -> str | None:
        try:
            "".encode(encoding or "utf-8")
        except LookupError as error:
            raise ValueError(
                f"no encoding called {encoding!r} is known; give one such as latin-1 or utf-16"
            ) from error
        return encoding

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
            "text_from": self.text_from,
            "max_length": self.max_length,
            "metric": self.metric,
            "max_new_tokens": self.max_new_tokens,
            "beta": self.beta,
        }
        return {**options, **{key: value for key, value in given.items() if value}}

    def loading(self) -> dict[str, Any]:
        """Give the options that :func:`gradfix.evaluation.streaming.choice.load_target` takes by these names.

        Returns:
            Keyword arguments.
        """
        names = ("device", "batch_size", "strict", "trust_remote_code", "compute_dtype")
        memory = self.memory if self.memory == "auto" else parse_size(self.memory)
        return {**{name: getattr(self, name) for name in names}, "memory": memory}


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
        int | None, Field(ge=1, le=MOST, description="how many of the data to choose a class")
    ] = None
    sampling: Annotated[Sampling, Field(description="how to choose them")] = "random"
    seed: Seed = 0
    vote: Annotated[Vote, Field(description="one vote a sample, or the sign of the mean gradient")] = (
        "majority"
    )
    votes_dtype: Annotated[
        Literal["bfloat16"] | None, Field(description="compute gradients under autocast")
    ] = None

    @model_validator(mode="after")
    def _one_support(self) -> "SupportRecipe":
        if self.support is not None and self.data is not None:
            raise ValueError(f"give either {option('support')} or {option('data')}, not both")
        if (self.data is None) != (self.samples_per_class is None):
            raise ValueError(f"{option('data')} and {option('samples_per_class')} go together")
        return self

    def drawing(self) -> dict[str, Any]:
        """Give the options that :func:`gradfix.evaluation.binding.choose_support` takes by these names.

        Returns:
            Keyword arguments.
        """
        return {name: getattr(self, name) for name in ("samples_per_class", "sampling", "seed")}


class VotesRecipe(SupportRecipe):
    """Count the votes of labelled samples at a model, and write them to a file."""

    command: ClassVar[str] = "votes"
    shared: ClassVar[bool] = True
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
        if self.support is None and self.data is None:
            raise ValueError(
                f"give {option('support')}, or {option('data')} with {option('samples_per_class')}"
            )
        if (self.source_base is None) != (self.source_tuned is None):
            raise ValueError(f"{option('source_base')} and {option('source_tuned')} go together")
        return self


class MergeVotesRecipe(Recipe):
    """Add up votes files of other samples at the same model, such as several machines counted."""

    command: ClassVar[str] = "merge-votes"
    votes: Annotated[
        list[Path],
        Field(
            min_length=2,
            description="files of `gradfix votes`, two or more",
            json_schema_extra={"argument": True},
        ),
    ]
    output: Output
    overwrite: Overwrite = False


class CountRecipe(VotesRecipe):
    """The same from Python, where votes need no file."""

    output: Annotated[Path | None, Field(description="a file for the votes")] = None  # type: ignore[assignment]


class EvaluateRecipe(TaskRecipe):
    """Measure one model on labelled data."""

    command: ClassVar[str] = "evaluate"
    shared: ClassVar[bool] = True
    model: Annotated[str, Field(description="directory or Hub id")]
    data: Annotated[str, Field(description="labelled data")]
    split: Annotated[str | None, Field(description="of the data, where it has several")] = None
    output: Annotated[Path | None, Field(description="write the result, each sample's included, as JSON")] = (
        None
    )
    overwrite: Overwrite = False


ALL = "all"
"""In place of naming each row that gradfix brings, beside rows of one's own."""


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
    test_split: Annotated[str | None, Field(description="of the test data, where it has several")] = None
    validation: Annotated[
        str | None, Field(description="labelled data to choose each row's α on, too, in a row of its own")
    ] = None
    validation_split: Annotated[
        str | None, Field(description="of the validation data, where it has several")
    ] = None
    align: Annotated[
        AlignName,
        Field(
            description="for auto: carry τ over by activations first, where the bases are not alike",
            json_schema_extra=known_names(*get_args(Align)),
        ),
    ] = "auto"
    align_data: AlignData = None
    space: Space = None
    granularity: Granularity = "coordinate"
    head: Head = "copy"
    retain: Annotated[str | None, Field(description="labelled data of what the model could do before")] = None
    unlabelled: Unlabelled = None
    generate_inputs: GenerateInputs = None
    methods: Annotated[
        list[str],
        Field(
            description=f"rows of the table, repeatable, of {', '.join(COMPARED)}; all but {', '.join(BY_NAME)} if not "
            "given; a mask of yours, module:function, stands alone or beside all"
        ),
    ] = []
    best_on_test: Annotated[
        bool, Field(description="also each row's best α on the test data, marked as such: a bound, no result")
    ] = False
    finetune_steps: Annotated[
        int | None, Field(ge=1, le=MOST, description="steps of training at most, in every row that trains")
    ] = None
    samples_per_class: Annotated[list[int], Field(description="budgets to compare, repeatable")] = [
        1,
        2,
        5,
        10,
    ]
    processes: Annotated[
        int | None,
        Field(
            ge=1, le=MOST, description="draws side by side; if not given, one a core where the model is small"
        ),
    ] = None
    sampling: Annotated[Sampling, Field(description="how to choose samples")] = "random"
    seeds: Annotated[
        int, Field(ge=1, le=MOST, description="draws a budget; 5 is the fewest with intervals")
    ] = 5
    output: Annotated[Path, Field(description="folder for the table as JSON and CSV")]
    overwrite: Overwrite = False

    @field_validator("methods")
    @classmethod
    def _rows(cls, methods: list[str]) -> list[str]:
        for name in methods:
            mask_of_votes(name, (*COMPARED, ALL))
        return list(dict.fromkeys(methods))

    @model_validator(mode="after")
    def _bounds(self) -> "CompareRecipe":
        bounds = [name for name in ("oracle", "full") if name in self.methods]
        if bounds and self.target_tuned is None:
            raise ValueError(f"{option('methods')} {bounds[0]} needs {option('target_tuned')}")
        if self.space == "weights" and self.granularity != "coordinate":
            raise ValueError(f"{option('granularity')}: {option('space')} weights votes on each coordinate")
        if self.validation is None and self.validation_split is not None:
            raise ValueError(f"{option('validation_split')}: there is no validation data; leave it out")
        if self.space == "adapter" and self.target_tuned is not None:
            raise ValueError(f"{option('target_tuned')}: {option('space')} adapter has no such bounds")
        return self

    def asks_for(self, method: str) -> bool:
        """Tell whether a row is wanted.

        Args:
            method: Its name.

        Returns:
            Whether it is named, or none is and it needs no naming.
        """
        every = not self.methods or ALL in self.methods
        return method in self.methods or (every and method not in BY_NAME)

    def own_masks(self) -> list[str]:
        """List the rows that are masks of the user's own.

        Returns:
            Their names.
        """
        return [name for name in self.methods if name not in (*COMPARED, ALL)]


class TasksRecipe(Recipe):
    """Put comparisons of several tasks into one table: methods down, tasks across, and their mean."""

    command: ClassVar[str] = "table"
    comparisons: Annotated[
        list[str],
        Field(
            min_length=1,
            description="NAME=PLACE for each task: a folder that compare wrote, or a recipe of compare, which is run "
            "unless its output is there",
            json_schema_extra={"argument": True},
        ),
    ]
    output: Annotated[Path, Field(description="folder for the table as Markdown and CSV")]
    overwrite: Overwrite = False
    trust_remote_code: Annotated[
        bool,
        Field(description="run code that a model repository brings", json_schema_extra=ASKED_EACH_TIME),
    ] = False
    trust_plugins: Annotated[
        bool,
        Field(
            description="run the functions that recipes name as module:function",
            json_schema_extra=ASKED_EACH_TIME,
        ),
    ] = False


class TableRecipe(CompareRecipe):
    """The same from Python, where the table needs no folder."""

    output: Annotated[Path | None, Field(description="folder for the table, its page and its record")] = None  # type: ignore[assignment]
