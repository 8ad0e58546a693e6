"""Ranks as launchers start them: torchrun, accelerate launch and srun say in the environment who a process is."""

import os
import re
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from itertools import count
from typing import Any

from gradfix._version import __version__
from gradfix.errors import GradfixError
from gradfix.ranks.group import (
    ALONE,
    Alone,
    FailedElsewhereError,
    Group,
    RankFailedError,
    RankLostError,
    working_with,
)
from gradfix.ranks.watch import Watch

PATIENCE = timedelta(minutes=5)
"""Until all ranks have to be there: some import from slow disks."""

NO_LIMIT = timedelta(days=30)
"""Of one exchange: a rank may wait for another's work for as long as that lives, which the watch knows."""

PARTING = 10.0
"""Seconds that a rank waits at the end for the others to end, too."""


@dataclass(frozen=True)
class Place:
    """Who this process is among those that were started together.

    Attributes:
        rank: From 0.
        size: How many there are.
        local: Its number on this machine.
        address: Where the first rank, or the launcher, is met.
        port: There.
    """

    rank: int
    size: int
    local: int
    address: str
    port: int


def place(environment: Mapping[str, str] = os.environ) -> Place | None:
    """Read who this process is from what its launcher says.

    Args:
        environment: Variables of torchrun and accelerate (``RANK``, ``WORLD_SIZE``, ``LOCAL_RANK``, ``MASTER_ADDR``,
            ``MASTER_PORT``), or of a Slurm step (``SLURM_PROCID``, ``SLURM_STEP_NUM_TASKS`` …).

    Returns:
        The place; None for a process that was started alone.

    Raises:
        GradfixError: if they contradict each other.
    """
    if "RANK" in environment and "WORLD_SIZE" in environment:
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
        texts = [environment.get(name) for name in names]
        rank, size, local, port = (_number(names[i], texts[i]) for i in (0, 1, 2, 4))
        address = texts[3] or "127.0.0.1"
    elif environment.get("SLURM_STEP_NUM_TASKS", "1") != "1":
        rank, size, local = (
            _number(name, environment.get(name))
            for name in ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
        )
        address = environment.get("MASTER_ADDR") or first_host(environment.get("SLURM_STEP_NODELIST", ""))
        # Two jobs on one machine must not meet: the port follows from the job.
        job = _number("SLURM_JOB_ID", environment.get("SLURM_JOB_ID"))
        port = _number("MASTER_PORT", environment.get("MASTER_PORT")) or 20000 + job % 20000
    else:
        return None
    if size < 2:
        return None
    if not 0 <= rank < size:
        raise GradfixError(f"RANK {rank} is not below WORLD_SIZE {size}: start all ranks by one launcher")
    return Place(rank, size, local, address, port or 29500)


def first_host(nodes: str) -> str:
    """Give the first machine of a list as Slurm writes it.

    Args:
        nodes: Such as ``gpu[007-009,12],login1``.

    Returns:
        ``gpu007``.
    """
    found = re.match(r"([^\[,]+)(?:\[(\w+))?", nodes)
    return f"{found[1]}{found[2] or ''}" if found else "127.0.0.1"


def _number(name: str, text: str | None) -> int:
    if text is not None and not text.strip().isdigit():
        raise GradfixError(f"{name}={text!r:.40} in the environment: expected a whole number")
    return int(text) if text is not None else 0


@contextmanager
def distributed() -> Iterator[Alone]:
    """Share what is done inside of the block with the other ranks that a launcher started.

    Every rank has to enter it, and do the same: ``gf.transport``, ``gf.votes``, ``gf.evaluate`` and ``gf.count_votes``
    then give each rank the result that one process would come to. A process that was started alone works alone.

    Yields:
        The ranks: ``rank``, ``size``, and ``first`` for the one that should speak.
    """
    with joined("versions", {"gradfix": __version__}) as group:
        yield group


@contextmanager
def joined(what: str, facts: Mapping[str, Any]) -> Iterator[Alone]:
    """Join the ranks that a launcher started, if one did, for the length of a job.

    Args:
        what: The job, for messages.
        facts: What has to be the same on every rank before anything begins.

    Yields:
        The group.

    Raises:
        FailedElsewhereError: if another rank failed, which has said so.
        GradfixError: if the ranks don't come together; and whatever this rank fails by.
        KeyboardInterrupt: likewise.
    """
    here = place()
    if here is None:
        yield ALONE
        return
    with _group(here) as (group, watch), working_with(group):
        try:
            group.agree(what, dict(facts), "start the same command on every rank, with the same gradfix")
            yield group
            group.gather("the end", None)
        except BaseException as error:
            if isinstance(error, RankLostError):
                watch.missing()
            told = watch.failure or str(error) or type(error).__name__
            if not (watch.spoke or watch.report(told)):
                raise FailedElsewhereError(told) from error
            if isinstance(error, (RankFailedError, GradfixError)):
                raise GradfixError(f"rank {here.rank} of {here.size}: {told}") from error
            raise
        finally:
            watch.stop(PARTING)


_jobs = count()
"""Numbers the jobs of this process: in the store, each has its own entries."""


@cache
def _meeting_place(here: Place) -> Any:
    """Open the store in which ranks meet, once a process: who keeps it may not close it between two jobs."""
    import torch.distributed as dist

    # torchrun keeps it itself; otherwise the first rank does.
    keeps = here.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    return dist.TCPStore(  # type: ignore[attr-defined]
        here.address, here.port, here.size, keeps, PATIENCE, wait_for_workers=False
    )


@contextmanager
def _group(here: Place) -> Iterator[tuple[Group, Watch]]:
    """Open the process group, and the watch beside it."""
    import torch
    import torch.distributed as dist
    from torch.distributed.distributed_c10d import PrefixStore

    if torch.cuda.is_available():
        torch.cuda.set_device(here.local % torch.cuda.device_count())  # what --device cuda means here
    try:
        store = _meeting_place(here)
        prefix = f"gradfix/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{next(_jobs)}"
        ours = PrefixStore(prefix, store)
        name = f"rank {here.rank} (process {os.getpid()} on {socket.gethostname()})"
        ours.set(f"alive/{here.rank}", "0")
        ours.set(f"name/{here.rank}", name)
        keys = [f"name/{number}" for number in range(here.size)]
        ours.wait(keys, PATIENCE)
    except (dist.DistError, RuntimeError) as error:
        raise GradfixError(
            f"rank {here.rank}: not all of {here.size} ranks came to {here.address}:{here.port} within "
            f"{PATIENCE.seconds} s ({str(error).splitlines()[0]}); start all by one launcher, or unset RANK and "
            "WORLD_SIZE to run alone"
        ) from None
    names = [each.decode() for each in ours.multi_get(keys)]
    watch = Watch(PrefixStore(prefix, store.clone()), here.rank, names)
    watch.start()
    started = not dist.is_initialized()
    if started:
        dist.init_process_group("gloo", store=ours, rank=here.rank, world_size=here.size, timeout=NO_LIMIT)
    try:
        hosts = [each.rpartition(" on ")[2].rstrip(")") for each in names]
        yield Group(here.rank, here.size, hosts, watch.check), watch
    finally:
        if started and watch.failure is None:
            dist.destroy_process_group()
