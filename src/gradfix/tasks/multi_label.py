"""Multi-label classification: any number of C labels for one text, or two."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from typing_extensions import override

from gradfix.errors import GradfixError
from gradfix.tasks.base import Batch, Measured, RowLike, register
from gradfix.tasks.data import origin
from gradfix.tasks.forward import placed
from gradfix.tasks.headed import Headed
from gradfix.tasks.labelled import Labelled
from gradfix.tasks.metrics import Totals, as_values, f1_totals, f_measure
from gradfix.tasks.text_inputs import TextInputs


@register
class MultiLabelClassification(TextInputs, Headed, Labelled):
    """Models of ``AutoModelForSequenceClassification`` with ``problem_type`` multi_label_classification.

    The loss of a sample is the mean over labels of the binary cross-entropy; a label is predicted from a probability of
    one half on; the metric is F1 over all labels of all samples (micro), with precision and recall beside it.

    Args:
        text: The column with the text.
        text_pair: The column with a second text, if the task has one; ``""`` leaves one out on purpose.
        label: The column with each text's labels: a list of names or ids, maybe empty; or of as many 0.0 and 1.0 as
            there are labels.
        labels: Names in the order of their ids, or ``id2label``; the bound model's by default.
        max_length: Longest input in tokens; the model's context by default.
    """

    name = "multi-label-classification"
    metric = "f1"
    auto_class = "AutoModelForSequenceClassification"
    problem = "multi_label_classification"

    def __init__(
        self,
        text: str = "text",
        text_pair: str | None = None,
        label: str = "labels",
        *,
        labels: Sequence[str] | Mapping[Any, str] | None = None,
        max_length: int | None = None,
    ) -> None:
        super().__init__(text, text_pair, label, labels, max_length)

    @override
    def use_tuned(self, config: Mapping[str, Any]) -> None:
        """Take the names of the labels; refuse a head that was not trained for several at once."""
        super().use_tuned(config)
        if config.get("id2label") and config.get("problem_type") is None:
            raise GradfixError(
                f"task {self.name}: the tuned model's config.json states no problem_type, and a head trained to choose "
                'one label has other outputs; set "problem_type": "multi_label_classification" there if it was trained '
                "for several, else give --task text-classification"
            )
        if config.get("id2label"):
            self.use_labels({int(key): name for key, name in config["id2label"].items()})

    @override
    def _config_overrides(self) -> dict[str, Any]:
        return {**super()._config_overrides(), "problem_type": self.problem}

    @override
    def check(self, rows: Sequence[RowLike], *, support: bool = False) -> None:
        """Refuse rows without text, or with what are no labels."""
        super().check(rows, support=support)
        self._wanted(rows)

    def _wanted(self, rows: Sequence[RowLike]) -> list[list[float]]:
        column = self.columns["label"]
        return [
            self._vector(value, f"{origin(row, position)}: column {column!r}")
            for position, (row, value) in enumerate(zip(rows, self._column(rows, "label"), strict=True))
        ]

    def _vector(self, value: Any, where: str) -> list[float]:
        """0 or 1 a label."""
        value = value.tolist() if hasattr(value, "tolist") else value
        if not isinstance(value, list | tuple):
            raise GradfixError(f"{where}: expected a list of labels, found {type(value).__name__}")
        count = len(self.labels)
        flags = [item for item in value if isinstance(item, float | bool)]
        if flags:
            if len(value) != count or any(item not in (0, 1) for item in value):
                raise GradfixError(
                    f"{where}: expected {count} values of 0.0 or 1.0, one a label, found {value!r}"
                )
            return [float(item) for item in value]
        if len(value) == count and all(type(item) is int and item in (0, 1) for item in value):
            raise GradfixError(
                f"{where}: {value!r} can be ids of labels or a 0 or 1 for each; write names, or 0.0 and 1.0"
            )
        wanted = [0.0] * count
        for item in value:
            wanted[self.labels.id_of(item, where)] = 1.0
        return wanted

    @override
    def encode(self, rows: Sequence[RowLike], *, strict: bool = False) -> Batch:
        """Tokenise and pad."""
        return {**self._encoded_texts(rows, strict=strict), "labels": torch.tensor(self._wanted(rows))}

    def _outputs(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        logits: Tensor = model(**placed(model, batch)).logits
        return logits.float(), batch["labels"].to(logits.device)

    @override
    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean over labels of the binary cross-entropy."""
        logits, wanted = self._outputs(model, batch)
        return binary_cross_entropy_with_logits(logits, wanted, reduction="none").mean(dim=1)

    @override
    def measure(self, model: nn.Module, batch: Batch) -> Measured:
        """Losses, F1 of each sample's labels, and the labels predicted."""
        logits, wanted = self._outputs(model, batch)
        predicted = (logits > 0).float()
        counts = torch.stack([(predicted * wanted).sum(1), predicted.sum(1), wanted.sum(1)], dim=1)
        names = [", ".join(self._names(row)) for row in predicted]
        losses = binary_cross_entropy_with_logits(logits, wanted, reduction="none").mean(dim=1)
        return Measured(
            losses, torch.from_numpy(f_measure(as_values(counts))).float(), names, statistics=counts
        )

    def _names(self, flags: Tensor) -> list[str]:
        return [self.labels.names[index] for index in flags.nonzero().flatten().tolist()]

    @override
    def totals(self, statistics: Tensor) -> Totals:
        """F1 over all labels of all samples."""
        return f1_totals(as_values(statistics))

    @override
    def shown(self, row: RowLike) -> tuple[dict[str, Any], str]:
        """A row as a person reads it, its labels by name."""
        return super().shown(row)[0], ", ".join(self._names(torch.tensor(self._wanted([row])[0])))
