"""What tasks on one text or two share: the columns, the tokenizer, and the refusal of half a pair."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from typing_extensions import override

from gradfix.errors import GradfixError, column_option
from gradfix.tasks.base import Batch, ModelTask, RowLike
from gradfix.tasks.data import origin
from gradfix.tasks.loading import context_length, load_tokenizer, padding_id
from gradfix.tasks.text import pad_all, tokenize

TEXTS = ("text", "text_pair")


class TextInputs(ModelTask):
    """A task whose inputs are the columns ``text`` and, if it has one, ``text_pair``."""

    truncates = True
    reads_text = True

    def __init__(self, text: str, text_pair: str | None, label: str, *more: Any) -> None:
        super().__init__({"text": text, "text_pair": text_pair or None, "label": label}, *more)
        self.alone = text_pair == ""
        """Whether a second text is left out on purpose."""

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
        """Refuse rows without text, or with one text of two."""
        for role in TEXTS:
            if role in self.columns:
                self._texts(rows, role)
        super().check(rows, support=support)
        if "text_pair" not in self.columns and not self.alone:
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

    def _encoded_texts(self, rows: Sequence[RowLike], *, strict: bool) -> Batch:
        """Tokens of the texts, padded, and which samples were cut."""
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
        return {**pad_all(encoded, self.padding), "truncated": torch.tensor(cut)}

    @override
    def size(self, row: RowLike) -> int:
        """The characters of the texts."""
        return sum(len(str(row.get(self.columns[role], ""))) for role in TEXTS if role in self.columns)


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
