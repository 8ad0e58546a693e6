"""The draws of a comparison side by side, in processes of their own where the model is small.

A draw needs nothing of another one, and models this small gain nothing from more than one thread. Each process claims
the next draw that nobody has, computes it, and appends it to the file of draws that are done (:mod:`.kept`). The
process that was asked takes part, and reads what the others found. What was claimed by a process that ended early is
computed again.
"""

import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from gradfix.evaluation.binding import Rows
from gradfix.evaluation.target_model import TargetModel
from gradfix.plugins import is_plugin, lasting
from gradfix.progress import Progress
from gradfix.recipes import CompareRecipe
from gradfix.transport.comparison.kept import KeptDraws

SMALL = 500_000_000
"""Bytes of weights up to which each process may have a model of its own."""

FEWEST = 4
"""Draws from which several processes are worth their start, where nobody says how many."""

Draw = tuple[int, int]
"""Samples a class, and the seed."""


class Claims:
    """Who computes which draw: a file each, which one process alone can make.

    Args:
        folder: Where; None claims everything.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def take(self, draw: Draw) -> bool:
        """Claim a draw.

        Args:
            draw: Which.

        Returns:
            Whether nobody else has it.
        """
        if self.folder is None:
            return True
        try:
            (self.folder / f"{draw[0]}-{draw[1]}").touch(exist_ok=False)
        except FileExistsError:
            return False
        return True


def processes_for(recipe: CompareRecipe, model: TargetModel, rows: Mapping[str, Rows], draws: int) -> int:
    """Choose how many processes share the draws.

    Args:
        recipe: The options.
        model: The target.
        rows: Rows in memory, by option.
        draws: How many are to do.

    Returns:
        As many as were asked for; else one for each core where the model is small, computes on the CPU, and draws are
        not few. One where something exists in this process alone.
    """
    wanted = recipe.processes
    if wanted is None:
        size = sum(value.nbytes for value in model.model.state_dict().values())
        small = recipe.device == "cpu" and not model.streams and size <= SMALL and draws >= FEWEST
        wanted = (os.cpu_count() or 1) if small else 1
    return min(wanted, draws) if wanted > 1 and draws > 1 and _travels(recipe, rows) else 1


def _travels(recipe: CompareRecipe, rows: Mapping[str, Rows]) -> bool:
    """Whether another process can be told the same: functions that were registered exist here alone, rows may."""
    own = [*recipe.own_masks()]
    own += [recipe.align] if is_plugin("alignment", recipe.align) else []
    own += [recipe.task] if is_plugin("task", recipe.task) else []
    try:
        return all(map(lasting, own)) and b"__main__" not in pickle.dumps(dict(rows))
    except (pickle.PicklingError, TypeError, AttributeError):
        return False


@dataclass
class Shared:
    """Draws that several processes share.

    Attributes:
        claims: Who computes which.
        others: The other processes.
        file: Where they write what they found.
    """

    claims: Claims
    others: Sequence["subprocess.Popen[bytes]"] = ()
    file: Path | None = None

    def wait(self, kept: KeptDraws, draws: int, progress: Progress) -> None:
        """Wait until the other processes have ended, and take what they found.

        Args:
            kept: Takes it.
            draws: How many were to do.
            progress: Told the draws done.
        """
        while any(process.poll() is None for process in self.others):
            kept.read(self.file)
            progress("draws of other processes", min(len(kept), draws), draws, "draws")
            time.sleep(0.2)
        if self.file is not None:
            kept.read(self.file)


@contextmanager
def helpers(count: int, recipe: CompareRecipe, rows: Mapping[str, Rows], kept: KeptDraws) -> Iterator[Shared]:
    """Start the other processes, and let this one compute with as few threads as they.

    Args:
        count: How many processes, this one included.
        recipe: The options.
        rows: Rows in memory, by option.
        kept: The draws that are done.

    Yields:
        The claims, and a way to wait for the others, which end with the context.
    """
    if count == 1:
        yield Shared(Claims(None))
        return
    threads = torch.get_num_threads()
    each = max(1, threads // count)
    with tempfile.TemporaryDirectory(prefix="gradfix-draws-") as name:
        folder = Path(name)
        (folder / "claims").mkdir()
        file = kept.path or folder / "draws.jsonl"
        job = folder / "job.pickle"
        job.write_bytes(pickle.dumps((recipe, dict(rows), file, folder / "claims")))
        # Not forked, which torch's threads don't survive, nor spawned, which runs a script without a guard again.
        command = [sys.executable, "-m", "gradfix.transport.comparison.helper", str(job)]
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(each),
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        }
        others = [
            subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            for _ in range(count - 1)
        ]
        torch.set_num_threads(each)
        try:
            yield Shared(Claims(folder / "claims"), others, file)
        finally:
            torch.set_num_threads(threads)
            for process in others:
                process.kill()
                process.wait()
