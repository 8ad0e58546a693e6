"""Ranks as a launcher starts them, forked from a server that has imported everything once."""

import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

PATIENCE = 300.0
_forking = multiprocessing.get_context("forkserver")
_forking.set_forkserver_preload(["tests.ranks.jobs"])


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def started(
    size: int,
    job: Callable[..., Any],
    *arguments: Any,
    logs: Path,
    environment: Mapping[str, str] | None = None,
) -> list[Any]:
    """Start ranks; each writes what it says to ``<logs>/<rank>.txt``."""
    logs.mkdir(exist_ok=True)
    shared = {
        "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), **(environment or {})
    }  # fmt: skip
    processes = []
    for rank in range(size):
        own = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        processes.append(_forking.Process(target=_rank, args=(own, logs / f"{rank}.txt", job, arguments)))
        processes[-1].start()
    return processes


def ended(processes: list[Any], patience: float = PATIENCE) -> list[int | None]:
    """Wait for ranks, and give their exit codes; None for one that had to be killed."""
    end = time.monotonic() + patience
    for process in processes:
        process.join(max(0.0, end - time.monotonic()))
    codes = [process.exitcode for process in processes]
    for process in processes:
        with suppress(ValueError):
            process.kill()
            process.join()
    return codes


def together(size: int, job: Callable[..., Any], *arguments: Any, logs: Path, **options: Any) -> None:
    codes = ended(started(size, job, *arguments, logs=logs, **options))
    said = "\n".join(path.read_text() for path in sorted(logs.iterdir()))
    assert codes == [0] * size, f"{codes}: {said}"


def _rank(own: Mapping[str, str], log: Path, job: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    os.environ.update(own)
    file = log.open("w", buffering=1)  # as long as the process lives: its last words are a traceback
    os.dup2(file.fileno(), 1)
    os.dup2(file.fileno(), 2)
    sys.stdout = sys.stderr = file
    job(*arguments)
