"""What several recipes have in common: the types of their options, and what these say in the help."""

from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, Field

from gradfix.errors import GradfixError
from gradfix.plugins import Kind, checked, find, is_path
from gradfix.recipes.base import ASKED_EACH_TIME

Mask = Literal["agreement", "confident", "force", "soft", "random", "random-sign", "none"]
VOTELESS_MASKS = ("none", "random", "random-sign")
"""Masks that ask nobody; a test keeps them equal to those of :data:`gradfix.vectors.mask_strategies.STRATEGIES`."""

Dtype = Literal["float32", "bfloat16", "float16"]
Rounding = Literal["nearest", "stochastic"]
MergeMethod = Literal["mean", "sum", "ties", "dare", "magnitude"]
MergeOrder = Literal["merge-then-mask", "mask-then-merge"]


def plugin_or(kind: Kind, known: tuple[str, ...], text: str) -> str:
    """Refuse a name that is neither gradfix's own nor that of a function which can be found and called.

    Args:
        kind: What is wanted.
        known: What gradfix brings.
        text: An option's value.

    Returns:
        The text.

    Raises:
        ValueError: saying what is wrong.
    """
    if checked(kind, text, known) not in known:
        try:
            find(kind, text)
        except GradfixError as error:
            raise ValueError(str(error)) from error
    return text


def known_names(*names: str) -> dict[str, Any]:
    """Mark a field whose value is one of a few names, or a function of the user's own.

    Args:
        *names: What gradfix brings.

    Returns:
        What help and completion are made of.
    """
    return {"known": names}


def mask_needs(mask: str) -> str:
    """Tell what a mask reads beside τ.

    Args:
        mask: One of gradfix's own, or a plug-in.

    Returns:
        ``"nothing"``, or something that votes give.
    """
    if mask in get_args(Mask):
        return "nothing" if mask in VOTELESS_MASKS else "signs"
    return str(find("mask", mask).facts.get("needs", "signs"))


def mask_of_votes(text: str, known: tuple[str, ...]) -> str:
    """Refuse a name that is no mask's, or a mask's that votes can't serve.

    Args:
        text: An option's value.
        known: What may be named beside plug-ins.

    Returns:
        The text.

    Raises:
        ValueError: saying what is wrong.
    """
    if plugin_or("mask", known, text) not in known and mask_needs(text) == "magnitudes":
        raise ValueError(f"{text} compares sizes with another task vector, which gf.mask takes in Python")
    return text


MaskName = Annotated[str, AfterValidator(partial(mask_of_votes, known=get_args(Mask)))]
MergeName = Annotated[str, AfterValidator(partial(plugin_or, "merge", get_args(MergeMethod)))]

SourceBase = Annotated[
    str, Field(description="the old base model, θ_A: directory, file or Hub id (id@revision)")
]
SourceTuned = Annotated[
    str,
    Field(
        description="the model fine-tuned from it, θ_A^ft, or a LoRA adapter, or several in order with weights "
        "(first+0.5*second)"
    ),
]
TargetBase = Annotated[str, Field(description="the new base model, θ_B")]
Space = Annotated[
    Literal["adapter", "weights"] | None,
    Field(
        description="adapter moves a LoRA adapter as one and writes an adapter, weights writes a whole model; if not "
        "given, adapter where the source is a plain LoRA"
    ),
]
Granularity = Annotated[
    Literal["coordinate", "row", "component"],
    Field(
        description="in adapter space: a vote on each coordinate of B, each row, or each singular direction"
    ),
]
Output = Annotated[Path, Field(description="where to write; it appears there only when whole")]
MOST = 2**31 - 1
"""Of anything that is counted: what is larger is a slip, and would be counted to for ever."""
Seed = Annotated[int, Field(ge=0, lt=2**32, description="for what is drawn at random")]
Beta = Annotated[
    float | None, Field(gt=0, description="preference-pairs: β of the DPO loss; 0.1 if not given")
]
BatchSize = Annotated[int, Field(ge=1, le=MOST, description="samples a pass")]
Confidence = Annotated[
    float,
    Field(
        gt=0,
        le=0.5,
        description="for mask confident: a coordinate is dropped where so many votes against it would be by luck "
        "with at most this probability",
    ),
]


def _as_text(value: Any) -> Any:
    """Numbers as they are written in YAML and in Python; what YAML reads as no number or text is left to be refused."""
    if isinstance(value, list | tuple):
        return ",".join(str(_as_text(part)) for part in value)
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _as_texts(value: Any) -> Any:
    if not isinstance(value, list | tuple):
        return value
    for name in value:
        if isinstance(name, bool | float):
            raise ValueError(
                f"found {name!r}: put names in quotes, YAML reads yes, no and 1.0 as something else"
            )
    return [str(name) if isinstance(name, int) else name for name in value]


def _as_list(value: Any) -> Any:
    if value is None:
        return []
    return [str(value)] if isinstance(value, str | Path) else value


Templates = Annotated[
    list[str],
    BeforeValidator(_as_list),
    Field(description="zero-shot images: a file of prompts, one a line, or prompts, with {} for the class"),
]

Alpha = Annotated[
    str,
    BeforeValidator(_as_text),
    Field(description="auto, a number, or candidates as 0,0.5,1"),
]


def _roles(column: list[str]) -> list[str]:
    # A second text may be said to be none: without, rows that hold one are refused.
    wrong = [entry for entry in column if not all(entry.partition("=")) and entry != "text_pair="]
    if wrong:
        raise ValueError(f"expected role=name, found {wrong[0]!r}")
    return column


