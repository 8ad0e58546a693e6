"""Texts to padded tensors."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from gradfix.errors import GradfixError
from gradfix.tasks.data import origin

FILL = {"attention_mask": 0, "special_tokens_mask": 1, "labels": -100}


def tokenize(
    tokenizer: Any,
    texts: Sequence[str],
    pairs: Sequence[str] | None,
    *,
    limit: int | None,
    strict: bool,
    rows: Sequence[Any],
) -> tuple[dict[str, list[list[int]]], list[bool]]:
    """Tokenise, cutting what is longer than the model's context.

    Args:
        tokenizer: A transformers tokenizer.
        texts: B texts.
        pairs: B second texts, or None.
        limit: The longest sample in tokens; None for no limit.
        strict: Refuse instead of cutting.
        rows: The rows that the texts came from, for messages.

    Returns:
        The tokenizer's lists by name, unpadded, and which samples were cut.

    Raises:
        GradfixError: If a sample has no tokens, or is too long in strict mode.
    """
    encoded = tokenizer(list(texts), None if pairs is None else list(pairs), verbose=False)
    lengths = [len(ids) for ids in encoded["input_ids"]]
    for position, length in enumerate(lengths):
        if length == 0:
            raise GradfixError(
                f"{origin(rows[position], position)}: the tokenizer makes no token of its text"
            )
    cut = [limit is not None and length > limit for length in lengths]
    if any(cut):
        if strict:
            refuse_long(rows, lengths, cut, limit)
        encoded = tokenizer(
            list(texts),
            None if pairs is None else list(pairs),
            truncation=True,
            max_length=limit,
            verbose=False,
        )
    return {key: [list(ids) for ids in encoded[key]] for key in encoded}, cut


def refuse_long(rows: Sequence[Any], lengths: Sequence[int], cut: Sequence[bool], limit: int | None) -> None:
    """Say which samples are too long.

    Args:
        rows: The samples.
        lengths: Their lengths in tokens.
        cut: Which are too long.
        limit: The longest allowed.

    Raises:
        GradfixError: Always.
    """
    first = cut.index(True)
    raise GradfixError(
        f"{origin(rows[first], first)}: {lengths[first]} tokens, longer than the model's context of {limit} "
        f"({sum(cut)} of these {len(cut)} samples are); shorten them, or allow truncation"
    )


def pad(sequences: Sequence[Sequence[int]], fill: int) -> Tensor:
    """Pad on the right to the longest.

    Args:
        sequences: B lists of integers.
        fill: What to pad with.

    Returns:
        ``[B, L]`` int64.
    """
    width = max(len(sequence) for sequence in sequences)
    return torch.tensor([[*sequence, *[fill] * (width - len(sequence))] for sequence in sequences])


def pad_all(encoded: dict[str, list[list[int]]], padding: int) -> dict[str, Tensor]:
    """Pad everything a tokenizer returned.

    Args:
        encoded: Lists by name, as `tokenize` returns them.
        padding: The padding token.

    Returns:
        ``[B, L]`` int64 by name. The attention mask is 0 where padded; so are token types.
    """
    return {
        key: pad(lists, padding if key == "input_ids" else FILL.get(key, 0)) for key, lists in encoded.items()
    }


def token_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean negative log-likelihood of each sample's own tokens.

    Args:
        logits: ``[B, L, vocabulary]``, position by position those of the labels.
        labels: ``[B, L]``, −100 where nothing is to be predicted.

    Returns:
        ``[B]`` float32: each sample's mean over its tokens, so that a long sample weighs as much as a short
        one.
    """
    # The sum is written without indexing by a mask, so that it works under torch.func transforms too; and a row a token
    # lies in memory as it is needed, where scores by class would be copied.
    each = cross_entropy(
        logits.float().flatten(0, 1), labels.flatten(), reduction="none", ignore_index=-100
    ).view(labels.shape)
    return each.sum(dim=1) / (labels != -100).sum(dim=1)
