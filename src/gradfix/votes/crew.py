"""Vote work set aside while the backward pass goes on, and done by threads side by side.

A block of gradients is a handful of operations that each fit a core's cache. Were each of them spread over all of
torch's threads, these would mostly wait for one another; so each worker takes a block and computes it by itself.
"""

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from types import TracebackType

import torch

Job = Callable[[], None]

WAITING_BYTES = 32 * 2**20
"""How much memory the work set aside may hold on to: the inputs and output gradients of layers passed already."""


class Crew:
    """Does jobs that may run in any order and at the same time; with one thread, or on a GPU, at once.

    Attributes:
        threads: How many work side by side.
    """

    def __init__(self, device: torch.device) -> None:
        """Hire as many workers as torch has threads.

        Args:
            device: Where the jobs compute.
        """
        self.threads = torch.get_num_threads() if device.type == "cpu" else 1
        self._pool: ThreadPoolExecutor | None = None
        self._waiting: deque[Job] = deque()
        self._bytes = 0

    def __enter__(self) -> "Crew":
        if self.threads > 1:
            # The number of threads is each thread's own, but new threads take the one that was set last.
            self._pool = ThreadPoolExecutor(
                self.threads, "gradfix-votes", initializer=torch.set_num_threads, initargs=(1,)
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._waiting.clear()
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None
            torch.set_num_threads(self.threads)

    def add(self, jobs: Sequence[Job], held: int) -> None:
        """Set jobs aside, and do all that wait once they hold much memory.

        Args:
            jobs: No two write to one place.
            held: Bytes that they keep from being freed.
        """
        if self._pool is None:
            for job in jobs:
                job()
            return
        self._waiting.extend(jobs)
        self._bytes += held
        if self._bytes >= WAITING_BYTES:
            self.finish()

    def finish(self) -> None:
        """Do all that waits. What a job raises is raised here, after the other workers have stopped."""
        jobs, self._waiting, self._bytes = self._waiting, deque(), 0
        if self._pool is None or not jobs:
            return
        shifts = [self._pool.submit(_work, jobs) for _ in range(min(self.threads, len(jobs)))]
        wait(shifts)
        for shift in shifts:
            shift.result()


@torch.no_grad()
def _work(jobs: deque[Job]) -> None:
    """Do jobs until none is left; an error leaves none to the others."""
    while True:
        try:
            job = jobs.popleft()
        except IndexError:
            return
        try:
            job()
        except BaseException:
            jobs.clear()
            raise
