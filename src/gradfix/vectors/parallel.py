"""Blocks side by side: a pool whose threads compute by themselves, and results in order."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

T = TypeVar("T")
U = TypeVar("U")


@contextmanager
def workers() -> Iterator[ThreadPoolExecutor]:
    """Open a pool in which each thread computes blocks by itself.

    Blocks side by side use the cores better than each small operation spread over all of them: no operation waits
    for another thread, so a busy machine slows the work down in proportion and no more.

    Yields:
        The pool. torch's own threads are off meanwhile.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield pool
    finally:
        torch.set_num_threads(threads)


def in_order(
    pool: ThreadPoolExecutor, function: Callable[[T], U], items: Iterable[T], ahead: int = 8
) -> Iterator[U]:
    """Map a function over items in a pool, a few items ahead of the consumer and no more.

    Args:
        pool: The threads.
        function: What to compute.
        items: Of what.
        ahead: How many results may wait, so that memory stays bounded.

    Yields:
        Results in the order of the items.
    """
    waiting: deque[Future[U]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
