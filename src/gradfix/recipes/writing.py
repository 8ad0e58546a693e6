"""Recipes of the commands that do arithmetic on weights: diff, apply, merge."""

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import Field, field_validator, model_validator
from typing_extensions import override

from gradfix.errors import option
from gradfix.recipes.base import ASKED_EACH_TIME, Recipe
from gradfix.recipes.fields import (
    BatchSize,
    Columns,
    Confidence,
    Dtype,
    Energy,
    Mask,
    MaskName,
    MergeMethod,
    MergeName,
    MergeOrder,
    Output,
    Overwrite,
    PushToHub,
    Rank,
    Restart,
    Resume,
    Rounding,
    Seed,
    SourceBase,
    SourceTuned,
    TargetBase,
    TaskName,
    Whole,
    known_names,
    mask_needs,
    parse_size,
)

MaskAtVotes = Annotated[
    MaskName | None,
    Field(
        description="mask strategy; agreement with votes, none without",
        json_schema_extra=known_names(*get_args(Mask)),
    ),
]


class DiffRecipe(Recipe):
    """Write the task vector between a base and its fine-tune."""

    command: ClassVar[str] = "diff"
    source_base: SourceBase
    source_tuned: SourceTuned
    output: Output
    dtype: Annotated[Dtype, Field(description="element type on disk")] = "float32"
    overwrite: Overwrite = False


_OF_ADAPTERS = ("output_format", "rank", "energy", "whole")


class WritingRecipe(Recipe):
    """How a model directory is written, for every command that writes one."""

    output_format: Annotated[
        Literal["model", "lora"] | None,
        Field(description="a whole model, or an adapter that peft loads on the target (with rank or energy)"),
    ] = None
    rank: Rank = None
    energy: Energy = None
    whole: Whole = "save"
    dtype: Annotated[Dtype | None, Field(description="of the output; the target's if not given")] = None
    rounding: Annotated[
        Rounding, Field(description="stochastic keeps small changes in bfloat16 on average")
    ] = "nearest"
    seed: Seed = 0
    shard_size: Annotated[str, Field(description="largest weights file, as 5GB or 500MB")] = "5GB"
    overwrite: Overwrite = False
    resume: Resume = False
    restart: Restart = False
    push_to_hub: PushToHub = None

    @property
    @override
    def pushed_to(self) -> str | None:
        return self.push_to_hub

    @field_validator("shard_size")
    @classmethod
    def _size(cls, size: str) -> str:
        parse_size(size)
        return size

    @model_validator(mode="after")
    def _one_format(self) -> "WritingRecipe":
        lora, fields = self.output_format == "lora", type(self).model_fields
        given = [name for name in _OF_ADAPTERS[1:] if getattr(self, name) != fields[name].default]
        if given and not lora:
            raise ValueError(f"{', '.join(map(option, given))}: only with {option('output_format')} lora")
        if lora and self.rank is None and self.energy is None:
            raise ValueError(f"{option('output_format')} lora: give {option('rank')} or {option('energy')}")
        for name in ("rounding", "shard_size"):
            if lora and getattr(self, name) != fields[name].default:
                raise ValueError(
                    f"{option(name)}: {option('output_format')} lora writes no weights; leave it out"
                )
        return self

    def extracting(self) -> dict[str, Any]:
        """Give the options that :class:`gradfix.vectors.truncation.Extraction` takes by these names.

        Returns:
            Keyword arguments.
        """
        return {name: getattr(self, name) for name in ("rank", "energy", "whole", "seed")}

    def writing(self) -> dict[str, Any]:
        """Give the options that :func:`gradfix.vectors.apply.apply` takes by these names.

        Returns:
            Keyword arguments.
        """
        options = {
            name: getattr(self, name)
            for name in WritingRecipe.model_fields
            if name not in (*_OF_ADAPTERS, "push_to_hub")
        }
        return {**options, "shard_size": parse_size(self.shard_size)}


