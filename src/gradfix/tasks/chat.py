"""Which tokens of a conversation the assistant said, and which its chat template wrote around them.

A template that marks the assistant's words with ``{% generation %}`` is believed. Of any other the conversation is
rendered a second time with a marker in an answer's place: what differs is the answer, wherever in the text it stands
and whatever the template does to the other turns. The end-of-turn token that follows an answer belongs to it, since
the model has to learn to stop; role headers, blanks between turns and empty thoughts are the template's own.
"""

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

from gradfix.errors import GradfixError

Message: TypeAlias = dict[str, Any]
Span: TypeAlias = tuple[int, int]
"""First character and the one past the last."""
Render: TypeAlias = Callable[..., str]

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
# What the assistant said beside its content, in the words of the templates that write it.
_MORE_SAID = ("tool_calls", "function_call", "reasoning_content", "reasoning", "thinking")


def spoken_tokens(
    tokenizer: Any, messages: Sequence[Message], where: str, *, tools: Any = None
) -> tuple[list[int], list[bool]]:
    """Render a conversation, and tell the assistant's tokens from all others.

    Args:
        tokenizer: A transformers tokenizer with a chat template.
        messages: Role and content of each turn.
        where: How an error names the row.
        tools: What the template is told of tools.

    Returns:
        The tokens, and for each whether the assistant said it.

    Raises:
        GradfixError: If the template refuses the conversation, or it can't be told what the assistant said.
    """
    from jinja2 import TemplateError

    chat = [dict(message) for message in messages]
    try:
        if tokenizer.is_fast and _GENERATION.search(tokenizer.get_chat_template(None, tools)):
            return _marked_tokens(tokenizer, chat, tools)

        def render(turns: Sequence[Message], *, prompt: bool = False) -> str:
            text: str = tokenizer.apply_chat_template(
                list(turns), tools=tools, tokenize=False, add_generation_prompt=prompt
            )
            return text

        full = render(chat)
        spans = [_span(tokenizer, render, full, chat, turn, where) for turn in _answers(chat)]
    except (TemplateError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise GradfixError(f"{where}: the chat template refuses this conversation ({reason})") from error
    return tokens_of_spans(tokenizer, full, spans)


def _marked_tokens(tokenizer: Any, chat: list[Message], tools: Any) -> tuple[list[int], list[bool]]:
    """The tokens that the template itself says are the assistant's."""
    marked = tokenizer.apply_chat_template(
        chat,
        tools=tools,
        return_dict=True,
        return_assistant_tokens_mask=True,
        tokenizer_kwargs={"return_offsets_mapping": True, "verbose": False},
    )
    places = marked["offset_mapping"]
    # Of a last character of several tokens, transformers marks the first one only.
    said = {
        character
        for (first, last), spoken in zip(places, marked["assistant_masks"], strict=True)
        if spoken
        for character in range(first, last)
    }
    return list(marked["input_ids"]), [not said.isdisjoint(range(first, last)) for first, last in places]


def _answers(chat: Sequence[Message]) -> list[int]:
    """The assistant's turns in which it says something."""
    return [
        turn
        for turn, message in enumerate(chat)
        if message["role"] == "assistant" and says_something(message)
    ]


def says_something(message: Message) -> bool:
    """Whether there is something in a message to predict.

    Args:
        message: Of the assistant.

    Returns:
        Whether it has words, thoughts or calls of tools.
    """
    return bool(spoken(message["content"])) or _says_more(message)


def _says_more(message: Message) -> bool:
    return any(message.get(key) for key in _MORE_SAID)


def spoken(content: Any) -> str:
    """The words of a message's content.

    Args:
        content: A text, or a list of parts of which some are texts.

    Returns:
        The text without blanks around it.
    """
    if isinstance(content, list):
        content = "".join(part.get("text") or "" for part in content if isinstance(part, dict))
    return content.strip() if isinstance(content, str) else ""


def _span(tokenizer: Any, render: Render, full: str, chat: list[Message], turn: int, where: str) -> Span:
    by_content = partial(_content, tokenizer)
    # Thoughts and calls of tools stand beside the content, so where they are shown the turn is looked at first.
    for find in (_turn, by_content) if _says_more(chat[turn]) else (by_content, _turn):
        found = find(render, full, chat, turn)
        if found is not None:
            return found
    raise GradfixError(
        f"{where}: the chat template rewrites the conversation, so it can't be told where the assistant's answer "
        f"in turn {turn} begins and ends; mark it in the template with {{% generation %}}"
    )


def _content(tokenizer: Any, render: Render, full: str, chat: list[Message], turn: int) -> Span | None:
    """An answer by what changes when another stands in its place, with the token that ends the turn."""
    number = 0
    while (marker := f"answer{number}") in full:
        number += 1
    said = chat[turn]["content"]
    other = [{"type": "text", "text": marker}] if isinstance(said, list) else marker
    replaced = {**chat[turn], "content": other}
    before, found, after = render([*chat[:turn], replaced, *chat[turn + 1 :]]).partition(marker)
    end = len(full) - len(after)
    if not found or not (full.startswith(before) and full.endswith(after) and len(before) < end):
        return None
    if not full[len(before) : end].strip():
        return None
    _, _, closing = render([*chat[:turn], replaced]).partition(marker)
    return len(before), end + len(_end_of_turn(tokenizer, closing, full[end:]))


def _end_of_turn(tokenizer: Any, closing: str, following: str) -> str:
    """The token that ends a turn, with the blanks before it; nothing where a template has none."""
    blanks = closing[: len(closing) - len(closing.lstrip())]
    tokens = [*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()]
    ends = [blanks + token for token in tokens if closing.startswith(blanks + token)]
    ending = max(ends, key=len, default="")
    return ending if following.startswith(ending) else ""


def _turn(render: Render, full: str, chat: list[Message], turn: int) -> Span | None:
    """An answer as what is rendered after the prompt for it, less the blanks that follow."""
    if turn == 0:
        return None
    begin = render(chat[:turn], prompt=True)
    whole = render(chat[: turn + 1]).rstrip()
    if len(begin) < len(whole) and whole.startswith(begin) and full.startswith(whole):
        return len(begin), len(whole)
    return None


def tokens_of_spans(tokenizer: Any, text: str, spans: Sequence[Span]) -> tuple[list[int], list[bool]]:
    """Tokenise a text that holds its special tokens, and tell which tokens lie in some spans, if only in part.

    Args:
        tokenizer: A transformers tokenizer.
        text: The text.
        spans: Ranges of characters.

    Returns:
        The tokens, and for each whether it holds a character of a span.
    """
    options = {"add_special_tokens": False, "verbose": False}
    if tokenizer.is_fast:
        encoded = tokenizer(text, return_offsets_mapping=True, **options)
        places = encoded["offset_mapping"]
        inside = [any(first < end and begin < last for begin, end in spans) for first, last in places]
        return list(encoded["input_ids"]), inside
    ids = list(tokenizer(text, **options)["input_ids"])
    inside = [False] * len(ids)
    for first, last in spans:
        begin = common_length(list(tokenizer(text[:first], **options)["input_ids"]), ids)
        until = list(tokenizer(text[:last], **options)["input_ids"])
        end = common_length(until, ids)
        end += end < len(until)  # one more token, that goes on after the span
        inside[begin:end] = [True] * (end - begin)
    return ids, inside


def common_length(some: Sequence[int], others: Sequence[int]) -> int:
    """How many tokens two lists have in common at their beginning.

    Args:
        some: Tokens.
        others: Tokens.

    Returns:
        Their number.
    """
    return next(
        (place for place, (one, other) in enumerate(zip(some, others, strict=False)) if one != other),
        min(len(some), len(others)),
    )
