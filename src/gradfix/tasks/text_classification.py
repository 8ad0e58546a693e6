"""Text classification: one text, or two, to one of C classes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from typing_extensions import override

from gradfix.errors import GradfixError, column_option
from gradfix.tasks.base import Batch, RowLike, register
from gradfix.tasks.data import origin
from gradfix.tasks.headed import HeadedClassification
from gradfix.tasks.loading import context_length, load_tokenizer, padding_id
from gradfix.tasks.text import pad_all, tokenize


@register
class TextClassification(HeadedClassification):
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
    truncates = True
    reads_text = True

    def __init__(
        self,
        text: str = "text",
        text_pair: str | None = None,
        label: str = "label",
        *,
        labels: Sequence[str] | Mapping[Any, str] | None = None,
        max_length: int | None = None,
    ) -> None:
        super().__init__({"text": text, "text_pair": text_pair or None, "label": label}, labels, max_length)
        self._alone = text_pair == ""

    @override
    def _bind_processors(self, location: str | Path, trust_remote_code: bool) -> None:
        self.tokenizer = load_tokenizer(location, trust_remote_code=trust_remote_code)
        self.padding = padding_id(self.tokenizer, location)
        self.limit = self.max_length or context_length(self.config, self.tokenizer)

    @override
    def _config_overrides(self) -> dict[str, Any]:
        # Decoders find the last real token by the padding token, so the model has to know it.
        known = self.config.get_text_config().pad_token_id is not None
        return {**super()._config_overrides(), **({} if known else {"pad_token_id": self.padding})}

    @override
    def check(self, rows: Sequence[RowLike], *, support: bool = False) -> None:
        """Refuse rows without text or a known label, and a support set that misses a class."""
        for role in self.columns.keys() - {"label"}:
            self._texts(rows, role)
        super().check(rows, support=support)
        if "text_pair" not in self.columns and not self._alone:
            self._refuse_half(rows)

    def _refuse_half(self, rows: Sequence[RowLike]) -> None:
        """Refuse one text of two: a model of pairs would be judged and voted on by halves."""
        text = self.columns["text"]
        for position, row in enumerate(rows):
            for other in other_halves(text):
                if isinstance(row.get(other), str) and other not in self.columns.values():
                    raise GradfixError(
                        f"{origin(row, position)}: has a second text in column {other!r} beside {text!r}; give "
                        f"{column_option('text_pair', other)}, or {column_option('text_pair', '')} to leave it out"
                    )

    @override
    def encode(self, rows: Sequence[RowLike], *, strict: bool = False) -> Batch:
        """Tokenise and pad."""
        pairs = self._texts(rows, "text_pair") if "text_pair" in self.columns else None
        encoded, cut = tokenize(
            self.tokenizer, self._texts(rows, "text"), pairs, limit=self.limit, strict=strict, rows=rows
        )
        if self.tokenizer.pad_token_id is None:
            for position, ids in enumerate(encoded["input_ids"]):
                # The decoder would take this for padding and read an earlier token than it does unpadded.
                if ids[-1] == self.padding:
                    raise GradfixError(
                        f"{origin(rows[position], position)}: ends with the end-of-sequence token, which "
                        "is the padding here; remove it, or set pad_token in tokenizer_config.json"
                    )
        return {
            **pad_all(encoded, self.padding),
            "labels": torch.tensor(self.classes(rows)),
            "truncated": torch.tensor(cut),
        }

    @override
    def size(self, row: RowLike) -> int:
        """The characters of the texts."""
        return sum(len(str(row.get(self.columns[role], ""))) for role in self.columns.keys() - {"label"})


_HALVES = (
    {"premise", "hypothesis"},
    {"question", "sentence"},
    {"question", "passage"},
    {"question", "context"},
    {"question", "answer"},
    {"query", "passage"},
    {"query", "document"},
    {"claim", "evidence"},
)
_ENDINGS = (("1", "2"), ("_a", "_b"), ("A", "B"), ("_left", "_right"), ("", "2"), ("", "_pair"))


def other_halves(column: str) -> list[str]:
    """Names under which data hold the other of two texts.

    Args:
        column: The name of one.

    Returns:
        What the published data sets of pairs call it: ``hypothesis`` for ``premise``, ``sentence2`` for ``sentence1``.
    """
    named = [other for pair in _HALVES if column in pair for other in sorted(pair - {column})]
    for ending in _ENDINGS:
        for mine, other in (ending, ending[::-1]):
            if column.endswith(mine):
                named.append(column[: len(column) - len(mine)] + other)
    return named
