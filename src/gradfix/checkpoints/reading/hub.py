"""Models on the Hugging Face Hub: what describes them at once, their weights when those are read."""

import re
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from gradfix.checkpoints.reading.index import read_weight_map
from gradfix.checkpoints.reading.locate import (
    ADAPTER_WEIGHTS,
    INDEX_SUFFIX,
    PICKLE_SUFFIXES,
    WEIGHTS,
    Found,
    Located,
    locate_weights,
    model_weights,
    open_weights,
)
from gradfix.checkpoints.reading.remote import open_remote
from gradfix.checkpoints.reading.remote_header import in_short
from gradfix.errors import GradfixError, network_errors

DESCRIPTIONS = (
    "*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken", "*.spm", "*.bpe", "*.vocab", "*.yaml", "*.md", "*.py",
    "*LICENSE*", "*NOTICE*", "[0-9]_*/*",
)  # fmt: skip
"""Configs, tokenizers, processors, templates, modules after the network, and code, which is copied and never run."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_FILE = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".json")


def is_hub_id(location: str) -> bool:
    """Whether a location may name a model on the Hub rather than a file.

    Args:
        location: ``name`` or ``org/name``.

    Returns:
        True if it has the form of an id and no suffix of a file with weights.
    """
    return _HUB_ID.fullmatch(location) is not None and not location.endswith(_FILE)


def locate_on_hub(name: str, revision: str | None) -> Located:
    """Bring what describes a model into the Hub's local cache, unless it is there, and find its weights.

    Weights in safetensors stay on the Hub until they are read. A file of ``torch.save`` has no header that
    could be read apart, and an adapter is small: those are fetched. Of several formats the one that would be
    opened counts. Without a connection the cache answers.

    Args:
        name: The id of the model.
        revision: Branch, tag or commit; None for the default branch.

    Returns:
        The model.

    Raises:
        GradfixError: If there is no such model or revision, it is gated, or the Hub can't be reached and the
            cache doesn't have it.
    """
    import huggingface_hub
    from huggingface_hub import errors

    at = f"{name} (revision {revision})" if revision else name
    directory: Path | None = None
    try:
        # by the revision as it was named, so that the cache remembers its commit for a time without connection
        directory = Path(
            huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=list(DESCRIPTIONS))
        )
        found = huggingface_hub.HfApi().model_info(name, revision=directory.name)
        files = {sibling.rfilename for sibling in found.siblings or ()}
        weights = model_weights(directory, lambda path: path.name in files)
        if weights is None or weights.name not in (WEIGHTS[0], WEIGHTS[0] + INDEX_SUFFIX):
            huggingface_hub.snapshot_download(
                name, revision=directory.name, allow_patterns=weight_patterns(files)
            )
            return _here(name, directory)
        return Located(
            Found(weights, directory),
            f"{name}@{directory.name}",
            partial(open_remote, name, weights, directory, files),
        )
    except errors.GatedRepoError:
        reason = "is gated: accept its terms on its page, then log in with `hf auth login`"
    except errors.RepositoryNotFoundError:
        reason = "is neither a local path nor a model on the Hub that you may read: check the name, or log in"
    except errors.RevisionNotFoundError:
        reason = "has no such revision: check the branch, tag or commit"
    except network_errors() as error:
        # offline, or the Hub is out of reach: what the cache has under this revision
        if directory is not None and _is_complete(directory):
            return _here(name, directory)
        had = "only in part" if directory is not None else "not"
        reason = (
            f"is no local path and {had} in the Hub's cache, and the Hub can't be reached "
            f"({in_short(error)}): connect, or give a local directory"
        )
    raise GradfixError(f"{at}: {reason}")


def _here(name: str, directory: Path) -> Located:
    found = locate_weights(directory)
    return Located(found, f"{name}@{directory.name}", partial(open_weights, found.weights))


def _is_complete(directory: Path) -> bool:
    """Whether a snapshot has its weights, and not only what describes them."""
    if not any(path.suffix in (".safetensors", *PICKLE_SUFFIXES) for path in directory.glob("*")):
        return False
    weights = locate_weights(directory).weights
    if not weights.name.endswith(INDEX_SUFFIX):
        return True
    return all((weights.parent / file).exists() for file in read_weight_map(weights).values())


def weight_patterns(files: Iterable[str]) -> list[str]:
    """Choose the one format of weights to fetch, by the order in which a directory's weights are looked for.

    Args:
        files: Paths of all files of the model.

    Returns:
        Patterns of that format's files; empty if there are no weights.
    """
    present = set(files)
    for weights in (*WEIGHTS, *ADAPTER_WEIGHTS):
        if weights + INDEX_SUFFIX in present:
            stem, suffix = weights.rsplit(".", 1)
            return [weights, f"{stem}-*.{suffix}"]
        if weights in present:
            return [weights]
    return []
