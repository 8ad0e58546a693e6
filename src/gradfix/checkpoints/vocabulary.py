"""Rows of embeddings belong to tokens: where two releases' tokenizers differ, rows are matched by token text."""

import filecmp
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from gradfix.checkpoints.architecture import architecture_of, vocabulary_tensors
from gradfix.checkpoints.names import match_names
from gradfix.checkpoints.reading.json_files import read_json_object
from gradfix.checkpoints.tensors import TensorSpec
from gradfix.errors import GradfixError

# What is known of models that transformers can't build: token embeddings, output layers and their biases by name.
_KNOWN_NAMES = re.compile(
    r"(^|\.)(word_embeddings|embed_tokens|tok_embeddings|embed_in|wte|shared|token_embedding|lm_head|embed_out)\."
    r"(weight|bias)$"
)
_WITH_TOKENS = (
    "tokenizer.json", "vocab.json", "vocab.txt", "vocab.bpe", "merges.txt", "spiece.model", "spm.model",
    "tokenizer.model", "sentencepiece.bpe.model", "source.spm", "target.spm", "tekken.json", "added_tokens.json",
)  # fmt: skip
"""Files that decide which token has which id, the one that decides alone first."""


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

    Which tensors these are is asked of the architectures; nothing is asked where both vocabularies are the same.

    Args:
        source: Where rows come from.
        target: Whose rows are wanted.
        names: Tensors to look at, the source's names to the target's.

    Returns:
        By the source's name: int64 of the target's row count, −1 where the source has no such token. Empty where
        both vocabularies are the same, or where none is known and the sizes agree.

    Raises:
        GradfixError: if sizes differ and a tokenizer is missing, so that rows can't be matched; or the vocabularies
            differ, and a tensor may count tokens in a way that isn't known.
    """
    resized = {
        ours for ours, theirs in names.items() if source.specs[ours].shape != target.specs[theirs].shape
    }
    if same_tokenizer(source.directory, target.directory) and not resized:
        return {}
    tokens = read_tokens(source.directory), read_tokens(target.directory)
    known = tokens[0] is not None and tokens[1] is not None
    if not resized and (not known or tokens[0] == tokens[1]):
        return {}
    concerned = _concerned(source, target, names, tokens)
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


def _concerned(
    source: HasVocabulary,
    target: HasVocabulary,
    names: Mapping[str, str],
    tokens: tuple[Mapping[str, int] | None, Mapping[str, int] | None],
) -> dict[str, str]:
    """Of some names, those whose rows are tokens; refused where that can't be told and vocabularies differ."""
    tables = vocabulary_tables(source), vocabulary_tables(target)
    sizes = [vocabulary_size(model.config) for model in (source, target)]
    sizes += [max(ids.values(), default=-1) + 1 for ids in tokens if ids]
    found = {}
    for ours, theirs in names.items():
        axes = {axis for axis in (tables[0].get(ours), tables[1].get(theirs)) if axis is not None}
        spec = source.specs[ours]
        if axes == {0}:
            found[ours] = theirs
        elif axes or (
            # Neither architecture has such a tensor: nobody knows what its rows are.
            ours not in tables[0] and theirs not in tables[1] and spec.shape and spec.shape[0] in sizes
        ):
            raise GradfixError(
                f"{ours} {list(spec.shape)}: the vocabularies of the two models differ, and this tensor seems to count "
                "tokens in a way that isn't known, so they can't be matched by text; give models with one tokenizer"
            )
    return found


def vocabulary_tables(model: HasVocabulary) -> dict[str, int | None]:
    """Tell which tensors have one entry a token.

    Args:
        model: A checkpoint or a task vector.

    Returns:
        By name: the dimension that counts tokens, None of a tensor that counts none. Without the tensors that the
        architecture lacks, and without all but a few known names where transformers can't build it.
    """
    architecture, counted = architecture_of(model.config), vocabulary_tensors(model.config)
    if architecture is None or counted is None:
        size = vocabulary_size(model.config)
        return {
            name: 0
            for name, spec in model.specs.items()
            if _KNOWN_NAMES.search(name) and spec.shape and size in {None, spec.shape[0]}
        }
    rename = match_names({*architecture.names, *counted}, model.specs).rename
    return {rename(name): counted.get(name) for name in (*architecture.names, *counted)}


def same_tokenizer(source: Path | None, target: Path | None) -> bool:
    """Whether two folders have the very same tokenizer: parsing a large one takes longer than a whole check.

    Args:
        source: One folder; None where there is none.
        target: The other.

    Returns:
        True only where the files that decide on tokens and their ids are equal byte for byte.
    """
    if source is None or target is None:
        return False
    there = [{name for name in _WITH_TOKENS if (folder / name).is_file()} for folder in (source, target)]
    decisive = [names & {"tokenizer.json"} or names for names in there]
    if decisive[0] != decisive[1] or not decisive[0] - {"added_tokens.json"}:
        return False
    if "tokenizer.json" not in decisive[0] and _added(source) != _added(target):
        return False
    return all(filecmp.cmp(source / name, target / name, shallow=False) for name in decisive[0])


def _added(folder: Path) -> Any:
    """The tokens that a tokenizer without tokenizer.json has beside its vocabulary."""
    path = folder / "tokenizer_config.json"
    return read_json_object(path).get("added_tokens_decoder") if path.is_file() else None


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


def read_tokens(directory: Path | None) -> dict[str, int] | None:
    """Read a tokenizer's token texts and ids.

    Args:
        directory: Folder of the model; None where there is none.

    Returns:
        Token text to id, added tokens included; None where the folder has no tokenizer.

    Raises:
        GradfixError: if the tokenizer's files can't be read.
    """
    if directory is None or not has_tokenizer(directory):
        return None
    file = directory / "tokenizer.json"
    try:
        if file.exists():
            from tokenizers import Tokenizer

            return dict(Tokenizer.from_file(str(file)).get_vocab(with_added_tokens=True))
        from transformers import AutoTokenizer

        return dict(AutoTokenizer.from_pretrained(str(directory), trust_remote_code=False).get_vocab())
    except Exception as error:  # tokenizers raises Exception itself
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if not file.exists():
            reason += "; install sentencepiece and protobuf, or save it once with its tokenizer.json"
        raise GradfixError(f"{directory}: the tokenizer can't be read: {reason}") from error


def has_tokenizer(directory: Path) -> bool:
    """Whether a folder holds a vocabulary.

    Args:
        directory: Of a model or an adapter.

    Returns:
        True if a file of a tokenizer is there.
    """
    return any((directory / name).is_file() for name in _WITH_TOKENS[:-1])


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
