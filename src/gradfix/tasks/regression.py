"""Regression: one text, or two, to a number (similarity, quality, price)."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from gradfix.errors import GradfixError
from gradfix.tasks.base import Batch, Measured, RowLike, register
from gradfix.tasks.data import origin
from gradfix.tasks.forward import placed
from gradfix.tasks.headed import Headed
from gradfix.tasks.metrics import Totals, as_values, correlation_totals
from gradfix.tasks.text_inputs import TextInputs


@register
class Regression(TextInputs, Headed):
    """Models of ``AutoModelForSequenceClassification`` with one output, as those of STS-B.

    The loss of a sample is its squared error; the metric is Pearson's correlation of predictions and targets, with
    Spearman's beside it. Targets are in the units in which the model was tuned: nothing is rescaled.

    Args:
        text: The column with the text.
        text_pair: The column with a second text, if the task has one; ``""`` leaves one out on purpose.
        label: The column with the number.
        max_length: Longest input in tokens; the model's context by default.
    """

    name = "regression"
    metric = "pearson"
    auto_class = "AutoModelForSequenceClassification"
    problem = "regression"

    def __init__(
        self,
        text: str = "text",
        text_pair: str | None = None,
        label: str = "label",
        *,
        max_length: int | None = None,
    ) -> None:
        super().__init__(text, text_pair, label, max_length)

    @override
    def use_tuned(self, config: Any) -> None:
        """Refuse a head of several outputs."""
        super().use_tuned(config)
        names = config.get("id2label")
        if names is not None and len(names) != 1:
            raise GradfixError(
                f"task {self.name}: the tuned model has {len(names)} outputs ({', '.join(map(str, names.values()))}); "
                "a regression has one: give --task text-classification, or a CustomTask in Python"
            )

    @override
    def _config_overrides(self) -> dict[str, Any]:
        head = {"id2label": {0: "LABEL_0"}, "label2id": {"LABEL_0": 0}, "problem_type": "regression"}
        return {**super()._config_overrides(), **head}

    @override
    def check(self, rows: Sequence[RowLike], *, support: bool = False) -> None:
        """Refuse rows without text or a number."""
        super().check(rows, support=support)
        self._targets(rows)

    def _targets(self, rows: Sequence[RowLike]) -> list[float]:
        return [
            as_number(value, f"{origin(row, position)}: column {self.columns['label']!r}")
            for position, (row, value) in enumerate(zip(rows, self._column(rows, "label"), strict=True))
        ]

    @override
    def encode(self, rows: Sequence[RowLike], *, strict: bool = False) -> Batch:
        """Tokenise and pad."""
        return {**self._encoded_texts(rows, strict=strict), "labels": torch.tensor(self._targets(rows))}

    def _predictions(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        outputs: Tensor = model(**placed(model, batch)).logits
        return outputs[:, 0].float(), batch["labels"].to(outputs.device)

    @override
    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The squared error of each sample."""
        predicted, wanted = self._predictions(model, batch)
        return (predicted - wanted).square()

    @override
    def measure(self, model: nn.Module, batch: Batch) -> Measured:
        """Squared errors, 1 / (1 + |error|), and the predicted numbers."""
        predicted, wanted = self._predictions(model, batch)
        error = predicted - wanted
        return Measured(
            error.square(),
            1 / (1 + error.abs()),
            [round(value, 4) for value in predicted.tolist()],
            statistics=torch.stack([predicted, wanted], dim=1),
        )

    @override
    def totals(self, statistics: Tensor) -> Totals:
        """Pearson's correlation, and Spearman's beside it."""
        return correlation_totals(as_values(statistics), ranked=False)


def as_number(value: Any, where: str) -> float:
    """Read a number as data hold it.

    Args:
        value: A number, or as csv has it a text that is one.
        where: How an error names the row and column.

    Returns:
        It.

    Raises:
        GradfixError: If it is none, or not finite.
    """
    try:
        number = math.nan if isinstance(value, bool) or value is None else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise GradfixError(f"{where}: expected a number, found {value!r}")
    return number
