"""Causal language modelling: the completion of a prompt, token by token."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from gradfix.errors import GradfixError, column_option, option
from gradfix.tasks.base import Batch, Measured, ModelTask, RowLike, register
from gradfix.tasks.chat import Message, spoken
from gradfix.tasks.conversations import (
    EMPTY_LINE,
    as_messages,
    asks,
    columns_of,
    pair,
    recognised,
    refuse_odd_messages,
)
from gradfix.tasks.data import Row, origin
from gradfix.tasks.forward import placed
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
from gradfix.tasks.language_model import LanguageModel
from gradfix.tasks.preferences import CHOSEN, REJECTED, PreferencePairs
from gradfix.tasks.text import token_losses

Limits: TypeAlias = tuple[int, tuple[int, ...]]
"""Of a generated answer: the most tokens, and the tokens that end it."""


@register
class CausalLM(LanguageModel, Generative):
    """Models of ``AutoModelForCausalLM``, such as GPT-2, Llama and Qwen.

    The loss of a sample is the mean over the tokens of its completion only (its exponential is the
    perplexity). Of a conversation every answer of the assistant is a completion, and nothing else (see `chat`).

    Results are judged by what the model says: the last answer is generated greedily, and graded as ``metric`` says, by
    exact match if it says nothing. While settings are chosen nothing is generated then, and the score beside the loss
    is the share of the completion's tokens that the model ranks first when given all before them: token accuracy,
    which as a ``metric`` is also what judges.

    Where no column is named, rows with ``messages``, with ``conversations`` (those of ShareGPT, with ``from`` and
    ``value``, too), or with ``instruction`` and ``output`` are recognised. What an ``instruction`` is about stands in
    ``input``; it follows after an empty line, as does an output without template.

    Args:
        prompt: The column with the prompt; "prompt" by default.
        completion: The column with the completion; "completion" by default.
        messages: The column with a conversation in their place: a list of ``{"role", "content"}`` that ends with the
            assistant's answer. A column ``tools`` is given to the template.
        input: The column with what the prompt is about, put after it; blank in rows that have none.
        chat: Use the tokenizer's chat template; by default if it has one.
        max_length: Longest sample in tokens; the model's context by default.
        metric: How generated answers are graded: see `gradfix.tasks.generation.grader`; or ``token_accuracy``, for
            which nothing is generated.
        max_new_tokens: Longest generated answer.
    """

    name = "causal-lm"
    metric = "token_accuracy"
    answer = "completion"
    instead = "prompt and completion"
    stand_in = " answer"  # with a blank: it must not make one token with the prompt's last word

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
        columns: dict[str, str | None] = joined if messages is None else {"messages": messages}
        super().__init__(columns, chat=chat, max_length=max_length)
        self._named = messages is not None or any(apart.values())
        self._asked_metric = metric
        self._grade = None if metric in (None, CausalLM.metric) else grader(str(metric))
        self.metric = CausalLM.metric if metric is None else short_name(metric)
        self.max_new_tokens = max_new_tokens

    @property
    @override
    def generates(self) -> bool:
        return self._grade is not None

    @override
    def judging(self) -> "CausalLM":
        """Grade generated answers, unless a metric was given: then it is the same for all."""
        if self._asked_metric is not None:
            return self
        judge = copy(self)
        judge._grade, judge.metric = grader(EXACT_MATCH), EXACT_MATCH
        return judge

    @override
    def doubts(self, rows: Sequence[RowLike]) -> list[str]:
        """Exact match says nothing of long answers."""
        if self._asked_metric is not None:
            return []
        return long_answers(
            [spoken(messages[-1]["content"]) for messages in self._conversations(rows[:CHECKED])]
        )

    @override
    def check(self, rows: Sequence[RowLike], *, support: bool = False) -> None:
        """Refuse rows without prompt and completion, or with a conversation that ends otherwise."""
        super().check(rows, support=support)
        self._conversations(rows)

    @override
    def for_rows(self, rows: Sequence[RowLike]) -> ModelTask:
        """Rows with two replies and nothing else to learn from are preference pairs."""
        if self._named or not {CHOSEN, REJECTED} <= columns_of(rows):
            return self
        other = recognised(rows)
        if other is not None and not asks(rows[0].get(other.get("messages", ""))):
            raise GradfixError(
                f"{origin(rows[0], 0)}: has replies to learn from and pairs of replies ({CHOSEN}, {REJECTED}); give "
                f"{option('task')} {PreferencePairs.name} for the pairs, or name the column to learn from with "
                f"{column_option('messages')} or {column_option('completion')}"
            )
        if self._grade is not None:
            raise GradfixError(
                f"{option('metric')} {self.metric}: pairs of replies are compared, and none is generated; leave it out"
            )
        return PreferencePairs(chat=self._asked_chat, max_length=self.max_length)

    def _recognise(self, rows: Sequence[RowLike]) -> None:
        """Take the columns from rows laid out as usual, where none was named."""
        if not self._named:
            self.columns = dict(recognised(rows) or self.columns)
            self._named = True
        if "messages" in self.columns:
            self.require_template()
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
        if isinstance(self._column(rows[:1], "completion")[0], list):
            return self._turns(rows)
        completions = self._texts(rows, "completion")
        return [
            pair(prompt, row.get(self.columns.get("input", "")), completion, self._where(row, position))
            for position, (row, prompt, completion) in enumerate(
                zip(rows, self._column(rows, "prompt"), completions, strict=True)
            )
        ]

    def _turns(self, rows: Sequence[RowLike]) -> list[list[Message]]:
        """Conversations in two parts, the prompt's messages and the completion's."""
        self.require_template()
        found = []
        parts = zip(rows, self._column(rows, "prompt"), self._column(rows, "completion"), strict=True)
        for position, (row, prompt, completion) in enumerate(parts):
            where = self._where(row, position)
            if not isinstance(prompt, list) or not isinstance(completion, list):
                raise GradfixError(f"{where}: expected lists of messages, in the completion, too")
            found.append([*prompt, *completion])
            refuse_odd_messages(found[-1], where)
        return found

    def _where(self, row: RowLike, position: int) -> str:
        return f"{origin(row, position)}: column {self.columns['prompt']!r}"

    @override
    def encode(self, rows: Sequence[RowLike], *, strict: bool = False) -> Batch:
        """Tokenise prompts with their completions, and pad on the right."""
        conversations = self._conversations(rows)
        samples = [
            self.spoken(messages, origin(row, position), tools=row.get("tools"), gap=self._gap)
            for position, (row, messages) in enumerate(zip(rows, conversations, strict=True))
        ]
        return self.padded(samples, rows, strict=strict)

    @property
    def _gap(self) -> str:
        """What stands between a prompt and its completion where there is no template."""
        return EMPTY_LINE if self.columns.get("prompt") == "instruction" else ""

    @override
    def answered(self, row: Row, text: str) -> Row:
        """Put a text in the place of a row's completion, or of the answer that its conversation ends with."""
        if "messages" not in self.columns:
            prompt, column = row.get(self.columns["prompt"]), self.columns["completion"]
            if isinstance(prompt, list):
                return Row({**row, column: [_answer(prompt, text)]}, row.origin)
            read = str(row.get(self.columns.get("input", "")) or prompt) + self._gap
            # Blanks around an answer are the template's own, and one that the prompt ends with is there already.
            text = text.strip() if self.chat else text.lstrip() if read[-1:].isspace() else text
            return Row({**row, column: text}, row.origin)
        column = self.columns["messages"]
        turns = as_messages(row.get(column), f"{row.origin}: column {column!r}")
        if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
            return row  # `check` says what is wrong with it
        said = bool(turns) and turns[-1].get("role") == "assistant"
        return Row({**row, column: [*turns[: len(turns) - said], _answer(turns, text)]}, row.origin)

    @override
    def write(
        self, model: nn.Module, batch: Mapping[str, Tensor], *, most: int, seed: int | None = None
    ) -> list[str | None]:
        """Let a model answer prompts, of a conversation the last turn; an answer begins with its own blanks."""
        asked = [(prompt, limits) for prompt, limits, _ in self._last_answers(batch, most)]
        texts: list[str | None] = []
        with seeded(model, seed):
            found = self._generated(model, asked, draw=seed is not None)
        for (prompt, (_, ends)), tokens in zip(asked, found, strict=True):
            ended = tokens[-1] in stops(model, ends)
            texts.append(self._continuation(prompt, tokens[:-1]) if ended else None)
        return texts

    def _continuation(self, prompt: list[int], tokens: list[int]) -> str:
        """The text of tokens after others: decoded alone, many a tokenizer takes off the blank they begin with."""
        before, whole = (
            self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            for ids in (prompt, prompt + tokens)
        )
        if whole.startswith(before):
            return str(whole[len(before) :])
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True))

    def _next_tokens(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits ``[B, L, vocabulary]`` with the labels ``[B, L]`` that they predict: none at the last."""
        logits: Tensor = model(**placed(model, batch)).logits
        return logits, functional.pad(batch["labels"][:, 1:], (0, 1), value=-100).to(logits.device)

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
        asked = self._last_answers(batch, self.max_new_tokens)
        found = self._generated(model, [(prompt, limits) for prompt, limits, _ in asked])
        answers = [text.strip() for text in self.tokenizer.batch_decode(found, skip_special_tokens=True)]
        grades = [self._grade(answer, right) for answer, (_, _, right) in zip(answers, asked, strict=True)]
        return Measured(losses, torch.tensor(grades), answers)

    def _last_answers(self, batch: Mapping[str, Tensor], most: int) -> list[tuple[list[int], Limits, str]]:
        """Of each sample all that comes before its last answer, what ends a generated one, and the right one."""
        ids, predicted, real = (batch[key].cpu() for key in ("input_ids", "labels", "attention_mask"))
        special = {*self.tokenizer.all_special_ids, *self.tokenizer.get_added_vocab().values()}
        found: list[tuple[list[int], Limits, str]] = []
        for own, labels, mask in zip(ids, predicted != -100, real, strict=True):
            end = int(labels.nonzero().max()) + 1
            start = end - int(labels[:end].flip(0).long().cumprod(0).sum())
            # The token that ends the right answer ends the generated one, where it is not a word.
            ends = (int(own[end - 1]),) if int(own[end - 1]) in special else ()
            room = most if self.limit is None else min(most, self.limit - start)
            right = self.tokenizer.decode(own[start:end], skip_special_tokens=True).strip()
            found.append((own[:start][mask[:start].bool()].tolist(), (max(1, room), ends), right))
        return found

    def _generated(
        self, model: nn.Module, asked: Sequence[tuple[list[int], Limits]], *, draw: bool = False
    ) -> list[list[int]]:
        """The tokens of answers, those that end alike generated together, their prompts padded on the left."""
        transformer: Any = model
        together: dict[Limits, list[int]] = defaultdict(list)
        for place, (_, limits) in enumerate(asked):
            together[limits].append(place)
        answers: list[list[int]] = [[] for _ in asked]
        for (most, ends), places in together.items():
            prompts = [asked[place][0] for place in places]
            width = max(map(len, prompts))
            padded = [[self.padding] * (width - len(prompt)) + prompt for prompt in prompts]
            real = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
            device = next(model.parameters()).device
            found = transformer.generate(
                input_ids=torch.tensor(padded, device=device),
                attention_mask=torch.tensor(real, device=device),
                generation_config=generation(
                    transformer, padding=self.padding, most=most, ends=ends, draw=draw
                ),
            )
            last = set(stops(transformer, ends))
            for place, tokens in zip(places, found[:, width:].tolist(), strict=True):
                length = next((at for at, token in enumerate(tokens, 1) if token in last), len(tokens))
                answers[place] = tokens[:length]
        return answers

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
        (messages,) = self._conversations([row])
        if "messages" not in self.columns and isinstance(row[self.columns["completion"]], str):
            return super().shown(row)
        turns = [{"role": message["role"], "content": spoken(message["content"])} for message in messages]
        labels = self.encode([row])["labels"][0, 1:].tolist()
        return {"messages": turns}, self._runs(labels, [label != -100 for label in labels])

    @override
    def rendered(self, row: RowLike) -> str:
        """A sample as the model reads it, with what is predicted between ⟦ and ⟧."""
        batch = self.encode([row])
        return self.marked(batch["input_ids"][0].tolist(), (batch["labels"][0] != -100).tolist())

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


def _answer(turns: Sequence[Message], text: str) -> Message:
    """A turn of the assistant, with its text in parts where those before have it so."""
    parts = bool(turns) and isinstance(turns[0].get("content"), list)
    said = text.strip()
    return {"role": "assistant", "content": [{"type": "text", "text": said}] if parts else said}
