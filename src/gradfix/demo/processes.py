"""Draws side by side: processes that compute with one thread each, as models this small gain nothing from more."""

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager

import torch


@contextmanager
def processes(jobs: int) -> Iterator[ProcessPoolExecutor]:
    """Open a pool of processes; what has not begun when an exception passes is not begun any more.

    Args:
        jobs: How many.

    Yields:
        The pool.
    """
    # Spawned, not forked: torch's threads don't survive a fork.
    spawning = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, spawning, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            yield pool
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


@contextmanager
def one_thread() -> Iterator[None]:
    """Let this process compute with one thread, too, for as long as the others do.

    Yields:
        Nothing.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
