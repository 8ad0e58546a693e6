"""Rows of embeddings belong to tokens: where two releases' tokenizers differ, rows are matched by token text."""

import filecmp
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from gradfix.checkpoints import TensorSpec
from gradfix.errors import GradfixError

# Input embeddings, output layers and output biases of the transformers families, by the end of their names.
_VOCABULARY_TENSOR = re.compile(
    r"(^|\.)(word_embeddings|embed_tokens|wte|shared|token_embedding|lm_head|embed_out|word_embedding)\.(weight|bias)$"
    r"|(^|\.)(cls\.predictions\.(decoder\.(weight|bias)|bias)|lm_head\.decoder\.(weight|bias)|vocab_projector\.(weight|bias)"
    r"|final_logits_bias)$"
)
_TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "vocab.txt", "spiece.model", "tokenizer.model")


class HasVocabulary(Protocol):
    """A checkpoint or a task vector: tensors, a configuration, and the folder that holds the tokenizer."""

    @property
    def specs(self) -> Mapping[str, TensorSpec]:
        """Tensors by name."""
        ...

    @property
    def config(self) -> Mapping[str, Any]:
        """The model's ``config.json``, or nothing."""
        ...

    @property
    def directory(self) -> Path | None:
        """The model's folder."""
        ...


def vocabulary_rows(
    source: HasVocabulary, target: HasVocabulary, names: Mapping[str, str]
) -> dict[str, Tensor]:
    """Find, for each vocabulary tensor of the target, which row of the source each of its rows corresponds to.

    Args:
        source: Where rows come from.
        target: Whose rows are wanted.
        names: Tensors to look at, the source's names to the target's.

    Returns:
        By the source's name: int64 of the target's row count, −1 where the source has no such token. Empty where
        both vocabularies are the same, or where none is known and the sizes agree.

    Raises:
        GradfixError: if sizes differ and a tokenizer is missing, so that rows can't be matched.
    """
    sizes = vocabulary_size(source.config), vocabulary_size(target.config)
    concerned = {
        ours: theirs
        for ours, theirs in names.items()
        if is_vocabulary_tensor(ours, source.specs[ours], sizes[0])
        and is_vocabulary_tensor(theirs, target.specs[theirs], sizes[1])
    }
    if not concerned:
        return {}
    if _same_tokenizer(source.directory, target.directory) and all(
        source.specs[ours].shape[0] == target.specs[theirs].shape[0] for ours, theirs in concerned.items()
    ):
        return {}
    tokens = read_tokens(source.directory), read_tokens(target.directory)
    maps: dict[str, Tensor] = {}
    for ours, theirs in concerned.items():
        rows = source.specs[ours].shape[0], target.specs[theirs].shape[0]
        if tokens[0] is None or tokens[1] is None:
            if rows[0] != rows[1]:
                raise GradfixError(
                    f"{ours}: {rows[0]} rows against {rows[1]} of the target: the vocabularies differ, and rows can be "
                    "matched by token text only where both models have their tokenizer; add tokenizer.json beside the "
                    "weights"
                )
            continue
        found = row_map(tokens[0], tokens[1], *rows)
        if found is not None:
            maps[ours] = found
    return maps


def _same_tokenizer(source: Path | None, target: Path | None) -> bool:
    """Whether two folders have the very same tokenizer.json: parsing a large one takes longer than a whole check."""
    if source is None or target is None:
        return False
    files = source / "tokenizer.json", target / "tokenizer.json"
    return all(file.is_file() for file in files) and filecmp.cmp(*files, shallow=False)


def vocabulary_size(config: Mapping[str, Any]) -> int | None:
    """Size of the token embedding as the configuration states it.

    Args:
        config: A model's ``config.json``; for models of several towers the text tower's entry counts.

    Returns:
        The number of rows; None where the configuration names none.
    """
    for part in (config, config.get("text_config") or {}):
        if isinstance(part.get("vocab_size"), int):
            return int(part["vocab_size"])
    return None


def is_vocabulary_tensor(name: str, spec: TensorSpec, size: int | None) -> bool:
    """Whether the rows of a tensor are tokens.

    Args:
        name: The tensor's key.
        spec: Its shape.
        size: The model's vocabulary size, where known.

    Returns:
        True for token embeddings and output layers; a table of positions or another size is not one.
    """
    return bool(_VOCABULARY_TENSOR.search(name)) and bool(spec.shape) and size in {None, spec.shape[0]}


def read_tokens(directory: Path | None) -> dict[str, int] | None:
    """Read a tokenizer's token texts and ids.

    Args:
        directory: Folder of the model; None where there is none.

    Returns:
        Token text to id, added tokens included; None where the folder has no tokenizer.

    Raises:
        GradfixError: if the tokenizer's files can't be read.
    """
    if directory is None or not any((directory / name).exists() for name in _TOKENIZER_FILES):
        return None
    file = directory / "tokenizer.json"
    try:
        if file.exists():
            from tokenizers import Tokenizer

            return dict(Tokenizer.from_file(str(file)).get_vocab(with_added_tokens=True))
        from transformers import AutoTokenizer

        return dict(AutoTokenizer.from_pretrained(str(directory), trust_remote_code=False).get_vocab())
    except Exception as error:
        raise GradfixError(
            f"{directory}: the tokenizer can't be read: {str(error).splitlines()[0]}"
        ) from error


def row_map(
    source: Mapping[str, int], target: Mapping[str, int], source_rows: int, target_rows: int
) -> Tensor | None:
    """For each row of the target's vocabulary, the row of the source with the same token text.

    Rows past both tokenizers' ids (padding of the table to a round size) belong to no token and get −1.

    Args:
        source: The source's token texts and ids.
        target: The target's.
        source_rows: Rows of the source's table.
        target_rows: Rows of the target's table.

    Returns:
        Int64 of shape [target_rows], −1 where the source has no such token; None where rows already correspond.
    """
    if source == target and source_rows == target_rows:
        return None
    rows = torch.full((target_rows,), -1, dtype=torch.int64)
    pairs = [(row, source[token]) for token, row in target.items() if token in source]
    kept = [(row, theirs) for row, theirs in pairs if row < target_rows and theirs < source_rows]
    if kept:
        index = torch.tensor(kept, dtype=torch.int64)
        rows[index[:, 0]] = index[:, 1]
    return rows
