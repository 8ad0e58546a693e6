"""Whether the ranks of a job see the same inputs and one file system: asked before anything long begins."""

import os
import secrets
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from gradfix.checkpoints import Checkpoint
from gradfix.checkpoints.files import explain_os_errors, resolve_output
from gradfix.checkpoints.fingerprint import combined_fingerprint, fingerprints
from gradfix.errors import GradfixError
from gradfix.evaluation.binding import Rows
from gradfix.ranks import ranks
from gradfix.tasks.data import row_hash
from gradfix.transport.checks import Findings

LOOKED_AT = 32
"""Rows of each data set that are compared, beside how many there are."""

SECONDS = 10.0
"""That a file may take to be seen by other machines: network file systems keep lists of directories for a while."""


def see_the_same(data: Mapping[str, Rows], models: Mapping[str, Checkpoint] = {}) -> None:
    """Refuse ranks that see other rows or weights.

    Args:
        data: Rows by what they are called.
        models: Checkpoints likewise; a few values of each tensor are compared.

    Raises:
        GradfixError: naming what differs, and on which rank.
    """
    if ranks().size == 1:
        return
    seen = {
        name: [model.location, combined_fingerprint(fingerprints(model))] for name, model in models.items()
    }
    for name, rows in data.items():
        places = [number * len(rows) // LOOKED_AT for number in range(LOOKED_AT)] if len(rows) else []
        prints = {f"{place}": row_hash(rows[place]) for place in places}
        seen[name] = [f"{len(rows)} rows", combined_fingerprint(prints)]
    ranks().agree("inputs", seen, "let every rank read the same files")


def require_one_file_system(output: Path) -> None:
    """Refuse ranks that don't see what the others write.

    Args:
        output: Where the result will go.

    Raises:
        GradfixError: naming the rank that does not see a file of the first one.
    """
    group = ranks()
    if group.size == 1:
        return
    place = resolve_output(Path(output))
    token = group.gather("a file that all should see", secrets.token_hex(4))[0]
    probe = place.with_name(f".{place.name}.gradfix-probe-{token}")
    try:
        if group.first:
            with explain_os_errors(probe, "choose an output in a directory you may write to"):
                probe.write_text(probe.name)
        seen = group.gather("who sees it", _appears(probe))
    finally:
        with suppress(OSError):  # by whoever is left: the first rank may have been killed
            probe.unlink()
    blind = [str(number) for number, sees in enumerate(seen) if not sees]
    if blind:
        raise GradfixError(
            f"{place.parent}: what rank 0 writes there is not seen by rank {', '.join(blind)}: give an output on a "
            "file system that all machines share; without one, run `gradfix votes` on each with samples of its own, "
            "then `gradfix merge-votes` and `gradfix apply`"
        )


def _appears(path: Path) -> bool:
    end = time.monotonic() + SECONDS
    while not path.exists():
        if time.monotonic() > end:
            return False
        os.listdir(path.parent)  # makes some network file systems look again
        time.sleep(0.1)
    return True


def note_idle(samples: int, batch_size: int, found: Findings) -> None:
    """Say once that some ranks have no samples to count.

    Args:
        samples: How many vote.
        batch_size: Samples a pass: what is shared is whole batches, so that the result does not depend on the ranks.
        found: Told.
    """
    batches = -(-samples // batch_size)
    if (size := ranks().size) > batches:
        remedy = f"; --batch-size {max(1, samples // size)} gives each some" if samples >= size else ""
        found.add(
            "note",
            f"{size - batches} of {size} ranks have nothing to count: {samples} samples make {batches} "
            f"{'batch' if batches == 1 else 'batches'} of at most {batch_size}{remedy}",
        )
