"""Extractive question answering: the span of a context that answers a question."""

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from typing_extensions import override

from gradfix.errors import GradfixError
from gradfix.tasks.base import Batch, Measured, RowLike, register
from gradfix.tasks.data import origin
from gradfix.tasks.forward import placed
from gradfix.tasks.headed import Headed
from gradfix.tasks.loading import context_length, load_tokenizer, padding_id
from gradfix.tasks.metrics import Totals, as_codes, as_values, from_codes
from gradfix.tasks.text import pad, pad_all, refuse_long

LONGEST = 30
"""Tokens of an answer at most, as the field's scripts have it."""


@register
class QuestionAnswering(Headed):
    """Models of ``AutoModelForQuestionAnswering``, on data laid out as SQuAD.

    The loss of a sample is the mean of the cross-entropies of its answer's first and last token among all tokens, of
    the first answer where several are given. The metric is SQuAD's F1 of words, the best over the answers given, with
    the exact match beside it. A question without an answer has the first token of all as its span, as in SQuAD 2;
    nothing is answered only where some row has no answer.

    A context is cut to the model's context at its end; a row whose answer is beyond is refused.

    Args:
        question: The column with the question.
        context: The column with the text that holds the answer.
        answers: The column with ``{"text": [...], "answer_start": [...]}``, its starts counted in characters.
        max_length: Longest question and context in tokens; the model's context by default.
    """

    name = "question-answering"
    metric = "f1"
    auto_class = "AutoModelForQuestionAnswering"
    truncates = True
    reads_text = True
    answer = "answers"

    def __init__(
        self,
        question: str = "question",
        context: str = "context",
        answers: str = "answers",
        *,
        max_length: int | None = None,
    ) -> None:
        super().__init__({"question": question, "context": context, "answers": answers}, max_length)
        self._may_be_none = False

    @override
    def _bind_processors(self, location: str | Path, trust_remote_code: bool) -> None:
        self.tokenizer = load_tokenizer(location, trust_remote_code=trust_remote_code)
        if not self.tokenizer.is_fast:
            raise GradfixError(
                f"{location}: its tokenizer can't tell where a token stands; save a fast one there (tokenizer.json)"
            )
        self.padding = padding_id(self.tokenizer, location)
        self.limit = self.max_length or context_length(self.config, self.tokenizer)

    @override
    def check(self, rows: Sequence[RowLike], *, support: bool = False) -> None:
        """Refuse rows without texts, or with an answer that does not stand where it is said to."""
        super().check(rows, support=support)
        self._texts(rows, "question")
        self._texts(rows, "context")
        self._may_be_none |= not all(texts for texts, _ in self._answers(rows))

    def _answers(self, rows: Sequence[RowLike]) -> list[tuple[list[str], int]]:
        """The answers of each row, and where the first begins."""
        return [
            self._answer(row, value, origin(row, position))
            for position, (row, value) in enumerate(zip(rows, self._column(rows, "answers"), strict=True))
        ]

    def _answer(self, row: RowLike, value: Any, where: str) -> tuple[list[str], int]:
        where = f"{where}: column {self.columns['answers']!r}"
        if not isinstance(value, Mapping) or not {"text", "answer_start"} <= set(value):
            raise GradfixError(
                f'{where}: expected {{"text": [...], "answer_start": [...]}}, found {value!r:.60}'
            )
        texts, starts = list(value["text"]), list(value["answer_start"])
        if len(texts) != len(starts):
            raise GradfixError(
                f"{where}: has {len(texts)} texts and {len(starts)} starts; give one of each an answer"
            )
        if not texts:
            return [], 0
        text, start = texts[0], int(starts[0])
        found = row[self.columns["context"]][start : start + len(text)]
        if not text or found != text:
            raise GradfixError(
                f"{where}: {text!r:.60} is said to begin at character {start} of the context, where {found!r:.60} "
                "stands"
            )
        return texts, start

    @override
    def encode(self, rows: Sequence[RowLike], *, strict: bool = False) -> Batch:
        """Tokenise questions with their contexts, and find the answers' tokens."""
        questions, contexts = self._texts(rows, "question"), self._texts(rows, "context")
        answers = self._answers(rows)
        encoded = self.tokenizer(questions, contexts, return_offsets_mapping=True, verbose=False)
        lengths = [len(ids) for ids in encoded["input_ids"]]
        cut = [self.limit is not None and length > self.limit for length in lengths]
        if any(cut):
            if strict:
                refuse_long(rows, lengths, cut, self.limit)
            encoded = self.tokenizer(
                questions,
                contexts,
                return_offsets_mapping=True,
                truncation="only_second",
                max_length=self.limit,
                verbose=False,
            )
        spans, starts, ends = [], [], []
        for position, (texts, start) in enumerate(answers):
            of_text = encoded.sequence_ids(position)
            places = [
                place if of_text[number] == 1 else (-1, -1)
                for number, place in enumerate(encoded["offset_mapping"][position])
            ]
            until = start + len(texts[0]) if texts else 0
            inside = [n for n, (a, b) in enumerate(places) if a < until and b > start and a >= 0]
            if texts and (not inside or places[inside[-1]][1] < until):
                raise GradfixError(
                    f"{origin(rows[position], position)}: its answer {texts[0]!r:.60} lies beyond the "
                    f"{self.limit} tokens that the model reads; shorten the context around it, or leave the row out"
                )
            spans.append((inside[0], inside[-1]) if inside else (0, 0))
            starts.append([first for first, _ in places])
            ends.append([last for _, last in places])
        most = max(1, max(len(texts) for texts, _ in answers))
        padded = [[*texts, *[""] * (most - len(texts))] for texts, _ in answers]
        codes = as_codes([text for texts in padded for text in texts])
        inputs = {key: [list(ids) for ids in encoded[key]] for key in encoded if key != "offset_mapping"}
        return {
            **pad_all(inputs, self.padding),
            "labels": torch.tensor(spans),
            "offsets": torch.stack([pad(starts, -1), pad(ends, -1)], dim=2),
            "context": as_codes(contexts),
            "answers": codes.reshape(len(rows), most, -1),
            "truncated": torch.tensor(cut),
        }

    def _scores(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Scores of each token as the first and as the last, ``[B, L]``."""
        outputs: Any = model(**placed(model, batch))
        mask = batch["attention_mask"].to(outputs.start_logits.device) == 0
        return (
            outputs.start_logits.float().masked_fill(mask, -1e9),
            outputs.end_logits.float().masked_fill(mask, -1e9),
        )

    @override
    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean of both cross-entropies."""
        return _losses(*self._scores(model, batch), batch["labels"])

    @override
    def measure(self, model: nn.Module, batch: Batch) -> Measured:
        """Losses, F1 of words, and the answers given."""
        starts, ends = self._scores(model, batch)
        losses = _losses(starts, ends, batch["labels"])
        texts, scores = [], []
        for number in range(len(losses)):
            given = self._best(starts[number].cpu(), ends[number].cpu(), batch["offsets"][number])
            context = from_codes(batch["context"][number])
            texts.append(context[given[0] : given[1]])
            wanted = [answer for codes in batch["answers"][number] if (answer := from_codes(codes))] or [""]
            exact = max(float(_words(texts[-1]) == _words(answer)) for answer in wanted)
            scores.append((max(word_f1(texts[-1], answer) for answer in wanted), exact))
        statistics = torch.tensor(scores, dtype=torch.float64)
        return Measured(losses, statistics[:, 0].float(), texts, statistics=statistics)

    def _best(self, starts: Tensor, ends: Tensor, offsets: Tensor) -> tuple[int, int]:
        """The characters of the best span in the context; none where the first token of all is better."""
        inside = offsets[:, 0] >= 0
        length = len(starts)
        table = starts[:, None] + ends[None, :]
        allowed = inside[:, None] & inside[None, :]
        allowed &= torch.ones(length, length, dtype=torch.bool).triu() & ~torch.ones(
            length, length, dtype=torch.bool
        ).triu(LONGEST)
        table = table.masked_fill(~allowed, -torch.inf)
        best = int(table.argmax())
        if self._may_be_none and float(starts[0] + ends[0]) >= float(table.max()):
            return 0, 0
        first, last = divmod(best, length)
        return int(offsets[first, 0]), int(offsets[last, 1])

    @override
    def totals(self, statistics: Tensor) -> Totals:
        """F1 of words, and the exact match beside it."""
        values = as_values(statistics)
        return Totals(values[:, 0], {"exact_match": float(values[:, 1].mean())})

    @override
    def shown(self, row: RowLike) -> tuple[dict[str, Any], str]:
        """Question and context, and the first right answer."""
        texts, _ = self._answer(row, row[self.columns["answers"]], origin(row, 0))
        return super().shown(row)[0], texts[0] if texts else ""

    @override
    def size(self, row: RowLike) -> int:
        """The characters of question and context."""
        return sum(len(str(row.get(self.columns[role], ""))) for role in ("question", "context"))


def _losses(starts: Tensor, ends: Tensor, spans: Tensor) -> Tensor:
    first, last = spans.to(starts.device).unbind(dim=1)
    return (cross_entropy(starts, first, reduction="none") + cross_entropy(ends, last, reduction="none")) / 2


def _words(text: str) -> list[str]:
    """Words as SQuAD's script compares them: lower case, without punctuation and articles."""
    plain = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", plain).split()


def word_f1(given: str, wanted: str) -> float:
    """SQuAD's F1 of the words of two texts (Rajpurkar et al., 2016).

    Args:
        given: The prediction.
        wanted: A right answer.

    Returns:
        In [0, 1]; where either has no words, 1 if neither has.
    """
    ours, theirs = _words(given), _words(wanted)
    if not ours or not theirs:
        return float(ours == theirs)
    same = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * same / (len(ours) + len(theirs))
