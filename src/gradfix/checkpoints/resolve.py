"""From what a person wrote to the weights meant: a local path, else a model on the Hub."""

from functools import partial
from pathlib import Path

from gradfix.checkpoints.hub import is_hub_id, locate_on_hub
from gradfix.checkpoints.locate import Located, locate_weights, open_weights
from gradfix.errors import GradfixError


def resolve(location: str, revision: str | None) -> Located:
    """Find the weights that a location names; a local path wins over a Hub id.

    Args:
        location: A path, or ``org/name``, with ``@revision`` or without.
        revision: Branch, tag or commit on the Hub; None for the default branch.

    Returns:
        The weights, not opened yet.

    Raises:
        GradfixError: If there are none, or a revision is given twice or for a local path.
    """
    path = Path(location)
    if path.exists():
        if revision is not None:
            raise GradfixError(
                f"{location}: revision {revision!r} was asked for, but this is a local path, which has "
                "none: drop the revision, or rename the local directory to mean the Hub"
            )
        found = locate_weights(path)
        return Located(found, location, partial(open_weights, found.weights))
    name, at, tagged = location.partition("@")
    if not is_hub_id(name) or (at and (revision is not None or not tagged)):
        raise GradfixError(f"{location}: no such file or directory: check the path")
    return locate_on_hub(name, tagged or revision)
