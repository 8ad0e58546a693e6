"""Rows of language modelling as conversations: prompt and completion, messages in either spelling, or instructions."""

from collections.abc import Mapping, Sequence
from typing import Any

from gradfix.errors import GradfixError, column_option
from gradfix.tasks.chat import Message, says_something
from gradfix.tasks.data import origin

EMPTY_LINE = "\n\n"

LAYOUTS: tuple[Mapping[str, str], ...] = (
    {"prompt": "prompt", "completion": "completion"},
    {"messages": "messages"},
    {"messages": "conversations"},
    {"messages": "conversation"},
    {"prompt": "instruction", "completion": "output"},
)
"""Columns by role, as rows of this kind are commonly laid out."""


def recognised(rows: Sequence[Mapping[str, Any]]) -> Mapping[str, str] | None:
    """Find out how rows are laid out.

    Args:
        rows: The samples.

    Returns:
        Their columns by role; None where they are laid out otherwise.

    Raises:
        GradfixError: If they can be read in two ways.
    """
    known = columns_of(rows)
    found = [layout for layout in LAYOUTS if known >= set(layout.values())]
    if len(found) > 1:
        ways = " or ".join(f"{column_option(*next(iter(layout.items())))}" for layout in found)
        raise GradfixError(f"{origin(rows[0], 0)}: can be read in {len(found)} ways; say which with {ways}")
    return found[0] if found else None


SPEAKERS = {
    "human": "user", "user": "user", "gpt": "assistant", "chatgpt": "assistant", "assistant": "assistant",
    "model": "assistant", "system": "system", "tool": "tool", "observation": "tool", "function_response": "tool",
}  # fmt: skip
"""Roles by the names that ShareGPT's layout, ``{"from", "value"}``, and its descendants have for them."""


def as_messages(value: Any, where: str) -> Any:
    """Give a conversation laid out as ShareGPT's as messages with role and content; any other as it is.

    Args:
        value: Of a column of conversations.
        where: How an error names the row and column.

    Returns:
        The messages.

    Raises:
        GradfixError: If a speaker is not known, or a turn is to be left out of the loss.
    """
    if not isinstance(value, list) or not value:
        return value
    if not all(isinstance(turn, dict) and {"from", "value"} <= set(turn) for turn in value):
        return value
    found = []
    for turn in value:
        role = SPEAKERS.get(str(turn["from"]).lower())
        if role is None:
            raise GradfixError(
                f"{where}: a turn is from {turn['from']!r}; expected one of {', '.join(SPEAKERS)}, or messages with "
                "role and content"
            )
        if turn.get("weight") == 0:
            raise GradfixError(
                f"{where}: a turn has weight 0, but the loss is on every answer of the assistant; leave it out, or "
                "end the conversation before it"
            )
        more = {
            key: part
            for key, part in turn.items()
            if key not in ("from", "value", "weight") and part is not None
        }
        found.append({**more, "role": role, "content": turn["value"]})
    return found


def asks(value: Any) -> bool:
    """Whether a conversation ends with what the user says, so that it is a prompt.

    Args:
        value: Of a column of conversations, in any layout.

    Returns:
        Whether it does.
    """
    last = value[-1] if isinstance(value, list) and value else None
    return isinstance(last, dict) and SPEAKERS.get(str(last.get("role", last.get("from"))).lower()) == "user"


def columns_of(rows: Sequence[Mapping[str, Any]]) -> set[str]:
    """Name the columns that any row has.

    Args:
        rows: The samples.

    Returns:
        Their names.
    """
    named = getattr(rows, "column_names", None)
    return set(named) if named is not None else {column for row in rows for column in row}


def pair(prompt: Any, about: Any, completion: str, where: str) -> list[Message]:
    """Make a conversation of a prompt and its completion.

    Args:
        prompt: What the user says.
        about: What that is about, put after an empty line; blank where there is nothing.
        completion: What the assistant says.
        where: How an error names the row.

    Returns:
        Two messages.

    Raises:
        GradfixError: If prompt or ``about`` is no text.
    """
    said = with_context(prompt, about, where)
    return [{"role": "user", "content": said}, {"role": "assistant", "content": completion}]


def with_context(prompt: Any, about: Any, where: str) -> str:
    """Put what a prompt is about after it.

    Args:
        prompt: A text.
        about: Put after an empty line; blank or None where there is nothing.
        where: How an error names the row.

    Returns:
        The text.

    Raises:
        GradfixError: If one of them is no text.
    """
    for value in (prompt, about or ""):
        if not isinstance(value, str):
            raise GradfixError(f"{where}: expected text, found {type(value).__name__}")
    return str(prompt) + (f"{EMPTY_LINE}{about}" if (about or "").strip() else "")


def refuse_odd_messages(value: Any, where: str) -> None:
    """Refuse what is no conversation that ends with the assistant's answer.

    Args:
        value: Of a column of messages.
        where: How an error names the row and column.

    Raises:
        GradfixError: Naming what is wrong.
    """
    if not isinstance(value, list) or not all(
        isinstance(message, dict) and {"role", "content"} <= set(message) for message in value
    ):
        raise GradfixError(f"{where}: expected a list of messages with role and content")
    if not value or value[-1]["role"] != "assistant" or not says_something(value[-1]):
        raise GradfixError(f"{where}: expected the assistant's answer as the last message")
