"""Models on the Hugging Face Hub: the weights of one format, and what describes them."""

import re
from collections.abc import Iterable
from pathlib import Path

from gradfix.checkpoints.locate import ADAPTER_WEIGHTS, INDEX_SUFFIX, WEIGHTS
from gradfix.errors import GradfixError

DESCRIPTIONS = ("*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken")
"""Configs, tokenizers, processors, templates; no code."""

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


def download(name: str, revision: str | None) -> Path:
    """Bring a model into the Hub's local cache, unless it is there.

    Only one format of weights is fetched, the one that would be opened. Without a connection the cache
    answers.

    Args:
        name: The id of the model.
        revision: Branch, tag or commit; None for the default branch.

    Returns:
        The snapshot's directory; its name is the commit.

    Raises:
        GradfixError: If there is no such model or revision, it is gated, or the Hub can't be reached and the
            cache doesn't have it.
    """
    import huggingface_hub
    from huggingface_hub import errors

    # the base of every error of the HTTP client, which the Hub's library has changed before
    http_error: type[Exception] = next(
        kind for kind in errors.HfHubHTTPError.__mro__ if kind.__name__ == "HTTPError"
    )
    at = f"{name} (revision {revision})" if revision else name
    try:
        found = huggingface_hub.HfApi().model_info(name, revision=revision)
        files = [sibling.rfilename for sibling in found.siblings or ()]
        patterns = [*DESCRIPTIONS, *weight_patterns(files)]
        return Path(huggingface_hub.snapshot_download(name, revision=found.sha, allow_patterns=patterns))
    except errors.GatedRepoError:
        reason = "is gated: accept its terms on its page, then log in with `hf auth login`"
    except errors.RepositoryNotFoundError:
        reason = "is neither a local path nor a model on the Hub that you may read: check the name, or log in"
    except errors.RevisionNotFoundError:
        reason = "has no such revision: check the branch, tag or commit"
    except (http_error, OSError, ValueError) as error:
        # offline, or the Hub is out of reach: what the cache has under this revision
        try:
            return Path(huggingface_hub.snapshot_download(name, revision=revision, local_files_only=True))
        except (http_error, OSError, ValueError):
            reason = (
                "is no local path and not in the Hub's cache, and the Hub can't be reached "
                f"({' '.join(str(error).split())[:120]}): connect, or give a local directory"
            )
    raise GradfixError(f"{at}: {reason}")


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
