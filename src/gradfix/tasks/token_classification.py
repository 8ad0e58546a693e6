"""Token classification: a tag for each word of a sentence (named entities, parts of speech)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import override

from gradfix.errors import GradfixError
from gradfix.tasks.base import Batch, Measured, RowLike, register
from gradfix.tasks.data import origin
from gradfix.tasks.forward import placed
from gradfix.tasks.headed import Headed
from gradfix.tasks.labelled import Labelled
from gradfix.tasks.loading import context_length, load_tokenizer, padding_id
from gradfix.tasks.metrics import Totals, Values, as_values, f1_totals, f_measure, jackknife, matched_entities
from gradfix.tasks.text import pad, pad_all, refuse_long, token_losses

OUTSIDE = "O"


@register
class TokenClassification(Headed, Labelled):
    """Models of ``AutoModelForTokenClassification``.

    A word's tag stands at its first word piece; the others are not asked. The loss of a sample is the mean
    cross-entropy over its words. Where tags have a scheme (``B-PER``, ``I-PER``) the metric is F1 over all entities, as
    seqeval counts them, with precision and recall beside it; else it is the share of words with the right tag. A word
    beyond the model's context has no part in the loss and counts as outside.

    Args:
        tokens: The column with the words, a list of texts.
        tags: The column with their tags, a list of names or ids.
        labels: Names of the tags in the order of their ids, or ``id2label``; the bound model's by default.
        max_length: Longest input in word pieces; the model's context by default.
    """

    name = "token-classification"
    metric = "f1"
    auto_class = "AutoModelForTokenClassification"
    truncates = True
    answer = "tags"

    def __init__(
        self,
        tokens: str = "tokens",
        tags: str = "tags",
        *,
        labels: Sequence[str] | Mapping[Any, str] | None = None,
        max_length: int | None = None,
    ) -> None:
        super().__init__({"tokens": tokens, "tags": tags}, labels, max_length)
        self._choose_metric()

    @override
    def bind(self, location: str | Path, *, trust_remote_code: bool = False) -> None:
        """Take the tokenizer and configuration, and the names of the tags unless they were given."""
        super().bind(location, trust_remote_code=trust_remote_code)
        self._choose_metric()

    @override
    def use_tuned(self, config: Mapping[str, Any]) -> None:
        """Take the names of the tags."""
        super().use_tuned(config)
        if config.get("id2label"):
            self.use_labels({int(key): name for key, name in config["id2label"].items()})

    @override
    def use_labels(self, labels: Sequence[str] | Mapping[Any, str]) -> None:
        """Replace the tags, and measure as fits them."""
        super().use_labels(labels)
        self._choose_metric()

    def _choose_metric(self) -> None:
        self._entities = not self.has_labels or any(name[:2] in ("B-", "I-") for name in self.labels.names)
        self.metric = "f1" if self._entities else "accuracy"

    @override
    def _bind_processors(self, location: str | Path, trust_remote_code: bool) -> None:
        self.tokenizer = load_tokenizer(location, trust_remote_code=trust_remote_code)
        if not self.tokenizer.is_fast:
            raise GradfixError(
                f"{location}: its tokenizer can't tell which word a piece is of; save a fast one there (tokenizer.json)"
            )
        self.padding = padding_id(self.tokenizer, location)
        self.limit = self.max_length or context_length(self.config, self.tokenizer)

    @override
    def check(self, rows: Sequence[RowLike], *, support: bool = False) -> None:
        """Refuse rows without words, or without a tag for each."""
        super().check(rows, support=support)
        self._words(rows)
        self._tag_ids(rows)

    def _words(self, rows: Sequence[RowLike]) -> list[list[str]]:
        found = []
        for position, (row, words) in enumerate(zip(rows, self._column(rows, "tokens"), strict=True)):
            if (
                not isinstance(words, list | tuple)
                or not words
                or not all(isinstance(word, str) for word in words)
            ):
                raise GradfixError(
                    f"{origin(row, position)}: column {self.columns['tokens']!r}: expected a list of words, found "
                    f"{'an empty list' if words in ([], ()) else type(words).__name__}"
                )
            found.append(list(words))
        return found

    def _tag_ids(self, rows: Sequence[RowLike]) -> list[list[int]]:
        found = []
        for position, (row, tags, words) in enumerate(
            zip(rows, self._column(rows, "tags"), self._column(rows, "tokens"), strict=True)
        ):
            where = f"{origin(row, position)}: column {self.columns['tags']!r}"
            tags = tags.tolist() if hasattr(tags, "tolist") else tags
            if not isinstance(tags, list | tuple) or len(tags) != len(words):
                count = len(tags) if isinstance(tags, list | tuple) else type(tags).__name__
                raise GradfixError(f"{where}: expected a tag for each of {len(words)} words, found {count}")
            found.append([self.labels.id_of(tag, where) for tag in tags])
        return found

    @override
    def encode(self, rows: Sequence[RowLike], *, strict: bool = False) -> Batch:
        """Tokenise word by word, and put each tag at its word's first piece."""
        words, tags = self._words(rows), self._tag_ids(rows)
        encoded = self._tokens(words)
        lengths = [len(ids) for ids in encoded["input_ids"]]
        cut = [self.limit is not None and length > self.limit for length in lengths]
        if any(cut):
            if strict:
                refuse_long(rows, lengths, cut, self.limit)
            encoded = self._tokens(words, truncation=True, max_length=self.limit)
        places, labels = [], []
        for position, own in enumerate(tags):
            of_piece = encoded.word_ids(position)
            first = {word: piece for piece, word in reversed(list(enumerate(of_piece))) if word is not None}
            if not first:
                raise GradfixError(
                    f"{origin(rows[position], position)}: the tokenizer makes no token of its words"
                )
            places.append([first.get(word, -1) for word in range(len(own))])
            labels.append([-100] * len(of_piece))
            for word, piece in first.items():
                labels[-1][piece] = own[word]
        return {
            **pad_all({key: [list(ids) for ids in encoded[key]] for key in encoded}, self.padding),
            "labels": pad(labels, -100),
            "words_at": pad(places, -1),
            "tags": pad(tags, -100),
            "truncated": torch.tensor(cut),
        }

    def _tokens(self, words: list[list[str]], **options: Any) -> Any:
        try:
            return self.tokenizer(words, is_split_into_words=True, verbose=False, **options)
        except AssertionError:
            # GPT-2's and its kin tell a word's beginning by the blank before it.
            self.tokenizer = type(self.tokenizer).from_pretrained(self.location, add_prefix_space=True)
            return self.tokenizer(words, is_split_into_words=True, verbose=False, **options)

    def _outputs(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        logits: Tensor = model(**placed(model, batch)).logits
        return logits.float(), batch["labels"].to(logits.device)

    @override
    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean cross-entropy over each sample's words."""
        return token_losses(*self._outputs(model, batch))

    @override
    def measure(self, model: nn.Module, batch: Batch) -> Measured:
        """Losses, how right each sentence is, and its predicted tags."""
        logits, labels = self._outputs(model, batch)
        best = logits.argmax(dim=2).cpu()
        sentences, counts = [], []
        for chosen, places, tags in zip(
            best, batch["words_at"].tolist(), batch["tags"].tolist(), strict=True
        ):
            wanted = [self.labels.names[tag] for tag in tags if tag != -100]
            found = [
                self.labels.names[int(chosen[place])] if place >= 0 else OUTSIDE
                for place in places[: len(wanted)]
            ]
            sentences.append(" ".join(found))
            if self._entities:
                counts.append(matched_entities(found, wanted))
            else:
                counts.append((sum(map(str.__eq__, found, wanted)), len(wanted), len(wanted)))
        statistics = torch.tensor(counts, dtype=torch.float64)
        scores = torch.from_numpy(f_measure(as_values(statistics))).float()
        return Measured(token_losses(logits, labels), scores, sentences, statistics=statistics)

    @override
    def totals(self, statistics: Tensor) -> Totals:
        """F1 over all entities, or the share of all words with the right tag."""
        counts = as_values(statistics)
        return f1_totals(counts) if self._entities else Totals(jackknife(counts, _share))

    @override
    def shown(self, row: RowLike) -> tuple[dict[str, Any], str]:
        """The words, and the right tags by name."""
        tags = [self.labels.names[tag] for tag in self._tag_ids([row])[0]]
        return {"tokens": " ".join(self._words([row])[0])}, " ".join(tags)

    @override
    def size(self, row: RowLike) -> int:
        """The characters of the words."""
        return sum(len(str(word)) + 1 for word in row.get(self.columns["tokens"]) or ())


def _share(sums: Values) -> Values:
    found: Values = sums[..., 0] / np.maximum(sums[..., 2], 1)
    return found
