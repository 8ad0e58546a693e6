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
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
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
    if recipe.processes is None:
        size = sum(value.nbytes for value in model.model.state_dict().values())
        if model.streams or size > SMALL:
            return 1
    return most_processes(recipe, rows, draws)


def most_processes(recipe: CompareRecipe, rows: Mapping[str, Rows], draws: int) -> int:
    """Choose how many processes may share the draws, whatever the model is.

    Args:
        recipe: The options.
        rows: Rows in memory, by option.
        draws: How many are to do.

    Returns:
        See :func:`processes_for`.
    """
    wanted = recipe.processes
    if wanted is None:
        wanted = (os.cpu_count() or 1) if recipe.device == "cpu" and draws >= FEWEST else 1
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


class Helpers:
    """Other processes, which import what they need while this one prepares; a context manager, and they end with it."""

    def __init__(self, recipe: CompareRecipe, rows: Mapping[str, Rows]) -> None:
        """Say what they may have to do.

        Args:
            recipe: The options.
            rows: Rows in memory, by option.
        """
        self._recipe, self._rows = recipe, rows
        self._others: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> "Helpers":
        self._stack = ExitStack()
        self._folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="gradfix-draws-")))
        self._stack.callback(torch.set_num_threads, torch.get_num_threads())
        self._stack.callback(self._end)
        draws = len(self._recipe.samples_per_class) * self._recipe.seeds
        count = most_processes(self._recipe, self._rows, draws)
        # Not forked, which torch's threads don't survive, nor spawned, which runs a script without a guard again.
        command = [sys.executable, "-m", "gradfix.transport.comparison.helper"]
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // count)),
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        }
        for _ in range(count - 1):
            process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            self._others.append(process)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def share(self, count: int, kept: KeptDraws) -> Shared:
        """Let them begin, and this process compute with as few threads as they.

        Args:
            count: How many processes, this one included; those beyond end.
            kept: The draws that are done.

        Returns:
            The claims, and a way to wait for the others.
        """
        self._end(count - 1)
        if not self._others:
            return Shared(Claims(None))
        claims = self._folder / "claims"
        claims.mkdir()
        file = kept.path or self._folder / "draws.jsonl"
        job = self._folder / "job.pickle"
        job.write_bytes(pickle.dumps((self._recipe, dict(self._rows), file, claims)))
        for process in self._others:
            assert process.stdin is not None
            with suppress(BrokenPipeError):  # one that ended claims nothing
                process.stdin.write(os.fsencode(job))
                process.stdin.close()
        torch.set_num_threads(max(1, torch.get_num_threads() // (1 + len(self._others))))
        return Shared(Claims(claims), self._others, file)

    def _end(self, but: int = 0) -> None:
        for process in self._others[but:]:
            process.kill()
            process.communicate()
        del self._others[but:]
