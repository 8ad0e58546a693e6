"""Causal language modelling: the completion of a prompt, token by token."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from gradfix.errors import GradfixError, column_option
from gradfix.tasks.base import Batch, Measured, ModelTask, RowLike, register
from gradfix.tasks.chat import Message, common_length, spoken, spoken_tokens
from gradfix.tasks.conversations import (
    EMPTY_LINE,
    as_messages,
    columns_of,
    pair,
    recognised,
    refuse_odd_messages,
)
from gradfix.tasks.data import origin
from gradfix.tasks.forward import backbone, mean_over_tokens, placed
from gradfix.tasks.generation import grader, greedy, short_name
from gradfix.tasks.loading import context_length, load_tokenizer, padding_id
from gradfix.tasks.text import pad, refuse_long, token_losses


@register
class CausalLM(ModelTask):
    """Models of ``AutoModelForCausalLM``, such as GPT-2, Llama and Qwen.

    The loss of a sample is the mean over the tokens of its completion only (its exponential is the
    perplexity); the metric is the share of those tokens that the model ranks first when given all before
    them. With ``metric`` the last answer is generated greedily, too, and how it is graded is the metric. Of a
    conversation every answer of the assistant is a completion, and nothing else (see `chat`).

    With a chat template, prompt and completion are a user's and an assistant's message. Without, they are joined as
    they stand (a blank between them has to be in the data) and the end-of-sequence token is added, so that the model
    learns to stop. The completion begins at the first token that differs from the prompt tokenised alone.

    Where no column is named, rows with ``messages``, with ``conversations`` (those of ShareGPT, with ``from`` and
    ``value``, too), or with ``instruction`` and ``output`` are recognised. What an ``instruction`` is about stands in
    ``input``; it follows after an empty line, as does an output without template.

    A sample longer than the context loses the beginning of its prompt first, then its end.

    Args:
        prompt: The column with the prompt; "prompt" by default.
        completion: The column with the completion; "completion" by default.
        messages: The column with a conversation in their place: a list of ``{"role", "content"}`` that ends with the
            assistant's answer. A column ``tools`` is given to the template.
        input: The column with what the prompt is about, put after it; blank in rows that have none.
        chat: Use the tokenizer's chat template; by default if it has one.
        max_length: Longest sample in tokens; the model's context by default.
        metric: How generated answers are graded: see `gradfix.tasks.generation.grader`; nothing is generated without.
        max_new_tokens: Longest generated answer.
    """

    name = "causal-lm"
    metric = "token_accuracy"
    auto_class = "AutoModelForCausalLM"
    truncates = True
    reads_text = True
    answer = "completion"

    def __init__(
        self,
        prompt: str | None = None,
        completion: str | None = None,
        messages: str | None = None,
        input: str | None = None,
        *,
        chat: bool | None = None,
        max_length: int | None = None,
        metric: str | None = None,
        max_new_tokens: int = 64,
    ) -> None:
        apart = {"prompt": prompt, "completion": completion, "input": input}
        if messages is not None and any(apart.values()):
            instead = ", ".join(column_option(role) for role, column in apart.items() if column)
            raise GradfixError(f"task causal-lm: give either {column_option('messages')} or {instead}")
        if messages is not None and chat is False:
            raise GradfixError("task causal-lm: messages need a chat template; leave out chat=False")
        joined = {"prompt": prompt or "prompt", "completion": completion or "completion", "input": input}
        super().__init__(joined if messages is None else {"messages": messages}, max_length)
        self._named = messages is not None or any(apart.values())
        self._asked_chat = chat
        self._grade = None if metric is None else grader(metric)
        self.metric = "token_accuracy" if metric is None else short_name(metric)
        self.max_new_tokens = max_new_tokens

    @override
    def _bind_processors(self, location: str | Path, trust_remote_code: bool) -> None:
        self.tokenizer = load_tokenizer(location, trust_remote_code=trust_remote_code)
        self.padding = padding_id(self.tokenizer, location)
        self.limit = self.max_length or context_length(self.config, self.tokenizer)
        if self.limit == 1:
            raise GradfixError("max_length: a causal language model needs at least 2 tokens, found 1")
        has_template = self.tokenizer.chat_template is not None
        if not has_template and self._asked_chat:
            raise GradfixError(_NO_TEMPLATE.format(location))
        self.chat = has_template if self._asked_chat is None else self._asked_chat
        self._location = location
        self._require_template()

    @property
    @override
    def generates(self) -> bool:
        return self._grade is not None

    def _require_template(self) -> None:
        if "messages" in self.columns and not self.chat:
            raise GradfixError(_NO_TEMPLATE.format(self._location))

    @override
    def check(self, rows: Sequence[RowLike], *, support: bool = False) -> None:
        """Refuse rows without prompt and completion, or with a conversation that ends otherwise."""
        super().check(rows, support=support)
        self._conversations(rows)

    def _recognise(self, rows: Sequence[RowLike]) -> None:
        """Take the columns from rows laid out as usual, where none was named."""
        if not self._named:
            self.columns = dict(recognised(rows) or self.columns)
            self._named = True
            self._require_template()
        if self.columns.get("prompt") == "instruction" and "input" in columns_of(rows):
            self.columns.setdefault("input", "input")

    def _conversations(self, rows: Sequence[RowLike]) -> list[list[Message]]:
        """Each row as messages, of which the assistant's are completions."""
        self._recognise(rows)
        if "messages" in self.columns:
            values = self._column(rows, "messages")
            found = []
            for position, (row, value) in enumerate(zip(rows, values, strict=True)):
                where = f"{origin(row, position)}: column {self.columns['messages']!r}"
                found.append(as_messages(value, where))
                refuse_odd_messages(found[-1], where)
            return found
        completions = self._texts(rows, "completion")
        return [
            pair(prompt, row.get(self.columns.get("input", "")), completion, self._where(row, position))
            for position, (row, prompt, completion) in enumerate(
                zip(rows, self._column(rows, "prompt"), completions, strict=True)
            )
        ]

    def _where(self, row: RowLike, position: int) -> str:
        return f"{origin(row, position)}: column {self.columns['prompt']!r}"

    @override
    def encode(self, rows: Sequence[RowLike], *, strict: bool = False) -> Batch:
        """Tokenise prompts with their completions, and pad on the right."""
        ids, counted = [], []
        for position, messages in enumerate(self._conversations(rows)):
            where = origin(rows[position], position)
            if self.chat:
                tools = rows[position].get("tools") if "messages" in self.columns else None
                tokens, said = spoken_tokens(self.tokenizer, messages, where, tools=tools or None)
            else:
                tokens, said = self._plain_tokens(messages)
            said[:1] = [False]  # nothing comes before the first token, so nothing predicts it
            if not any(said):
                raise GradfixError(f"{where}: the completion has no token to predict")
            ids.append(tokens)
            counted.append(said)
        lengths = [len(sample) for sample in ids]
        cut = [self.limit is not None and length > self.limit for length in lengths]
        if strict and any(cut):
            refuse_long(rows, lengths, cut, self.limit)
        for position, was_cut in enumerate(cut):
            if was_cut and self.limit is not None:
                # One token of the prompt is left before the first that is predicted.
                start = min(lengths[position] - self.limit, counted[position].index(True) - 1)
                ids[position] = ids[position][start : start + self.limit]
                counted[position] = counted[position][start : start + self.limit]
        labels = [
            [token if said else -100 for token, said in zip(sample, mask, strict=True)]
            for sample, mask in zip(ids, counted, strict=True)
        ]
        return {
            "input_ids": pad(ids, self.padding),
            "attention_mask": pad([[1] * len(sample) for sample in ids], 0),
            "labels": pad(labels, -100),
            "truncated": torch.tensor(cut),
        }

    def _plain_tokens(self, messages: Sequence[Message]) -> tuple[list[int], list[bool]]:
        """Tokens of prompt, completion and end, and which of them are not the prompt's."""
        prompt, completion = messages[0]["content"], messages[1]["content"]
        if self.columns["prompt"] == "instruction":
            prompt += EMPTY_LINE
        before = list(self.tokenizer(prompt, verbose=False)["input_ids"])
        full = list(self.tokenizer(prompt + completion, verbose=False)["input_ids"])
        end = self.tokenizer.eos_token_id
        if end is not None and full[-1:] != [end]:
            full.append(end)
        same = common_length(before, full)
        return full, [place >= same for place in range(len(full))]

    def _next_tokens(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits ``[B, L − 1, vocabulary]`` with the labels ``[B, L − 1]`` that they predict."""
        logits: Tensor = model(**placed(model, batch)).logits
        return logits[:, :-1], batch["labels"][:, 1:].to(logits.device)

    @override
    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean negative log-likelihood of each completion's tokens."""
        return token_losses(*self._next_tokens(model, batch))

    @override
    def measure(self, model: nn.Module, batch: Batch) -> Measured:
        """Losses, shares of tokens ranked first, and those first-ranked tokens as text."""
        logits, labels = self._next_tokens(model, batch)
        first = logits.argmax(dim=-1)
        wanted = labels != -100
        scores = ((first == labels) & wanted).sum(dim=1) / wanted.sum(dim=1)
        texts = [
            self._runs(tokens, mask) for tokens, mask in zip(first.tolist(), wanted.tolist(), strict=True)
        ]
        losses = token_losses(logits, labels)
        if self._grade is None:
            return Measured(losses, scores.float(), texts)
        answers, rights = zip(*self._answers(model, batch), strict=True)
        return Measured(losses, torch.tensor(list(map(self._grade, answers, rights))), list(answers))

    def _answers(self, model: nn.Module, batch: Batch) -> Iterator[tuple[str, str]]:
        """The last answer of each sample, generated after all that comes before it, and the right one."""
        transformer: Any = model
        ids, predicted, real = (batch[key].cpu() for key in ("input_ids", "labels", "attention_mask"))
        special = {*self.tokenizer.all_special_ids, *self.tokenizer.get_added_vocab().values()}
        for own, labels, mask in zip(ids, predicted != -100, real, strict=True):
            end = int(labels.nonzero().max()) + 1
            start = end - int(labels[:end].flip(0).long().cumprod(0).sum())
            # The token that ends the right answer ends the generated one, where it is not a word.
            ends = [int(own[end - 1])] if int(own[end - 1]) in special else []
            prompt = own[:start][mask[:start].bool()][None].to(next(model.parameters()).device)
            room = self.max_new_tokens if self.limit is None else min(self.max_new_tokens, self.limit - start)
            settings = greedy(transformer, padding=self.padding, most=max(1, room), ends=ends)
            found = transformer.generate(
                input_ids=prompt, attention_mask=torch.ones_like(prompt), generation_config=settings
            )
            answer = self.tokenizer.decode(found[0, prompt.shape[1] :], skip_special_tokens=True)
            yield answer.strip(), self.tokenizer.decode(own[start:end], skip_special_tokens=True).strip()

    def _runs(self, tokens: Sequence[int], mask: Sequence[bool]) -> str:
        """The chosen tokens as text, those of each answer on a line of their own."""
        runs: list[list[int]] = []
        for place, (token, chosen) in enumerate(zip(tokens, mask, strict=True)):
            if chosen and not (place and mask[place - 1]):
                runs.append([])
            if chosen:
                runs[-1].append(token)
        return "\n".join(self.tokenizer.decode(run, skip_special_tokens=True) for run in runs)

    @override
    def shown(self, row: RowLike) -> tuple[dict[str, Any], str]:
        """The conversation as a person reads it, and the assistant's answers."""
        if "messages" not in self.columns:
            return super().shown(row)
        (messages,) = self._conversations([row])
        turns = [{"role": message["role"], "content": spoken(message["content"])} for message in messages]
        labels = self.encode([row])["labels"][0, 1:].tolist()
        return {"messages": turns}, self._runs(labels, [label != -100 for label in labels])

    @override
    def rendered(self, row: RowLike) -> str:
        """A sample as the model reads it, with what is predicted between ⟦ and ⟧."""
        batch = self.encode([row])
        ids, labels = batch["input_ids"][0].tolist(), batch["labels"][0].tolist()
        parts = groupby(zip(ids, labels, strict=True), key=lambda pair: pair[1] != -100)
        texts = [(said, self.tokenizer.decode([token for token, _ in pairs])) for said, pairs in parts]
        return "".join(f"⟦{text}⟧" if said else text for said, text in texts)

    @override
    def features(self, model: nn.Module, batch: Batch) -> Tensor:
        """The last hidden states, averaged over real tokens."""
        inner = backbone(model)
        inputs = placed(inner, batch)
        return mean_over_tokens(inner(**inputs).last_hidden_state, inputs["attention_mask"])

    @override
    def size(self, row: RowLike) -> int:
        """The characters of the sample."""
        self._recognise([row])
        if "messages" in self.columns:
            return sum(
                len(str(message.get("content", message.get("value"))))
                for message in row.get(self.columns["messages"]) or []
            )
        return sum(len(str(row.get(column))) for column in self.columns.values())


_NO_TEMPLATE = "{}: the tokenizer has no chat template; give prompt and completion instead"