Columns = Annotated[
    list[str],
    AfterValidator(_roles),
    Field(description="role=name, where the data's columns have other names"),
]
Names = Annotated[list[str], BeforeValidator(_as_texts)]
"""Texts of which YAML reads some, such as 3 and no, as something else."""

Rank = Annotated[
    int | None,
    Field(ge=1, le=MOST, description="of an adapter that stands for whole matrices: at most so much"),
]
Energy = Annotated[
    float | None,
    Field(
        gt=0,
        le=1,
        description="share of each matrix's squared norm that an adapter reaches, by the smallest rank that does",
    ),
]
Whole = Annotated[
    Literal["save", "leave"],
    Field(
        description="norms, embeddings and heads beside an adapter: saved whole, or left out, as vLLM wants them"
    ),
]
Overwrite = Annotated[
    bool,
    Field(
        description="replace an existing output once the new one is whole", json_schema_extra=ASKED_EACH_TIME
    ),
]


def _repository(text: str | None) -> str | None:
    if text is not None:
        # it takes a fifth of a second, and few commands need it
        from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

        validate_repo_id(text)
    return text


PushToHub = Annotated[
    str | None,
    AfterValidator(_repository),
    Field(
        description="then push the output with its card to this repository of the Hub: private, unless it is there",
        json_schema_extra=ASKED_EACH_TIME,
    ),
]
Resume = Annotated[bool, Field(description="go on with an interrupted run of the same inputs")]
Restart = Annotated[bool, Field(description="discard an interrupted run", json_schema_extra=ASKED_EACH_TIME)]


TASKS = (
    "text-classification",
    "text-to-text",
    "causal-lm",
    "zero-shot-image-classification",
    "image-classification",
    "multi-label-classification",
    "regression",
    "token-classification",
    "question-answering",
    "sentence-embeddings",
    "preference-pairs",
)
"""The tasks that a recipe can name."""

CORRELATIONS = ("pearson", "spearman")
"""Metrics in [−1, 1], written × 100 as the benchmarks of the field write them; all others are shares."""


def _found_task(text: str) -> str:
    """Import a task of the user's own; other names are refused where tasks are made, which knows more of them."""
    return plugin_or("task", (), text) if is_path(text) else text


TaskName = Annotated[str, AfterValidator(_found_task)]

COLUMNS = {
    "text-classification": "text, label; text_pair for two texts",
    "text-to-text": "input, target",
    "causal-lm": "prompt, completion; or messages; or instruction, input, output",
    "zero-shot-image-classification": "image, label",
    "image-classification": "image, label",
    "multi-label-classification": "text, label (a list, in a column labels); text_pair for two texts",
    "regression": "text, label (a number); text_pair for two texts",
    "token-classification": "tokens, tags (lists)",
    "question-answering": "question, context, answers (as SQuAD)",
    "sentence-embeddings": "anchor, positive; negative, or score from -1 to 1",
    "preference-pairs": "chosen, rejected (texts or conversations); prompt, input where they do not hold it",
}
"""What each task reads; a test keeps the roles those of the tasks."""

IN_PYTHON = "rows given in Python"
"""What a recipe says in place of a location where rows came from memory."""

COMPARED = (
    "naive", "permutation", "random", "random-sign", "mean", "force", "soft", "gradfix", "control", "auto", "few-shot",
    "oracle", "full",
)  # fmt: skip
"""The rows of a comparison beside the new base; a test keeps them those of :mod:`gradfix.transport.comparison`."""

BY_VALIDATION, BEST_ON_TEST = "-by-validation", "-best-on-test"
"""After the name of a row: the same with α chosen on validation data, or with the α that scores best on test data."""

BY_NAME = ("permutation",)
"""Rows that stand in the table only where they are named: not every architecture's units can be reordered."""

ROWS = ("support", "data", "validation", "unlabelled", "align_data")
"""The options of a transport that name rows which shape the model."""

AUTO_STEPS = 4
"""Re-votes that ``--method auto`` tries at most."""

Align = Literal["auto", "none", "regression", "answers", "procrustes", "permutation"]
AlignName = Annotated[str, AfterValidator(partial(plugin_or, "alignment", get_args(Align)))]
AlignData = Annotated[
    str | None,
    Field(
        description="inputs to align on, and to judge methods by; labels not needed; else the labelled data's own"
    ),
]
Unlabelled = Annotated[
    str | None,
    Field(description="inputs without labels, or prompts, that vote too, as the tuned source answers them"),
]
GenerateInputs = Annotated[
    int | None,
    Field(
        ge=1,
        le=MOST,
        description="answers to each labelled prompt that the tuned source draws; they vote, too",
    ),
]

Encoding = Annotated[
    str | None, Field(description="of csv, tsv and json files, such as latin-1 or utf-16; UTF-8 if not given")
]

Head = Annotated[
    Literal["copy", "probe"], Field(description="copy the tuned head, or refit it on the samples")
]

Vote = Literal["majority", "mean"]
Sampling = Literal["random", "herding", "k-medoids", "coreset"]


def _readable_size(text: Any) -> Any:
    if isinstance(text, int) and not isinstance(text, bool):
        text = str(text)
    if isinstance(text, str) and text != "auto":
        parse_size(text)
    return text


Memory = Annotated[
    str,
    BeforeValidator(_readable_size),
    Field(description="auto, or how much may be used, as 4GB: a larger model is fetched block by block"),
]
ComputeDtype = Annotated[
    Literal["auto", "float32", "bfloat16", "float16"],
    Field(
        description="number format in which the model computes; auto: as stored where the device does so natively, "
        "else float32"
    ),
]


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
    if not 1 <= size < 2**63:
        raise ValueError(f"expected a size such as 5GB or 500MB, found {text!r}")
    return int(size)
