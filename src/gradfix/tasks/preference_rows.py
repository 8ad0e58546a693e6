"""Rows of preference pairs, as the published data sets lay them out.

A reply is a text, a message, or a conversation that ends in one; a prompt is a text or the messages before. Where a
reply holds its prompt, as a conversation from its first turn on or as a text in the manner of HH-RLHF ("Human: …
Assistant: …"), the prompt's own column says nothing new.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gradfix.errors import GradfixError
from gradfix.tasks.chat import Message
from gradfix.tasks.conversations import as_messages, refuse_odd_messages, with_context

PROMPTS = ("prompt", "conversations", "messages", "question", "instruction", "input")
"""Columns that hold a prompt, the first one that is there."""

_TURN = re.compile(r"\n\n(Human|Assistant): ?")


@dataclass(frozen=True)
class Pair:
    """Two conversations that differ in how they end.

    Attributes:
        chosen: Messages, of which the last is the reply to prefer.
        rejected: The same with the other reply.
        same: How many messages they have in common at their beginning.
        texts: Whether they are two texts each, a prompt, perhaps an empty one, and a reply: these need no chat
            template.
    """

    chosen: Sequence[Message]
    rejected: Sequence[Message]
    same: int
    texts: bool


def pair_of(
    prompt: Any, context: Any, replies: Mapping[str, Any], where: str, *, written_out: bool = True
) -> Pair:
    """Read a row.

    Args:
        prompt: What both replies answer, a text or messages; None where the replies hold it.
        context: What the prompt is about, a text put after it; None for nothing.
        replies: The reply to prefer and the other one, by their columns.
        where: How an error names the row.
        written_out: Read texts in the manner of HH-RLHF as the turns that they are.

    Returns:
        Its conversations.

    Raises:
        GradfixError: If they are no conversations that end with the assistant's reply, or don't answer the same.
    """
    before = _messages(prompt, "user", f"{where}: the prompt") if prompt not in (None, "", []) else []
    if before and context is not None:
        before = [{**before[0], "content": with_context(before[0]["content"], context, where)}, *before[1:]]
    sides = []
    for column, reply in replies.items():
        place = f"{where}: column {column!r}"
        messages = _messages(reply, "assistant", place, written_out=written_out)
        if messages[0]["role"] == "assistant":
            messages = [*(before or [{"role": "user", "content": ""}]), *messages]
        refuse_odd_messages(messages, place)
        sides.append(messages)
    chosen, rejected = sides
    texts = len(chosen) == len(rejected) == 2 and all(isinstance(one, str) for one in replies.values())
    return Pair(chosen, rejected, _common(chosen, rejected, where), texts)


def _common(chosen: Sequence[Message], rejected: Sequence[Message], where: str) -> int:
    """Count the messages that two conversations begin with; they have to part at a reply."""
    same = 0
    for one, other in zip(chosen, rejected, strict=False):
        if one != other:
            break
        same += 1
    if same == max(len(chosen), len(rejected)):
        raise GradfixError(f"{where}: the chosen and the rejected reply are the same; leave this row out")
    parting = [side[same]["role"] if same < len(side) else "nobody" for side in (chosen, rejected)]
    if parting != ["assistant", "assistant"]:
        raise GradfixError(
            f"{where}: the chosen and the rejected conversation part at message {same}, of the {parting[0]} and the "
            f"{parting[1]}; expected two replies of the assistant to the same messages"
        )
    return same


def _messages(value: Any, speaker: str, where: str, *, written_out: bool = False) -> list[Message]:
    """A text, a message or a conversation as messages."""
    if isinstance(value, str):
        if not value.strip():
            raise GradfixError(f"{where}: expected text, found nothing but blanks")
        return (_written_out(value) if written_out else []) or [{"role": speaker, "content": value}]
    found = as_messages([value] if isinstance(value, dict) else value, where)
    if (
        not found
        or not isinstance(found, list)
        or not all(isinstance(message, dict) and {"role", "content"} <= set(message) for message in found)
    ):
        raise GradfixError(f"{where}: expected a text, or a list of messages with role and content")
    return found


def _written_out(text: str) -> list[Message]:
    """The turns of a conversation that is written as one text; none for any other text."""
    _, *parts = _TURN.split(text)
    if _TURN.match(text) is None or len(parts) < 4:
        return []
    names = {"Human": "user", "Assistant": "assistant"}
    return [
        {"role": names[speaker], "content": said.strip()}
        for speaker, said in zip(parts[::2], parts[1::2], strict=True)
    ]
