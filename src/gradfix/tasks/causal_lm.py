"""Causal language modelling: the completion of a prompt, token by token."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from gradfix.errors import GradfixError
from gradfix.tasks.base import Batch, Measured, ModelTask, RowLike, register
from gradfix.tasks.data import origin
from gradfix.tasks.forward import backbone, mean_over_tokens, placed
from gradfix.tasks.loading import context_length, load_tokenizer, padding_id
from gradfix.tasks.text import pad, refuse_long, token_losses


@register
class CausalLM(ModelTask):
    """Models of ``AutoModelForCausalLM``, such as GPT-2, Llama and Qwen.

    The loss of a sample is the mean over the tokens of its completion only (its exponential is the
    perplexity); the metric is the share of those tokens that the model ranks first when given all before
    them.

    With a chat template, prompt and completion are a user's and an assistant's message, and the completion is
    what the template adds after its generation prompt. Without, they are joined as they stand (a blank
    between them has to be in the data) and the end-of-sequence token is added, so that the model learns to
    stop. The completion begins at the first token that differs from the prompt tokenised alone.

    A sample longer than the context loses the beginning of its prompt first, then the end of its completion.

    Args:
        prompt: The column with the prompt.
        completion: The column with the completion.
        messages: The column with a conversation in its place: a list of ``{"role", "content"}`` that ends
            with the assistant's answer; only this last message is the completion.
        chat: Use the tokenizer's chat template; by default if it has one.
        max_length: Longest sample in tokens; the model's context by default.
    """

    name = "causal-lm"
    metric = "token_accuracy"
    auto_class = "AutoModelForCausalLM"
    truncates = True
    reads_text = True

    def __init__(
        self,
        prompt: str = "prompt",
        completion: str = "completion",
        messages: str | None = None,
        *,
        chat: bool | None = None,
        max_length: int | None = None,
    ) -> None:
        joined = {"prompt": prompt, "completion": completion}
        super().__init__(joined if messages is None else {"messages": messages}, max_length)
        if messages is not None and chat is False:
            raise GradfixError("task causal-lm: messages need a chat template; leave out chat=False")
        self._asked_chat = chat

    def _bind_processors(self, location: str | Path, trust_remote_code: bool) -> None:
        self.tokenizer = load_tokenizer(location, trust_remote_code=trust_remote_code)
        self.padding = padding_id(self.tokenizer, location)
        self.limit = self.max_length or context_length(self.config, self.tokenizer)
        if self.limit == 1:
            raise GradfixError("max_length: a causal language model needs at least 2 tokens, found 1")
        has_template = self.tokenizer.chat_template is not None
        if not has_template and (self._asked_chat or "messages" in self.columns):
            raise GradfixError(
                f"{location}: the tokenizer has no chat template; give prompt and completion instead"
            )
        self.chat = has_template if self._asked_chat is None else self._asked_chat

    def check(self, rows: Sequence[RowLike], *, support: bool = False) -> None:
        """Refuse rows without prompt and completion, or with a conversation that ends otherwise.

        Args:
            rows: The samples.
            support: They are a support set.
        """
        super().check(rows, support=support)
        self._conversations(rows)

    def _conversations(self, rows: Sequence[RowLike]) -> list[list[dict[str, str]]]:
        """Each row as messages, of which the last is the completion."""
        if "messages" not in self.columns:
            completions = self._texts(rows, "completion")
            conversations = []
            for position, (prompt, completion) in enumerate(
                zip(self._column(rows, "prompt"), completions, strict=True)
            ):
                if not isinstance(prompt, str):
                    raise GradfixError(
                        f"{origin(rows[position], position)}: column {self.columns['prompt']!r}: "
                        f"expected text, found {type(prompt).__name__}"
                    )
                conversations.append(
                    [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
                )
            return conversations
        values = self._column(rows, "messages")
        for position, value in enumerate(values):
            where = f"{origin(rows[position], position)}: column {self.columns['messages']!r}"
            if not isinstance(value, list) or not all(
                isinstance(message, dict) and {"role", "content"} <= set(message) for message in value
            ):
                raise GradfixError(f"{where}: expected a list of messages with role and content")
            if not value or value[-1]["role"] != "assistant" or not str(value[-1]["content"]).strip():
                raise GradfixError(f"{where}: expected the assistant's answer as the last message")
        return values

    def encode(self, rows: Sequence[RowLike], *, strict: bool = False) -> Batch:
        """Tokenise prompts with their completions, and pad on the right.

        Args:
            rows: At least one sample.
            strict: Refuse a sample longer than the context.

        Returns:
            ``input_ids``, ``attention_mask`` and ``labels``, each ``[B, L]``, and ``truncated`` ``[B]``. A
            label is the token at its own position (−100 before the completion and where padded).

        Raises:
            GradfixError: Naming the first row that cannot be used.
        """
        ids, begins = [], []
        for position, messages in enumerate(self._conversations(rows)):
            where = origin(rows[position], position)
            prompt, full = self._chat_ids(messages, where) if self.chat else self._plain_ids(messages)
            same = 0
            while same < min(len(prompt), len(full)) and prompt[same] == full[same]:
                same += 1
            if len(full) - max(same, 1) < 1:
                raise GradfixError(f"{where}: the completion has no token to predict")
            ids.append(full)
            begins.append(same)
        lengths = [len(sample) for sample in ids]
        cut = [self.limit is not None and length > self.limit for length in lengths]
        if strict and any(cut):
            refuse_long(rows, lengths, cut, self.limit)
        for position, was_cut in enumerate(cut):
            if was_cut and self.limit is not None:
                begin = begins[position]
                completion = ids[position][begin : begin + self.limit - 1]
                begins[position] = self.limit - len(completion)
                ids[position] = ids[position][begin - begins[position] : begin] + completion
        labels = [[-100] * begin + sample[begin:] for sample, begin in zip(ids, begins, strict=True)]
        return {
            "input_ids": pad(ids, self.padding),
            "attention_mask": pad([[1] * len(sample) for sample in ids], 0),
            "labels": pad(labels, -100),
            "truncated": torch.tensor(cut),
        }

    def _plain_ids(self, messages: list[dict[str, str]]) -> tuple[list[int], list[int]]:
        """Tokens of the prompt alone, and of prompt, completion and end."""
        prompt, completion = messages[0]["content"], messages[1]["content"]
        before = list(self.tokenizer(prompt, verbose=False)["input_ids"])
        full = list(self.tokenizer(prompt + completion, verbose=False)["input_ids"])
        end = self.tokenizer.eos_token_id
        if end is not None and full[-1:] != [end]:
            full.append(end)
        return before, full

    def _chat_ids(self, messages: list[dict[str, str]], where: str) -> tuple[list[int], list[int]]:
        """Tokens of the conversation up to the answer, and with it."""
        from jinja2 import TemplateError

        try:
            before = self.tokenizer.apply_chat_template(
                messages[:-1], tokenize=False, add_generation_prompt=True
            )
            full = self.tokenizer.apply_chat_template(messages, tokenize=False)
        except TemplateError as error:
            raise GradfixError(f"{where}: the chat template refuses this conversation ({error})") from error
        # The template has written the special tokens itself.
        encoded = self.tokenizer([before, full], add_special_tokens=False, verbose=False)["input_ids"]
        return list(encoded[0]), list(encoded[1])

    def _next_tokens(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits ``[B, L − 1, vocabulary]`` with the labels ``[B, L − 1]`` that they predict."""
        logits: Tensor = model(**placed(model, batch)).logits
        return logits[:, :-1], batch["labels"][:, 1:].to(logits.device)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean negative log-likelihood of each completion's tokens.

        Args:
            model: The model.
            batch: What `encode` returned.

        Returns:
            ``[B]`` float32.
        """
        return token_losses(*self._next_tokens(model, batch))

    def measure(self, model: nn.Module, batch: Batch) -> Measured:
        """Losses, shares of tokens ranked first, and those first-ranked tokens as text.

        Args:
            model: The model.
            batch: What `encode` returned.

        Returns:
            One of each a sample. The texts are not free generations: each token is given the true ones before
            it.
        """
        logits, labels = self._next_tokens(model, batch)
        first = logits.argmax(dim=-1)
        wanted = labels != -100
        scores = ((first == labels) & wanted).sum(dim=1) / wanted.sum(dim=1)
        texts = [
            self.tokenizer.decode(tokens[mask].tolist(), skip_special_tokens=True)
            for tokens, mask in zip(first, wanted, strict=True)
        ]
        return Measured(token_losses(logits, labels), scores.float(), texts)

    def features(self, model: nn.Module, batch: Batch) -> Tensor:
        """The last hidden states, averaged over real tokens.

        Args:
            model: The model.
            batch: What `encode` returned.

        Returns:
            ``[B, d]`` float32.
        """
        inner = backbone(model)
        inputs = placed(inner, batch)
        return mean_over_tokens(inner(**inputs).last_hidden_state, inputs["attention_mask"])

    def size(self, row: RowLike) -> int:
        """The characters of the sample.

        Args:
            row: A sample.

        Returns:
            Their number.
        """
        if "messages" in self.columns:
            return sum(
                len(str(message.get("content"))) for message in row.get(self.columns["messages"]) or []
            )
        return sum(len(str(row.get(column))) for column in self.columns.values())
