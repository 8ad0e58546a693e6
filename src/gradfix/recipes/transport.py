"""Recipes of the main job and of its check."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import Field, model_validator
from typing_extensions import override

from gradfix.errors import option
from gradfix.plugins import lasting
from gradfix.recipes.fields import (
    AUTO_STEPS,
    IN_PYTHON,
    MOST,
    ROWS,
    TASKS,
    Align,
    AlignData,
    AlignName,
    Alpha,
    Confidence,
    GenerateInputs,
    Granularity,
    Head,
    Mask,
    MaskName,
    Output,
    SourceBase,
    SourceTuned,
    Space,
    TargetBase,
    TaskName,
    Unlabelled,
    known_names,
    mask_needs,
)
from gradfix.recipes.running import SupportRecipe
from gradfix.recipes.writing import WritingRecipe


class TransportRecipe(SupportRecipe, WritingRecipe):
    """Move a fine-tune to a new base model: from three models and a few samples to a model directory."""

    command: ClassVar[str] = "transport"
    shared: ClassVar[bool] = True
    source_base: SourceBase
    source_tuned: SourceTuned
    target_base: TargetBase
    output: Output
    validation: Annotated[
        str | None, Field(description="labelled data to choose α on; else cross-fitting")
    ] = None
    validation_split: Annotated[
        str | None, Field(description="of the validation data, where it has several")
    ] = None
    test: Annotated[
        str | None, Field(description="labelled data to judge the result on; nothing is chosen there")
    ] = None
    test_split: Annotated[str | None, Field(description="of the test data, where it has several")] = None
    alpha: Alpha = "auto"
    method: Annotated[
        Literal["auto", "gradfix"] | None,
        Field(
            description="auto chooses among nothing, naive addition, GradFix, confident, aligned and re-voted; gradfix "
            "does what alpha, mask, steps … say (if one of them is given, it is the default)"
        ),
    ] = None
    align: Annotated[
        AlignName | None,
        Field(
            description="carry τ over by activations first; auto: where the two bases are not alike",
            json_schema_extra=known_names(*get_args(Align)),
        ),
    ] = None
    align_data: AlignData = None
    steps: Annotated[
        int, Field(ge=1, le=MOST, description="re-votes at most; 1 is the paper's method, auto tries up to 4")
    ] = 1
    vote_at: Annotated[Literal["base", "naive"], Field(description="count votes at θ_B, or at θ_B + τ")] = (
        "base"
    )
    finetune_steps: Annotated[
        int | None,
        Field(
            ge=1, le=MOST, description="then train so many steps on the samples; with auto: at most so many"
        ),
    ] = None
    training: Annotated[
        bool,
        Field(description="for auto: may train on the samples where that does better than the fine-tune"),
    ] = True
    unlabelled: Unlabelled = None
    generate_inputs: GenerateInputs = None
    mask: Annotated[
        MaskName, Field(description="mask strategy", json_schema_extra=known_names(*get_args(Mask)))
    ] = "agreement"
    confidence: Confidence = 0.1
    head: Head = "copy"
    space: Space = None
    granularity: Granularity = "coordinate"
    examples: Annotated[
        int,
        Field(
            ge=0, le=MOST, description="judged inputs to show in the report; 0 keeps them out of the output"
        ),
    ] = 12

    track: Annotated[
        Literal["trackio", "wandb", "tensorboard"] | None,
        Field(
            description="log choices, curve and scores to an experiment tracker, which has to be installed"
        ),
    ] = None

    @property
    def may_train(self) -> bool:
        """Whether the weights may be trained on the samples."""
        return self.finetune_steps is not None or (self.method == "auto" and self.training)

    def loading(self) -> dict[str, Any]:
        """Give the options that load a target; what may train computes in float32 unless it is told otherwise."""
        options = super().loading()
        if self.may_train and self.compute_dtype == "auto":
            options["compute_dtype"] = "float32"  # a few small steps are lost in fewer digits
        return options

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
                f"{option('method')} auto chooses {', '.join(map(option, told))} itself; leave it out, or give "
                f"{option('method')} gradfix"
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
        dropped = next((reason for reason in self._without_effect() if reason), None)
        if dropped is not None:
            raise ValueError(dropped)
        return self

    @property
    def counts_votes(self) -> bool:
        """Whether samples vote: all methods may try it but the one that is told a mask without votes."""
        return self.method != "gradfix" or mask_needs(self.mask) != "nothing"

    def _without_effect(self) -> Iterator[str | None]:
        """Say which of the given options another one makes idle: what was asked for is done, or refused."""
        told = self.method == "gradfix"
        asks = mask_needs(self.mask) != "nothing"
        adapter = self.space == "adapter"
        for name, idle, reason in (
            ("granularity", self.space == "weights", f"{option('space')} weights votes on each coordinate"),
            (
                "align",
                adapter and self.align not in ("auto", "none"),
                f"{option('space')} adapter aligns nothing",
            ),
            ("align_data", adapter, f"{option('space')} adapter aligns nothing"),
            ("rounding", adapter, f"{option('space')} adapter writes no weights to round"),
            ("shard_size", adapter, f"{option('space')} adapter writes one file"),
            (
                "output_format",
                adapter,
                f"{option('space')} adapter writes an adapter of the source's rank",
            ),
            ("vote", told and not asks, f"{option('mask')} {self.mask} asks for no votes"),
            ("votes_dtype", told and not asks, f"{option('mask')} {self.mask} asks for no votes"),
            ("vote_at", told and not asks, f"{option('mask')} {self.mask} asks for no votes"),
            (
                "vote_at",
                told and self.steps > 1,
                f"with {option('steps')}, votes are counted where each step starts",
            ),
            (
                "steps",
                told and not asks,
                f"{option('mask')} {self.mask} asks for no votes, so there is nothing to re-vote",
            ),
            ("confidence", self.mask != "confident", f"only {option('mask')} confident has it"),
            ("align_data", self.align == "none", f"{option('align')} none aligns on nothing"),
            ("training", told, f"only {option('method')} auto trains by itself"),
            ("finetune_steps", not self.training, "there is no training to limit"),
            *(
                (
                    name,
                    told and self.align == "none" and not asks and self.finetune_steps is None,
                    f"{option('mask')} {self.mask} asks for no votes, and nothing else uses these inputs",
                )
                for name in ("unlabelled", "generate_inputs")
            ),
            (
                "sampling",
                self.data is None,
                "samples are chosen of data only; the support set is taken whole",
            ),
            ("split", self.support is None and self.data is None, "there is neither support nor data"),
            ("validation_split", self.validation is None, "there is no validation data"),
            ("test_split", self.test is None, "there is no test data"),
            (
                "validation",
                self.test is not None and told and self.fixed_alpha() is not None,
                "alpha is given and test judges, so nothing is left to choose on it",
            ),
        ):
            default = type(self).model_fields[name].default
            yield (
                f"{option(name)}: {reason}; leave it out" if idle and getattr(self, name) != default else None
            )
        if self.mask in {"confident", "soft"} and self.vote == "mean":
            yield (
                f"{option('mask')} {self.mask} counts votes, and a mean vote is one ballot: it needs "
                f"{option('vote')} majority"
            )

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
                f"{option('alpha')}: expected auto, a number or numbers such as 0,0.5,1, found {self.alpha!r}"
            )
        return candidates


class CheckRecipe(TransportRecipe):
    """Tell from headers, configurations, rows and a few weights whether a transport of the same options is possible."""

    command: ClassVar[str] = "check"
    shared: ClassVar[bool] = False
    task: Annotated[
        TaskName,
        Field(
            description="as for transport; without it the models alone are checked",
            json_schema_extra=known_names(*TASKS),
        ),
    ] = ""
    # Wider than a transport's: nothing is written, so it may be missing.
    output: Annotated[
        Path | None, Field(description="where the result would go: its disk is checked too")
    ] = None  # type: ignore[assignment]

    @property
    @override
    def pushed_to(self) -> None:
        return None


def only_in_python(recipe: Mapping[str, Any]) -> list[str]:
    """Name what a transport's recipe does not hold, so that it can't make the same model again.

    Args:
        recipe: Its options as JSON.

    Returns:
        What was made of functions that no module holds, such as ``task``, and options whose rows came from memory.
    """
    rows = [name for name in ROWS if recipe.get(name) == IN_PYTHON]
    own = {"task": TASKS, "mask": get_args(Mask), "align": get_args(Align)}
    functions = [
        name
        for name, known in own.items()
        if isinstance(given := recipe.get(name), str) and given not in known and not lasting(given)
    ]
    return [*functions, *rows]
