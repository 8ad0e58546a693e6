"""Text classification: one text, or two, to one of C classes."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from typing_extensions import override

from gradfix.tasks.base import Batch, RowLike, register
from gradfix.tasks.headed import HeadedClassification
from gradfix.tasks.text_inputs import TextInputs


@register
class TextClassification(TextInputs, HeadedClassification):
    """Models of ``AutoModelForSequenceClassification``: encoders, and decoders with a score layer.

    Args:
        text: The column with the text.
        text_pair: The column with a second text, if the task has one. Rows that also hold the other half of what
            ``text`` names (premise and hypothesis, sentence1 and sentence2) are refused without it; ``""`` says that
            it is left out on purpose.
        label: The column with the label, a name or an id.
        labels: Names in the order of their ids, or ``id2label``; the bound model's by default.
        max_length: Longest input in tokens; the model's context by default.
    """

    name = "text-classification"
    auto_class = "AutoModelForSequenceClassification"

    def __init__(
        self,
        text: str = "text",
        text_pair: str | None = None,
        label: str = "label",
        *,
        labels: Sequence[str] | Mapping[Any, str] | None = None,
        max_length: int | None = None,
    ) -> None:
        super().__init__(text, text_pair, label, labels, max_length)

    @override
    def encode(self, rows: Sequence[RowLike], *, strict: bool = False) -> Batch:
        """Tokenise and pad."""
        return {**self._encoded_texts(rows, strict=strict), "labels": torch.tensor(self.classes(rows))}
