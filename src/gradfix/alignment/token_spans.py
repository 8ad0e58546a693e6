"""Tokens of two tokenizers that cover the same characters of the same text."""

import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher
from typing import Any

WINDOW = 16
"""Tokens that are decoded together: enough for the longest character of several tokens."""


TOGETHER = 3
"""Characters in a row that make a match: single letters are found again in any text."""


def token_texts(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """Tell the characters that each token stands for, so that other tokenizers' can be compared with them.

    Blanks, case and accents are left out, since some tokenizers drop them; special tokens stand for nothing. A
    character of several tokens (bytes) belongs to the last of them.

    Args:
        tokenizer: A transformers tokenizer.
        ids: Its tokens of one text.

    Returns:
        A text a token; joined they are the whole.
    """
    special = set(tokenizer.all_special_ids)
    texts: list[str] = []
    window: list[int] = []
    known = ""
    for token in ids:
        if token in special:
            texts.append("")
            window, known = [], ""
            continue
        window.append(token)
        whole = _plain(tokenizer.decode(window, skip_special_tokens=True))
        unfinished = whole.endswith("\N{REPLACEMENT CHARACTER}")
        texts.append("" if unfinished else whole[len(known) :])
        if not unfinished:
            known = whole
            if len(window) >= WINDOW:
                window, known = [], ""
    return texts


def spans_between(source: Sequence[str], target: Sequence[str]) -> tuple[list[Mapping[int, float]], float]:
    """Find the source's tokens that cover the characters of each of the target's.

    A token without characters (a special token, or one whose text the source does not have) is covered by the source's
    token as many places before or after the text, as far as there is one; within the text by a separator, or by what
    covers the token before it.

    Args:
        source: The source's tokens as texts, at least one.
        target: The target's.

    Returns:
        A token's weights over the source's tokens, which sum to 1; and the share of the target's characters that were
        found.
    """
    ours, theirs = "".join(source), "".join(target)
    owner = [token for token, text in enumerate(source) for _ in text]
    place = _matched(ours, theirs)
    first, last = _bounds(source)
    begin, end = _bounds(target)
    found: list[Mapping[int, float]] = []
    position = matched = 0
    for token, text in enumerate(target):
        counts = Counter(
            owner[place[index]] for index in range(position, position + len(text)) if index in place
        )
        position += len(text)
        matched += sum(counts.values())
        if counts:
            total = sum(counts.values())
            found.append({other: count / total for other, count in counts.items()})
        elif token < begin:
            found.append({max(0, first - begin + token): 1.0})
        elif token > end:
            found.append({min(len(source) - 1, last + token - end): 1.0})
        else:
            found.append(_beside(found, source, text))
    return found, matched / len(theirs) if theirs else 1.0


def _beside(found: Sequence[Mapping[int, float]], source: Sequence[str], text: str) -> Mapping[int, float]:
    """What stands for a token within the text: a separator for a separator, else what stands for its neighbour."""
    if not found:
        return {0: 1.0}
    after = max(found[-1]) + 1
    separator = not text and after < len(source) and not source[after]
    return {after: 1.0} if separator else found[-1]


def _matched(ours: str, theirs: str) -> dict[int, int]:
    """The character of ``ours`` for each of ``theirs`` that has one."""
    if ours == theirs:
        return {index: index for index in range(len(ours))}
    blocks = SequenceMatcher(None, theirs, ours, autojunk=False).get_matching_blocks()
    return {
        block.a + step: block.b + step
        for block in blocks
        if block.size >= min(TOGETHER, len(theirs))
        for step in range(block.size)
    }


def _bounds(texts: Sequence[str]) -> tuple[int, int]:
    """The first and the last token with characters."""
    spoken = [token for token, text in enumerate(texts) if text]
    return (spoken[0], spoken[-1]) if spoken else (len(texts), len(texts) - 1)


def _plain(text: str) -> str:
    """Characters that every tokenizer keeps."""
    decomposed = unicodedata.normalize("NFKD", text.casefold())
    return "".join(one for one in decomposed if not one.isspace() and not unicodedata.combining(one))
