"""A task made of functions, for models that transformers does not know."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from gradfix.tasks.base import Measured


@dataclass(frozen=True)
class CustomTask:
    """Any model and any loss: open_clip, timm, your own.

    Attributes:
        encode_rows: ``(rows) -> batch``, a nesting of tensors whose first dimension is the sample.
        loss_of: ``(model, batch) -> [B]``, differentiable, one value a sample.
        predict_of: ``(model, batch) -> (predictions, scores)``: B values and ``[B]`` scores in [0, 1], 1
            where right.
        name: How results call the task.
        metric: What the mean score is.
        size_of: ``(row) -> int``, to batch samples of like sizes; all alike by default.
    """

    encode_rows: Callable[[Sequence[Any]], Any]
    loss_of: Callable[[nn.Module, Any], Tensor]
    predict_of: Callable[[nn.Module, Any], tuple[Sequence[Any], Tensor]]
    name: str = "custom"
    metric: str = "accuracy"
    size_of: Callable[[Any], int] = field(default=lambda row: 0)

    def encode(self, rows: Sequence[Any], *, strict: bool = False) -> Any:
        """Turn rows into a batch.

        Args:
            rows: The samples.
            strict: Without effect: the function decides what it truncates.

        Returns:
            The batch.
        """
        return self.encode_rows(rows)

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """The loss of each sample.

        Args:
            model: The model.
            batch: What `encode` returned.

        Returns:
            ``[B]`` float32.
        """
        return self.loss_of(model, batch).float()

    def measure(self, model: nn.Module, batch: Any) -> Measured:
        """Losses, scores and predictions.

        Args:
            model: The model.
            batch: What `encode` returned.

        Returns:
            One of each a sample.
        """
        predictions, scores = self.predict_of(model, batch)
        return Measured(self.loss(model, batch), scores.float(), list(predictions))

    def size(self, row: Any) -> int:
        """About how long a sample is.

        Args:
            row: A sample.

        Returns:
            What the function says.
        """
        return self.size_of(row)