class ExtractRecipe(Recipe):
    """Write the difference between two models as a LoRA adapter on the first."""

    command: ClassVar[str] = "extract"
    source_base: SourceBase
    source_tuned: SourceTuned
    output: Output
    rank: Rank = None
    energy: Energy = None
    whole: Whole = "save"
    dtype: Annotated[Dtype | None, Field(description="of the adapter; the base's if not given")] = None
    seed: Seed = 0
    overwrite: Overwrite = False

    @model_validator(mode="after")
    def _some_rank(self) -> "ExtractRecipe":
        if self.rank is None and self.energy is None:
            raise ValueError(f"give {option('rank')} or {option('energy')}")
        return self


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
    mask: MaskAtVotes = None
    confidence: Confidence = 0.1
    alpha: Annotated[float, Field(description="scaling coefficient α")] = 1.0

    @model_validator(mode="after")
    def _one_source(self) -> "ApplyRecipe":
        pair = self.source_base is not None and self.source_tuned is not None
        partial = self.source_base is not None or self.source_tuned is not None
        if (self.task_vector is not None) == partial or partial != pair:
            raise ValueError(
                f"give either {option('source_base')} and {option('source_tuned')}, or {option('task_vector')}"
            )
        if self.mask is not None and mask_needs(self.mask) != "nothing" and self.votes is None:
            raise ValueError(f"{option('mask')} {self.mask} needs {option('votes')}")
        return self


class MergeRecipe(WritingRecipe):
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
    method: Annotated[
        MergeName,
        Field(
            description="mean or sum; ties trims, elects a sign and averages; dare drops at random, magnitude the "
            "smallest, and both add",
            json_schema_extra=known_names(*get_args(MergeMethod)),
        ),
    ] = "mean"
    density: Annotated[
        float,
        Field(
            gt=0,
            le=1,
            description="for ties, dare and magnitude: share of its coordinates a task vector keeps",
        ),
    ] = 0.2
    task: Annotated[
        list[TaskName], Field(description="the task of each task vector, in the same order; or one for all")
    ] = []
    samples: Annotated[
        list[str],
        Field(description="labelled samples of each task, in the same order: α is chosen on them"),
    ] = []
    test: Annotated[
        list[str], Field(description="labelled data of each task to judge on; nothing is chosen there")
    ] = []
    retain: Annotated[
        str | None, Field(description="labelled data of what the model could do before, of the first task")
    ] = None
    coefficients: Annotated[
        Literal["one", "each"], Field(description="choose one α for all, or one for each task vector")
    ] = "one"
    column: Columns = []
    batch_size: BatchSize = 32
    device: Annotated[str, Field(description="cpu, cuda or mps")] = "cpu"
    trust_remote_code: Annotated[
        bool,
        Field(description="run code that a model repository brings", json_schema_extra=ASKED_EACH_TIME),
    ] = False
    order: Annotated[
        MergeOrder, Field(description="the first is best for several tasks, the second for several sources")
    ] = "merge-then-mask"
    mask: MaskAtVotes = None
    confidence: Confidence = 0.1
    target_base: Annotated[
        str | None, Field(description="the new base model, θ_B; without it a task vector file is written")
    ] = None
    alpha: Annotated[
        float | None,
        Field(
            description="scaling coefficient α, with a target; if not given, chosen on the samples, else 1"
        ),
    ] = None
    dtype: Annotated[Dtype | None, Field(description="of the output; the target's, or float32 of a file")] = (
        None
    )

    @model_validator(mode="after")
    def _fits(self) -> "MergeRecipe":
        if self.votes is not None and len(self.votes) != len(self.task_vector):
            raise ValueError(
                f"give {option('votes')} for each of the {len(self.task_vector)} task vectors, or none"
            )
        if self.mask is not None and mask_needs(self.mask) != "nothing" and self.votes is None:
            raise ValueError(f"{option('mask')} {self.mask} needs {option('votes')}")
        of_models = (
            "alpha",
            "rounding",
            "shard_size",
            "resume",
            "restart",
            "output_format",
            "samples",
            "push_to_hub",
        )
        fields = type(self).model_fields
        given = [name for name in of_models if getattr(self, name) != fields[name].default]
        if given and self.target_base is None:
            raise ValueError(f"{', '.join(map(option, given))}: only with {option('target_base')}")
        self._fits_tasks(len(self.task_vector))
        return self

    def _fits_tasks(self, count: int) -> None:
        if not self.samples:
            idle = [name for name in ("task", "test", "retain") if getattr(self, name)]
            idle += ["coefficients"] if self.coefficients == "each" else []
            if idle:
                raise ValueError(f"{', '.join(map(option, idle))}: only with {option('samples')}")
            return
        for name, counts in (("samples", {count}), ("task", {1, count}), ("test", {0, count})):
            if len(getattr(self, name)) not in counts:
                raise ValueError(
                    f"{option(name)}: expected one for each of the {count} task vectors, "
                    f"found {len(getattr(self, name))}"
                )
        if self.coefficients == "each" and self.alpha is not None:
            raise ValueError(f"{option('coefficients')} each chooses α; leave out {option('alpha')}")
