"""What tasks with classes share: labels by name, cross-entropy, accuracy, and the head."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from typing_extensions import override

from gradfix.errors import GradfixError, listed
from gradfix.tasks.base import Batch, Measured, RowLike
from gradfix.tasks.data import origin
from gradfix.tasks.labelled import Labelled


class Classification(Labelled):
    """One of C classes a sample; loss is the cross-entropy, the metric is accuracy.

    Args:
        columns: The data's column for each role.
        labels: Names in the order of their ids, or ``id2label``; the bound model's by default. Where the
            target base has no head of the task, give those of the tuned model.
        max_length: Longest input in tokens.
    """

    metric = "accuracy"

    @property
    @override
    def class_names(self) -> Sequence[str]:
        return self.labels.names

    @override
    def classes(self, rows: Sequence[RowLike]) -> list[int]:
        values = self._column(rows, "label")
        return [
            self.labels.id_of(value, origin(row, position))
            for position, (row, value) in enumerate(zip(rows, values, strict=True))
        ]

    @override
    def shown(self, row: RowLike) -> tuple[dict[str, Any], str]:
        """A row as a person reads it, its class by name: data may hold a number."""
        return super().shown(row)[0], self.labels.names[self.classes([row])[0]]

    @override
    def check(self, rows: Sequence[RowLike], *, support: bool = False) -> None:
        """Refuse rows without a known label, and a support set that misses a class."""
        super().check(rows, support=support)
        present = set(self.classes(rows))
        if not support:
            return
        if len(present) == 1:
            only = self.labels.names[present.pop()]
            raise GradfixError(f"the support set has one class only ({only!r}); give samples of every class")
        absent = [name for index, name in enumerate(self.labels.names) if index not in present]
        if absent:
            raise GradfixError(
                f"the support set has no sample of {len(absent)} of the {len(self.labels)} classes: "
                f"{listed(absent)}"
            )

    @abstractmethod
    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """The scores of the classes.

        Args:
            model: The model.
            batch: What `encode` returned.

        Returns:
            ``[B, C]`` float32.
        """

    @override
    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The cross-entropy of each sample."""
        logits = self.logits(model, batch)
        return cross_entropy(logits, batch["labels"].to(logits.device), reduction="none")

    @override
    def measure(self, model: nn.Module, batch: Batch) -> Measured:
        """Losses, hits (1 or 0) and predicted label names."""
        logits = self.logits(model, batch)
        labels = batch["labels"].to(logits.device)
        predicted = logits.argmax(dim=1)
        names = [self.labels.names[index] for index in predicted.tolist()]
        losses = cross_entropy(logits, labels, reduction="none")
        return Measured(losses, (predicted == labels).float(), names, logits)
