"""Sentence embeddings: how alike two texts are, by the cosine of their vectors."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from typing_extensions import override

from gradfix.errors import GradfixError, column_option
from gradfix.tasks.base import Batch, Measured, ModelTask, RowLike, register
from gradfix.tasks.data import origin
from gradfix.tasks.forward import placed
from gradfix.tasks.loading import context_length, load_tokenizer, padding_id
from gradfix.tasks.metrics import Totals, as_values, correlation_totals, retrieval_totals
from gradfix.tasks.regression import as_number
from gradfix.tasks.sentence_pooling import read_pooling
from gradfix.tasks.text import pad_all, tokenize

TEXTS = ("anchor", "positive", "negative")


@register
class SentenceEmbeddings(ModelTask):
    """Models of ``AutoModel`` with a pooling, as sentence-transformers saves them.

    Each sample has a loss of its own, so a batch's other texts are never its negatives (multiple negatives ranking
    mixes samples, and a vote of one sample would not be its own). What the rows hold chooses loss and metric:

    - ``anchor``, ``positive``, ``score``: (cosine − score)²; Spearman's correlation, with Pearson's beside it.
    - ``anchor``, ``positive``, ``negative``: max(0, margin + cosine to the negative − cosine to the positive); the
      share of triplets in which the positive is nearer.
    - ``anchor``, ``positive``: 1 − cosine; the share of anchors whose nearest among all positives of the data is their
      own, with the mean reciprocal rank beside it.

    Args:
        anchor: The column with a text.
        positive: The column with a text that is like it.
        negative: The column with a text that is unlike it, if there is one.
        score: The column with how alike the two are, from −1 to 1, if there is one.
        margin: Of the loss of triplets, in cosines.
        prefix: Put before every text, such as ``"query: "``; the model's own default prompt if not given.
        max_length: Longest text in tokens; the model's own by default.
    """

    name = "sentence-embeddings"
    metric = "retrieval_accuracy"
    auto_class = "AutoModel"
    truncates = True
    reads_text = True
    answer = "score"

    def __init__(
        self,
        anchor: str = "anchor",
        positive: str = "positive",
        negative: str | None = None,
        score: str | None = None,
        *,
        margin: float = 0.5,
        prefix: str | None = None,
        max_length: int | None = None,
    ) -> None:
        if negative and score:
            raise GradfixError(
                "task sentence-embeddings: give a column for negative or for score, not for both"
            )
        super().__init__(
            {"anchor": anchor, "positive": positive, "negative": negative, "score": score}, max_length
        )
        self.margin, self.prefix = margin, prefix
        if score:
            self.metric = "spearman"
        elif negative:
            self.metric = "triplet_accuracy"

    @override
    def _bind_processors(self, location: str | Path, trust_remote_code: bool) -> None:
        self.tokenizer = load_tokenizer(location, trust_remote_code=trust_remote_code)
        self.padding = padding_id(self.tokenizer, location)
        self.pooling = read_pooling(location)
        self.limit = self.max_length or self.pooling.length or context_length(self.config, self.tokenizer)

    @override
    def load_model(self, location: str | Path, **options: Any) -> nn.Module:
        """Load the network without its pooler, whose output is not read."""
        return _without_pooler(super().load_model(location, **options))

    @override
    def empty_model(self, location: str | Path, **options: Any) -> nn.Module:
        """Build the network without its pooler."""
        return _without_pooler(super().empty_model(location, **options))

    @override
    def check(self, rows: Sequence[RowLike], *, support: bool = False) -> None:
        """Refuse rows without texts, or with a score that is no cosine."""
        super().check(rows, support=support)
        for role in self._roles:
            self._texts(rows, role)
        if "score" in self.columns:
            self._scores(rows)
            return
        for column, role in (("score", "score"), ("label", "score"), ("negative", "negative")):
            if role not in self.columns and column in rows[0] and column not in self.columns.values():
                raise GradfixError(
                    f"{origin(rows[0], 0)}: has a column {column!r} that is not read; give "
                    f"{column_option(role, column)}, or leave it out of the data"
                )

    @property
    def _roles(self) -> list[str]:
        return [role for role in TEXTS if role in self.columns]

    def _scores(self, rows: Sequence[RowLike]) -> list[float]:
        column = self.columns["score"]
        found = []
        for position, (row, value) in enumerate(zip(rows, self._column(rows, "score"), strict=True)):
            number = as_number(value, f"{origin(row, position)}: column {column!r}")
            if not -1 <= number <= 1:
                raise GradfixError(
                    f"{origin(row, position)}: column {column!r}: expected a cosine from −1 to 1, found {number:g}; "
                    "divide the scores by their largest (STS-B's by 5)"
                )
            found.append(number)
        return found

    @override
    def encode(self, rows: Sequence[RowLike], *, strict: bool = False) -> Batch:
        """Tokenise each role's texts and pad them."""
        batch: Batch = {}
        cut = [False] * len(rows)
        prefix = self.pooling.prompt if self.prefix is None else self.prefix
        for role in self._roles:
            texts = [prefix + text for text in self._texts(rows, role)]
            encoded, longer = tokenize(
                self.tokenizer, texts, None, limit=self.limit, strict=strict, rows=rows
            )
            batch |= {f"{role}.{key}": value for key, value in pad_all(encoded, self.padding).items()}
            cut = [one or other for one, other in zip(cut, longer, strict=True)]
        if "score" in self.columns:
            batch["labels"] = torch.tensor(self._scores(rows))
        return {**batch, "truncated": torch.tensor(cut)}

    def _vectors(self, model: nn.Module, batch: Batch, role: str) -> Tensor:
        """Unit vectors of one role's texts, ``[B, d]`` float32."""
        prefix = f"{role}."
        inputs = placed(
            model, {key.removeprefix(prefix): value for key, value in batch.items() if key.startswith(prefix)}
        )
        hidden: Tensor = model(**inputs).last_hidden_state
        return normalize(self.pooling(hidden, inputs["attention_mask"]), dim=1)

    def _cosines(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor, list[Tensor]]:
        """The vectors of anchors and positives, and the cosines of the anchors to every other role's."""
        anchors, *others = (self._vectors(model, batch, role) for role in self._roles)
        return anchors, others[0], [(anchors * other).sum(dim=1) for other in others]

    def _losses(self, cosines: Sequence[Tensor], batch: Batch) -> Tensor:
        near, *far = cosines
        if "labels" in batch:
            return (near - batch["labels"].to(near.device)).square()
        return (self.margin + far[0] - near).clamp(min=0) if far else 1 - near

    @override
    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The loss of each pair or triplet."""
        return self._losses(self._cosines(model, batch)[2], batch)

    @override
    def measure(self, model: nn.Module, batch: Batch) -> Measured:
        """Losses, how right each sample is, and its cosine."""
        anchors, positives, cosines = self._cosines(model, batch)
        losses = self._losses(cosines, batch)
        near, *far = cosines
        predictions: list[Any] = [round(value, 4) for value in near.tolist()]
        if "labels" in batch:
            wanted = batch["labels"].to(near.device)
            statistics = torch.stack([near, wanted], dim=1)
            return Measured(losses, 1 - (near - wanted).abs() / 2, predictions, statistics=statistics)
        if far:
            right = (near > far[0]).float()
            return Measured(losses, right, ["positive" if hit else "negative" for hit in right.tolist()])
        statistics = torch.cat([anchors, positives], dim=1)
        return Measured(losses, ((near + 1) / 2).clamp(0, 1), predictions, statistics=statistics)

    @override
    def totals(self, statistics: Tensor) -> Totals:
        """The correlation with the scores, or how well positives are found."""
        if self.metric == "spearman":
            return correlation_totals(as_values(statistics), ranked=True)
        return retrieval_totals(as_values(statistics))

    @override
    def features(self, model: nn.Module, batch: Batch) -> Tensor:
        """The vectors of the anchors."""
        return self._vectors(model, batch, "anchor")

    @override
    def shown(self, row: RowLike) -> tuple[dict[str, Any], str]:
        """The texts, and the score or which one is nearer."""
        inputs, answer = super().shown(row)
        return inputs, answer or ("positive" if "negative" in self.columns else "1.0")

    @override
    def size(self, row: RowLike) -> int:
        """The characters of the texts."""
        return sum(len(str(row.get(self.columns[role], ""))) for role in self._roles)


def _without_pooler(model: nn.Module) -> nn.Module:
    if isinstance(getattr(model, "pooler", None), nn.Module):
        model.pooler = None  # type: ignore[assignment]
    return model
