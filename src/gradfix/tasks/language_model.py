"""What tasks on causal language models share: conversations as tokens, of which the assistant's are predicted."""

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import override

from gradfix.errors import GradfixError
from gradfix.tasks.base import Batch, ModelTask, RowLike
from gradfix.tasks.chat import Message, common_length, spoken_tokens
from gradfix.tasks.data import origin
from gradfix.tasks.forward import backbone, mean_over_tokens, placed
from gradfix.tasks.loading import context_length, load_tokenizer, padding_id
from gradfix.tasks.text import pad, refuse_long
from gradfix.text_files import parse_json_value

Spoken = tuple[list[int], list[bool]]
"""The tokens of a sample, and which of them are to be predicted."""


class LanguageModel(ModelTask):
    """A task on models of ``AutoModelForCausalLM`` that predicts what the assistant says.

    With a chat template, prompt and completion are a user's and an assistant's message. Without, they are joined as
    they stand (a blank between them has to be in the data) and the end-of-sequence token is added, so that the model
    learns to stop. The completion begins at the first token that differs from the prompt tokenised alone.

    A sample longer than the context loses the beginning of its prompt first, then its end.

    Args:
        columns: The data's column for each role the task reads; None for a role that is not used.
        chat: Use the tokenizer's chat template; by default if it has one.
        max_length: Longest sample in tokens; the model's context by default.
    """

    auto_class = "AutoModelForCausalLM"
    truncates = True
    reads_text = True
    instead: ClassVar[str]
    """What may be given in place of messages."""

    def __init__(
        self, columns: dict[str, str | None], *, chat: bool | None = None, max_length: int | None = None
    ) -> None:
        super().__init__(columns, max_length)
        self._asked_chat = chat

    @override
    def _bind_processors(self, location: str | Path, trust_remote_code: bool) -> None:
        self.tokenizer = load_tokenizer(location, trust_remote_code=trust_remote_code)
        self.padding = padding_id(self.tokenizer, location)
        self.limit = self.max_length or context_length(self.config, self.tokenizer)
        if self.limit == 1:
            raise GradfixError("max_length: a causal language model needs at least 2 tokens, found 1")

    @property
    def chat(self) -> bool:
        """Whether samples are read through a chat template."""
        return self.tokenizer.chat_template is not None if self._asked_chat is None else self._asked_chat

    def use_template(self, template: str) -> None:
        """Read samples as the tuned model does.

        Args:
            template: Its chat template.
        """
        self.tokenizer.chat_template = template

    def require_template(self) -> None:
        """Refuse conversations where no chat template tells how the model reads them.

        Raises:
            GradfixError: If the tokenizer has none.
        """
        if self.tokenizer.chat_template is None:
            raise GradfixError(
                f"{self.location}: the tokenizer has no chat template, nor has the tuned model one that fits; give "
                f"{self.instead} in place of messages"
            )

    def spoken(
        self,
        messages: Sequence[Message],
        where: str,
        *,
        tools: Any = None,
        gap: str = "",
        template: bool | None = None,
    ) -> Spoken:
        """Tokenise a conversation, or without a chat template its prompt and completion.

        Args:
            messages: Role and content of each turn; without a template the prompt's and the completion's alone.
            where: How an error names the row.
            tools: What the template is told of tools.
            gap: Put between prompt and completion where there is no template.
            template: Write it by the chat template; by default as all samples are.

        Returns:
            The tokens, and which of them the assistant said.

        Raises:
            GradfixError: If the template refuses the conversation.
        """
        if self.chat if template is None else template:
            self.require_template()
            ids, said = spoken_tokens(self.tokenizer, messages, where, tools=_read_tools(tools, where))
        else:
            ids, said = self._joined(messages[0]["content"] + gap, messages[1]["content"])
        said[:1] = [False]  # nothing comes before the first token, so nothing predicts it
        return ids, said

    def _joined(self, prompt: str, completion: str) -> Spoken:
        """Tokens of prompt, completion and end, and which of them are not the prompt's."""
        before = list(self.tokenizer(prompt, verbose=False)["input_ids"])
        full = list(self.tokenizer(prompt + completion, verbose=False)["input_ids"])
        end = self.tokenizer.eos_token_id
        if end is not None and full[-1:] != [end]:
            full.append(end)
        same = common_length(before, full)
        return full, [place >= same for place in range(len(full))]

    def padded(self, samples: Sequence[Spoken], rows: Sequence[RowLike], *, strict: bool) -> Batch:
        """Cut samples to the context and pad them on the right.

        Args:
            samples: B of them.
            rows: Where they came from, for messages.
            strict: Refuse a sample that would have to be truncated.

        Returns:
            ``input_ids``, ``attention_mask`` and ``labels``, ``[B, L]``; ``truncated``, ``[B]``.

        Raises:
            GradfixError: If a sample has nothing to predict, or is too long in strict mode.
        """
        for position, (_, said) in enumerate(samples):
            if not any(said):
                raise GradfixError(
                    f"{origin(rows[position], position)}: the completion has no token to predict"
                )
        lengths = [len(ids) for ids, _ in samples]
        cut = [self.limit is not None and length > self.limit for length in lengths]
        if strict and any(cut):
            refuse_long(rows, lengths, cut, self.limit)
        kept = [self._cut(*sample) if long else sample for sample, long in zip(samples, cut, strict=True)]
        labels = [
            [token if spoken else -100 for token, spoken in zip(ids, said, strict=True)] for ids, said in kept
        ]
        return {
            "input_ids": pad([ids for ids, _ in kept], self.padding),
            "attention_mask": pad([[1] * len(ids) for ids, _ in kept], 0),
            "labels": pad(labels, -100),
            "truncated": torch.tensor(cut),
        }

    def _cut(self, ids: list[int], said: list[bool]) -> Spoken:
        assert self.limit is not None
        # One token of the prompt is left before the first that is predicted.
        start = min(len(ids) - self.limit, said.index(True) - 1)
        return ids[start : start + self.limit], said[start : start + self.limit]

    def marked(self, ids: Sequence[int], said: Sequence[bool]) -> str:
        """Write tokens as the model reads them.

        Args:
            ids: The tokens.
            said: Which of them are predicted.

        Returns:
            Their text, with what is predicted between ⟦ and ⟧.
        """
        parts = groupby(zip(ids, said, strict=True), key=lambda pair: pair[1])
        texts = [(spoken, self.tokenizer.decode([token for token, _ in pairs])) for spoken, pairs in parts]
        return "".join(f"⟦{text}⟧" if spoken else text for spoken, text in texts)

    @override
    def features(self, model: nn.Module, batch: Batch) -> Tensor:
        """The last hidden states, averaged over real tokens."""
        inner = backbone(model)
        inputs = placed(inner, batch)
        return mean_over_tokens(inner(**inputs).last_hidden_state, inputs["attention_mask"])


def _read_tools(value: Any, where: str) -> Any:
    """What a template is told of tools: as it is, or read from the JSON that some data sets write it as."""
    if not isinstance(value, str) or not value.strip():
        return value or None
    found = parse_json_value(value, f"{where}: column 'tools'")
    if not isinstance(found, list):
        raise GradfixError(f"{where}: column 'tools': expected a list of tools, found {type(found).__name__}")
    return found or None
