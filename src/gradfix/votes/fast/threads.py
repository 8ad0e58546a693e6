"""Vote work done by threads of its own, while the backward pass goes on.

A block of gradients is a handful of operations that each fit a core's cache. Were each of them spread over all of
torch's threads, these would mostly wait for one another; so each worker takes a block and computes it by itself.
The backward pass, which then only computes gradients of activations, costs about as much as the votes: it keeps
half of the threads, and lends them to the votes whenever it has to wait.
"""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from types import TracebackType

import torch

Job = Callable[[], None]

WAITING_BYTES = 32 * 2**20
"""How much memory waiting jobs may hold on to before others are added: the inputs and output gradients of layers that
were passed already."""


class Crew:
    """Does jobs that may run in any order and at the same time; with one thread, or on a GPU, at once.

    Jobs are accepted inside a ``with`` block. Torch's number of threads is lower there, and restored by its end,
    by which no worker is left.
    """

    def __init__(self, device: torch.device) -> None:
        """Prepare.

        Args:
            device: Where the jobs compute.
        """
        self._on_cpu = device.type == "cpu"
        self._threads = self._steady = 1
        self._pool: ThreadPoolExecutor | None = None
        self._shifts: list[Future[None]] = []
        self._changed = threading.Condition()
        self._waiting: deque[tuple[Job, int]] = deque()
        self._held = self._working = self._wanted = 0

    def __enter__(self) -> "Crew":
        self._threads = torch.get_num_threads()
        if self._on_cpu and self._threads > 1:
            # The number of threads is each thread's own; a new thread has the one that was set last.
            self._pool = ThreadPoolExecutor(
                self._threads, "gradfix-votes", initializer=torch.set_num_threads, initargs=(1,)
            )
            self._steady = self._threads - self._threads // 2
            torch.set_num_threads(self._threads // 2)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._waiting.clear()
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None
            torch.set_num_threads(self._threads)
        self._shifts, self._held = [], 0

    def add(self, jobs: Sequence[Job], held: int) -> None:
        """Hand jobs to the workers, once those before hold on to little enough.

        Args:
            jobs: No two write to one place.
            held: Bytes that they keep from being freed.
        """
        if self._pool is None:
            for job in jobs:
                job()
            return
        share = held // max(1, len(jobs))
        with self._changed:
            if self._held >= WAITING_BYTES:
                self._call(self._threads)
                self._changed.wait_for(lambda: self._held < WAITING_BYTES or not self._working)
            self._waiting.extend((job, share) for job in jobs)
            self._held += share * len(jobs)
            self._call(self._steady)

    def finish(self) -> None:
        """Wait until nothing is left to do. What a job raised is raised here, once the others have stopped."""
        if self._pool is None:
            return
        with self._changed:
            self._call(self._threads)
        shifts, self._shifts = self._shifts, []
        wait(shifts)
        for shift in shifts:
            shift.result()

    def _call(self, workers: int) -> None:
        """See to it that so many work, if there is work."""
        assert self._pool is not None
        self._wanted = workers
        # one that failed stays, to be noticed by finish()
        self._shifts = [each for each in self._shifts if not each.done() or each.exception() is not None]
        for _ in range(min(workers - self._working, len(self._waiting))):
            self._working += 1
            self._shifts.append(self._pool.submit(self._work))

    @torch.no_grad()
    def _work(self) -> None:
        """Do jobs until none is left, or more work than are wanted; an error leaves none to the others."""
        share = 0
        while True:
            with self._changed:
                self._held -= share
                leaving = not self._waiting or self._working > self._wanted
                self._working -= leaving
                self._changed.notify_all()
                if leaving:
                    return
                job, share = self._waiting.popleft()
            try:
                job()
            except BaseException:
                with self._changed:
                    self._waiting.clear()
                    self._working -= 1
                    self._changed.notify_all()
                raise
            del job  # what it holds goes before the next one's share is taken back
