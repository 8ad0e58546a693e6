"""What a task is, and what the tasks of transformers models share.

Letters used below: B samples in a batch, L tokens, C classes, d features.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

import torch
from torch import Tensor, nn

from gradfix.errors import GradfixError, column_option, option
from gradfix.tasks.data import origin
from gradfix.tasks.loading import empty_model, explained, load_config, load_pretrained
from gradfix.tasks.metrics import Totals

Batch = dict[str, Tensor]
RowLike = Mapping[str, Any]
CHECKED_AT_ONCE = 256


@dataclass(frozen=True)
class Measured:
    """What one forward pass tells about each of B samples.

    Attributes:
        losses: ``[B]`` float32.
        scores: ``[B]`` float32 in [0, 1]; their mean over samples is the task's metric unless there are statistics.
        predictions: B values that JSON can say: label names, texts.
        logits: ``[B, C]``, of which the losses are the cross-entropy; None for tasks without classes.
        statistics: ``[B, k]``, of which the task's `totals` makes a metric that is no mean of scores; None where the
            mean score is the metric.
    """

    losses: Tensor
    scores: Tensor
    predictions: list[Any]
    logits: Tensor | None = None
    statistics: Tensor | None = None


class Task(Protocol):
    """What evaluation and votes need of a task; anything of this shape will do.

    Attributes:
        name: How results call the task.
        metric: What the score is: "accuracy", "exact_match", "f1", "pearson".
    """

    name: str
    metric: str

    def encode(self, rows: Sequence[Any], *, strict: bool = False) -> Any:
        """Turn rows into a batch: a nesting of tensors whose first dimension is the sample.

        Args:
            rows: The samples.
            strict: Refuse a sample that would have to be truncated.
        """

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """One loss a sample: ``[B]``, differentiable.

        Args:
            model: The model; its mode and its parameters stay as they are.
            batch: What `encode` returned.
        """

    def measure(self, model: nn.Module, batch: Any) -> Measured:
        """Losses, scores and predictions, sharing one forward pass where they can.

        Args:
            model: The model.
            batch: What `encode` returned.
        """

    def size(self, row: Any) -> int:
        """About how long a sample is, in any unit: evaluation batches samples of like sizes.

        Args:
            row: A sample.
        """


class ModelTask(ABC):
    """The shared part of the tasks on transformers models.

    A task is made, then bound to where its model lies (`bind`: tokenizer or image processor, length of
    context, label names). `load_model` binds by itself if nobody did.

    Args:
        columns: The data's column for each role the task reads; None for a role that is not used.
        max_length: Longest input in tokens; the model's context by default.
    """

    name: str
    metric: str
    auto_class: ClassVar[str]
    truncates: ClassVar[bool] = False
    """Whether `encode` may cut a sample to the model's context."""
    answer: ClassVar[str] = "label"
    """The role of the column with the right answer."""
    reads_text: ClassVar[bool] = False
    """Whether its inputs are texts."""
    one_shape: ClassVar[bool] = False
    """Whether `encode` makes the same of a sample whatever its batch: then each is encoded once for training."""
    rows_are: ClassVar[str] = ""
    """What is said of rows that tell by themselves that they are of this task."""
    builds_model: bool = False
    """Whether `load_model` makes an empty module without looking at a place, so that weights need no directory around
    them; all its parameters and buffers are then filled from the weights."""

    def __init__(self, columns: Mapping[str, str | None], max_length: int | None = None) -> None:
        if max_length is not None and max_length < 1:
            raise GradfixError(f"{option('max_length')}: expected at least 1 token, found {max_length}")
        self.columns = {role: column for role, column in columns.items() if column is not None}
        self.max_length = max_length
        self.config: Any = None
        self.location = self.name

    def bind(self, location: str | Path, *, trust_remote_code: bool = False) -> None:
        """Take the processors and the configuration of the model at a place.

        Args:
            location: A model directory or Hub id: the target base, whose tokenizer the transported model will
                have.
            trust_remote_code: Allow the code that a repository brings.

        Raises:
            GradfixError: If the tokenizer or image processor is missing or unusable, or custom code is
            needed.
        """
        self.location = str(location)
        self.config = load_config(location, trust_remote_code=trust_remote_code)
        with explained(location, "use its tokenizer or processor"):
            self._bind_processors(location, trust_remote_code)

    @abstractmethod
    def _bind_processors(self, location: str | Path, trust_remote_code: bool) -> None:
        """Load what turns rows into tensors."""

    def load_model(
        self,
        location: str | Path,
        *,
        dtype: torch.dtype | str = "auto",
        device: torch.device | str = "cpu",
        trust_remote_code: bool = False,
        **config: Any,
    ) -> nn.Module:
        """Load the model this task runs, in eval mode.

        Args:
            location: A model directory or Hub id.
            dtype: Of the weights; as stored by default.
            device: Where to put it.
            trust_remote_code: Allow the code that a repository brings.
            **config: Values that replace the configuration's, such as ``id2label``.

        Returns:
            The model. Parameters that the checkpoint lacks (a new head) have seeded random values.

        Raises:
            GradfixError: If it cannot be loaded as a model of this task.
        """
        if self.config is None:
            self.bind(location, trust_remote_code=trust_remote_code)
        overrides = {**self._config_overrides(), **config}
        model = load_pretrained(
            self.auto_class, location, overrides, dtype=dtype, trust_remote_code=trust_remote_code
        )
        with explained(f"--device {device}", "be used"):
            return model.to(device)

    def empty_model(
        self, location: str | Path, *, dtype: torch.dtype, trust_remote_code: bool = False, **config: Any
    ) -> nn.Module:
        """Build the model this task runs, without weights.

        Args:
            location: A model directory or Hub id.
            dtype: Of the weights that it will get.
            trust_remote_code: Allow the code that a repository brings.
            **config: Values that replace the configuration's, such as ``id2label``.

        Returns:
            The model, its parameters on the meta device.

        Raises:
            GradfixError: If it cannot be built as a model of this task, or the task builds its model itself.
        """
        if self.builds_model:
            raise GradfixError(
                f"{self.name}: a model that the task builds itself can't be fetched block by block; give --memory a "
                "size that it fits in"
            )
        if self.config is None:
            self.bind(location, trust_remote_code=trust_remote_code)
        overrides = {**self._config_overrides(), **config}
        return empty_model(
            self.auto_class, location, overrides, dtype=dtype, trust_remote_code=trust_remote_code
        )

    def _config_overrides(self) -> dict[str, Any]:
        return {}

    def prepare(self, model: nn.Module) -> None:
        """Compute once what stays fixed while weights change; nothing for most tasks.

        Args:
            model: The target base as it was loaded.
        """
        del model  # most tasks have nothing to compute

    @abstractmethod
    def encode(self, rows: Sequence[RowLike], *, strict: bool = False) -> Batch:
        """Turn rows into tensors whose first dimension is the sample, padded to the longest.

        Args:
            rows: At least one sample.
            strict: Refuse a sample that would have to be truncated.

        Returns:
            The model's inputs, ``labels``, and ``truncated`` (``[B]`` bool): which samples were cut.
        """

    @abstractmethod
    def measure(self, model: nn.Module, batch: Batch) -> Measured:
        """Losses, scores and predictions of a batch.

        Args:
            model: The model.
            batch: What `encode` returned.

        Returns:
            One of each a sample.
        """

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The loss of each sample.

        Args:
            model: The model.
            batch: What `encode` returned.

        Returns:
            ``[B]`` float32, differentiable.
        """

    def for_rows(self, rows: Sequence[RowLike]) -> "ModelTask":
        """Give the task that rows are of, where their layout tells that they are of another one.

        Args:
            rows: The samples.

        Returns:
            This task, or the other one, not bound yet.
        """
        del rows  # most tasks have one layout
        return self

    def judging(self) -> "ModelTask":
        """Give the task as results are judged, where that takes more than choosing settings does.

        Returns:
            This task, or a copy with another metric, for the same batches.
        """
        return self

    def doubts(self, rows: Sequence[RowLike]) -> list[str]:
        """Say what of rows makes their metric tell little.

        Args:
            rows: Labelled samples to judge on.

        Returns:
            Sentences with their remedies.
        """
        del rows  # most metrics fit all rows
        return []

    def run_once(self, model: nn.Module, batch: Batch) -> Tensor:
        """Run a model once on each sample, for what passes inside it.

        Args:
            model: The model.
            batch: What `encode` returned.

        Returns:
            The losses, or what they are made of, one a sample.
        """
        return self.loss(model, batch)

    @abstractmethod
    def features(self, model: nn.Module, batch: Batch) -> Tensor:
        """What the model makes of each sample before any head, for choosing the support set.

        Args:
            model: The target base.
            batch: What `encode` returned.

        Returns:
            ``[B, d]`` float32.
        """

    @property
    def class_names(self) -> Sequence[str] | None:
        """What messages call the groups of `classes`; None where they have no names."""
        return None

    @property
    def generates(self) -> bool:
        """Whether measuring runs the model once a token of the answer."""
        return False

    def classes(self, rows: Sequence[RowLike]) -> list[int]:
        """The group that each row is sampled within.

        Args:
            rows: The samples.

        Returns:
            A class id a row; all 0 where a task has no classes.
        """
        return [0] * len(rows)

    def check(self, rows: Sequence[RowLike], *, support: bool = False) -> None:
        """Refuse rows that the task cannot use, before a weight is read.

        Args:
            rows: The samples.
            support: They are a support set: it needs every class.

        Raises:
            GradfixError: Naming the first row that cannot be used, or the class without samples.
        """
        if not len(rows):
            raise GradfixError("the support set is empty" if support else "there are no rows")

    def shown(self, row: RowLike) -> tuple[dict[str, Any], str]:
        """A row as a person reads it.

        Args:
            row: A sample.

        Returns:
            Its inputs by role, and the right answer as predictions name it.
        """
        columns = {role: column for role, column in self.columns.items() if column in row}
        inputs = {role: row[column] for role, column in columns.items() if role != self.answer}
        return inputs, str(row[columns[self.answer]]) if self.answer in columns else ""

    def rendered(self, row: RowLike) -> str:
        """A sample as the model reads it, where that is more than its columns.

        Args:
            row: A sample.

        Returns:
            A text; empty for most tasks.
        """
        return ""

    def unread_texts(self, rows: Sequence[RowLike]) -> list[str]:
        """Columns that hold text which the task does not read: perhaps the other half of what it should read.

        Args:
            rows: The samples; the first hundred are looked at.

        Returns:
            Names of columns in which at least half of the values are several words.
        """
        if not self.reads_text:
            return []
        looked = [rows[index] for index in range(min(len(rows), 100))]
        read = set(self.columns.values())
        columns = dict.fromkeys(column for row in looked for column in row if column not in read)
        return [
            column
            for column in columns
            if 2 * sum(_several_words(row.get(column)) for row in looked) >= len(looked)
        ]

    def count_cut(self, rows: Sequence[RowLike], *, strict: bool = False) -> int:
        """Count the samples that `encode` cuts to the model's context.

        Args:
            rows: The samples.
            strict: Refuse the first such sample instead.

        Returns:
            Their number.
        """
        if not self.truncates:
            return 0
        parts = (rows[start : start + CHECKED_AT_ONCE] for start in range(0, len(rows), CHECKED_AT_ONCE))
        return sum(int(self.encode(part, strict=strict)["truncated"].sum()) for part in parts)

    def totals(self, statistics: Tensor) -> Totals:
        """The metric over all samples, of a task whose `measure` gives statistics.

        Args:
            statistics: ``[n, k]``.

        Returns:
            What each sample contributes to it.
        """
        raise NotImplementedError(f"{self.name}: its metric is the mean score")

    def use_tuned(self, config: Mapping[str, Any]) -> None:
        """Take from the tuned model's configuration what its head is made for.

        Args:
            config: Its ``config.json``.

        Raises:
            GradfixError: If it is made for another task.
        """
        del config  # most tasks have no head of their own

    def runs(self, config: Mapping[str, Any]) -> bool:
        """Whether a model can be run for this task, as far as its configuration tells.

        Args:
            config: Its ``config.json``.

        Returns:
            False for a part of a model.
        """
        del config  # most tasks ask only for what `load_model` finds out
        return True

    def head_config(self) -> dict[str, Any]:
        """What a model's configuration says of this task's head.

        Returns:
            Entries of ``config.json``; none for a task without a head of its own.
        """
        return {}

    def brought(self, model: nn.Module) -> Collection[str]:
        """Name the parameters that a built model has from elsewhere than its weights.

        Args:
            model: As `load_model` made it.

        Returns:
            Names; where the weights have such a parameter, it is theirs.
        """
        del model
        return ()

    def voters(self, model: nn.Module) -> list[str]:
        """The parameters whose gradients vote.

        Args:
            model: The target base.

        Returns:
            Names, as ``model.named_parameters()`` gives them (tied weights once).
        """
        return [name for name, _ in model.named_parameters()]

    def head(self, model: nn.Module) -> list[str]:
        """The parameters that turn features into the task's output, outside the pre-trained backbone.

        Args:
            model: The model.

        Returns:
            Names of parameters; none for a task whose output is the backbone's own.
        """
        return []

    @abstractmethod
    def size(self, row: RowLike) -> int:
        """About how long a sample is.

        Args:
            row: A sample.

        Returns:
            A number that orders samples by length.
        """

    def _column(self, rows: Sequence[RowLike], role: str) -> list[Any]:
        """The values of one role, all present."""
        column = self.columns[role]
        values = []
        for position, row in enumerate(rows):
            if column not in row:
                raise GradfixError(
                    f"{origin(row, position)}: has no column {column!r} ({role}); "
                    f"found {', '.join(map(repr, row))}; name the column with {column_option(role)}"
                )
            values.append(row[column])
        return values

    def _texts(self, rows: Sequence[RowLike], role: str) -> list[str]:
        values = self._column(rows, role)
        for position, (row, value) in enumerate(zip(rows, values, strict=True)):
            if not isinstance(value, str) or not value.strip():
                found = type(value).__name__ if not isinstance(value, str) else "nothing but blanks"
                raise GradfixError(
                    f"{origin(row, position)}: column {self.columns[role]!r}: expected text, found {found}"
                )
        return values


def _several_words(value: Any) -> bool:
    return isinstance(value, str) and len(value.split()) > 1


TASKS: dict[str, type[ModelTask]] = {}
"""The tasks that are made by name."""

Kind = TypeVar("Kind", bound=type[ModelTask])


def register(kind: Kind) -> Kind:
    """Make the decorated task one that a recipe can name.

    Args:
        kind: The task, with its ``name``.

    Returns:
        The task, unchanged.
    """
    TASKS[kind.name] = kind
    return told_in_one_line(kind)


def told_in_one_line(kind: Kind) -> Kind:
    """Let the decorated task say in one line what another library raises where samples meet it.

    What transformers makes of a wrong configuration shows only there.

    Args:
        kind: The task.

    Returns:
        The task, whose methods are wrapped.
    """
    for name, what in _MEETINGS.items():
        setattr(kind, name, _explaining(getattr(kind, name), what))
    return kind


_MEETINGS = {
    "encode": "turn samples into tensors",
    "prepare": "prepare its model",
    "measure": "run its model",
    "features": "run its model",
}
"""The methods of a task in which samples and another library meet, and what is being done there."""


def _explaining(method: Callable[..., Any], what: str) -> Callable[..., Any]:
    @wraps(method)
    def told(self: ModelTask, *arguments: Any, **options: Any) -> Any:
        with explained(self.location, what):
            return method(self, *arguments, **options)

    return told
