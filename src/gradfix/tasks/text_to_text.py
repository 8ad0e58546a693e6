"""Text to text with an encoder and a decoder (T5, BART): a target text for an input text."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from gradfix.errors import GradfixError, listed, option
from gradfix.tasks.base import Batch, Measured, ModelTask, RowLike, register
from gradfix.tasks.data import Row, origin
from gradfix.tasks.forward import mean_over_tokens, placed
from gradfix.tasks.generation import (
    CHECKED,
    EXACT_MATCH,
    Generative,
    generation,
    grader,
    long_answers,
    seeded,
    short_name,
    stops,
)
from gradfix.tasks.loading import context_length, load_tokenizer, padding_id
from gradfix.tasks.text import pad, pad_all, token_losses, tokenize


@register
class TextToText(ModelTask, Generative):
    """Models of ``AutoModelForSeq2SeqLM``.

    The loss of a sample is the mean negative log-likelihood of its target's tokens. With candidates, the
    prediction is the one with the smallest such loss and the metric is accuracy; without, the answer is
    generated greedily and graded: by the exact match of the texts, blanks at the ends aside, or as ``metric`` says.

    Args:
        input: The column with the input text.
        target: The column with the target text.
        prefix: Put before each input, as T5's "summarize: ".
        candidates: All possible targets. They are the classes of a balanced support set, too.
        max_length: Longest input, and longest target, in tokens; the model's context by default.
        metric: How generated answers are graded: see `gradfix.tasks.generation.grader`.
        max_new_tokens: Longest generated answer.
    """

    name = "text-to-text"
    metric = EXACT_MATCH
    auto_class = "AutoModelForSeq2SeqLM"
    truncates = True
    reads_text = True
    answer = "target"

    def __init__(
        self,
        input: str = "input",
        target: str = "target",
        *,
        prefix: str = "",
        candidates: Sequence[str] | None = None,
        max_length: int | None = None,
        metric: str | None = None,
        max_new_tokens: int = 32,
    ) -> None:
        super().__init__({"input": input, "target": target}, max_length)
        if candidates is not None and (len(candidates) < 2 or len(set(candidates)) < len(candidates)):
            raise GradfixError(
                f"candidates: expected at least two different texts, found {list(candidates)!r}"
            )
        self.prefix = prefix
        self.candidates = None if candidates is None else [str(text) for text in candidates]
        if self.candidates is not None:
            self.stand_in = self.candidates[0]
        self.max_new_tokens = max_new_tokens
        if self.candidates is not None and metric is not None:
            raise GradfixError(
                f"{option('metric')} {metric}: with candidates the best of them is the answer, none is generated; "
                "leave out one of the two"
            )
        self._asked_metric = metric
        self._grade = grader(metric or self.metric)
        self.metric = "accuracy" if self.candidates is not None else short_name(metric or self.metric)

    @override
    def _bind_processors(self, location: str | Path, trust_remote_code: bool) -> None:
        self.tokenizer = load_tokenizer(location, trust_remote_code=trust_remote_code)
        self.padding = padding_id(self.tokenizer, location)
        self.limit = self.max_length or context_length(self.config, self.tokenizer)

    @property
    @override
    def class_names(self) -> Sequence[str] | None:
        """The candidates."""
        return self.candidates

    @property
    @override
    def generates(self) -> bool:
        """Without candidates, answers are generated."""
        return self.candidates is None

    @override
    def classes(self, rows: Sequence[RowLike]) -> list[int]:
        """Which candidate each target is."""
        if self.candidates is None:
            return super().classes(rows)
        places = {text: index for index, text in enumerate(self.candidates)}
        for position, target in enumerate(self._texts(rows, "target")):
            if target not in places:
                raise GradfixError(
                    f"{origin(rows[position], position)}: target {target!r} is not among the candidates "
                    f"{listed(self.candidates, 20)}"
                )
        return [places[target] for target in self._texts(rows, "target")]

    @override
    def check(self, rows: Sequence[RowLike], *, support: bool = False) -> None:
        """Refuse rows without texts, or with a target that is no candidate."""
        super().check(rows, support=support)
        self._texts(rows, "input")
        self._texts(rows, "target")
        present = set(self.classes(rows))
        if support and self.candidates is not None and len(present) < len(self.candidates):
            absent = [text for index, text in enumerate(self.candidates) if index not in present]
            raise GradfixError(f"the support set has no sample of the candidates {listed(absent, 20)}")

    @override
    def doubts(self, rows: Sequence[RowLike]) -> list[str]:
        """Exact match says nothing of long answers."""
        if self.candidates is not None or self._asked_metric is not None:
            return []
        return long_answers(self._texts(rows[:CHECKED], "target"))

    @override
    def encode(self, rows: Sequence[RowLike], *, strict: bool = False) -> Batch:
        """Tokenise inputs and targets, and pad."""
        inputs, cut = self._tokens([self.prefix + text for text in self._texts(rows, "input")], rows, strict)
        targets, cut_targets = self._tokens(self._texts(rows, "target"), rows, strict)
        batch = {
            **pad_all(inputs, self.padding),
            "labels": pad(targets["input_ids"], -100),
            "truncated": torch.tensor(cut) | torch.tensor(cut_targets),
        }
        if self.candidates is not None:
            batch["classes"] = torch.tensor(self.classes(rows))
        return batch

    def _tokens(
        self, texts: list[str], rows: Sequence[Any], strict: bool
    ) -> tuple[dict[str, Any], list[bool]]:
        return tokenize(self.tokenizer, texts, None, limit=self.limit, strict=strict, rows=rows)

    @override
    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean negative log-likelihood of each target's tokens."""
        return self._target_losses(model, batch["labels"], placed(model, batch))

    def _target_losses(self, model: nn.Module, labels: Tensor, inputs: dict[str, Any]) -> Tensor:
        """Losses ``[B]`` of given targets; ``inputs`` are the encoder's, or hold its outputs."""
        transformer: Any = model
        labels = labels.to(next(model.parameters()).device)
        shifted = transformer.prepare_decoder_input_ids_from_labels(labels=labels)
        logits: Tensor = transformer(**inputs, decoder_input_ids=shifted, use_cache=False).logits
        return token_losses(logits, labels)

    @override
    def measure(self, model: nn.Module, batch: Batch) -> Measured:
        """Losses, hits (1 or 0), and the best candidates or the generated texts."""
        if self.candidates is None:
            return self._measure_generated(model, batch)
        transformer: Any = model
        inputs = placed(model, batch)
        encoded = transformer.get_encoder()(**inputs)
        states = {"encoder_outputs": encoded, "attention_mask": inputs["attention_mask"]}
        losses = []
        for ids in self._tokens(self.candidates, self.candidates, False)[0]["input_ids"]:
            labels = torch.tensor(ids).expand(len(batch["classes"]), -1)
            losses.append(self._target_losses(model, labels, states))
        table = torch.stack(losses, dim=1)
        wanted = batch["classes"].to(table.device)
        best = table.argmin(dim=1)
        return Measured(
            table.gather(1, wanted[:, None])[:, 0],
            (best == wanted).float(),
            [self.candidates[index] for index in best.tolist()],
        )

    @override
    def answered(self, row: Row, text: str) -> Row:
        """Put a text in the place of a row's target."""
        return Row({**row, self.columns["target"]: text.strip()}, row.origin)

    @override
    def write(
        self, model: nn.Module, batch: Mapping[str, Tensor], *, most: int, seed: int | None = None
    ) -> list[str | None]:
        """Let a model write targets; with candidates, the best of them."""
        if self.candidates is not None:
            return list(self.measure(model, dict(batch)).predictions)
        with seeded(model, seed):
            found = self._generate(model, batch, most, draw=seed is not None)
        ends = set(stops(model))
        texts = self.tokenizer.batch_decode(found, skip_special_tokens=True)
        # The first token is the decoder's start, in some models the same as the one that ends a text.
        return [
            text if ends & set(tokens[1:]) else None
            for text, tokens in zip(texts, found.tolist(), strict=True)
        ]

    def _generate(
        self, model: nn.Module, batch: Mapping[str, Tensor], most: int, *, draw: bool = False
    ) -> Tensor:
        transformer: Any = model
        settings = generation(transformer, padding=self.padding, most=most, draw=draw)
        tokens: Tensor = transformer.generate(**placed(model, batch), generation_config=settings)
        return tokens

    def _measure_generated(self, model: nn.Module, batch: Batch) -> Measured:
        generated = self._generate(model, batch, self.max_new_tokens)
        wanted = batch["labels"].masked_fill(batch["labels"] == -100, self.padding)
        answers = [text.strip() for text in self.tokenizer.batch_decode(generated, skip_special_tokens=True)]
        targets = [text.strip() for text in self.tokenizer.batch_decode(wanted, skip_special_tokens=True)]
        grades = list(map(self._grade, answers, targets))
        return Measured(self.loss(model, batch), torch.tensor(grades), answers)

    @override
    def features(self, model: nn.Module, batch: Batch) -> Tensor:
        """The encoder's last hidden states, averaged over real tokens."""
        transformer: Any = model
        inputs = placed(model, batch)
        return mean_over_tokens(
            transformer.get_encoder()(**inputs).last_hidden_state, inputs["attention_mask"]
        )

    @override
    def size(self, row: RowLike) -> int:
        """The characters of the input."""
        return len(str(row.get(self.columns["input"])))
