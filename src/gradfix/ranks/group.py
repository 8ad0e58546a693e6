"""The ranks of a job: who does what, and the few ways in which they exchange results.

Every rank runs the same code on the same inputs. What takes long is shared by numbers (batch 7 is done by rank
7 mod W), and what comes of it is brought to every rank in the order of the numbers. So each rank goes on with the same
values, and decides the same. What the shared part is cut into never depends on how many ranks there are.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from gradfix.errors import GradfixError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
U = TypeVar("U")


class RankFailedError(BaseException):
    """Another rank has failed, or this one is to end: nobody but who started the ranks catches it."""


class RankLostError(RankFailedError):
    """The connection to another rank broke; which one and why is not known yet."""


class FailedElsewhereError(GradfixError):
    """Another rank has failed, and has said why: this one has nothing to add."""


class Alone:
    """One process, which does everything itself.

    Attributes:
        rank: Its number, from 0.
        size: W, how many there are.
        sent: Bytes that this rank sent to others.
    """

    rank = 0
    size = 1
    sent = 0

    @property
    def first(self) -> bool:
        """Whether this rank is the one that speaks and commits."""
        return self.rank == 0

    @property
    def on_host(self) -> int:
        """How many ranks share this machine, and its memory."""
        return 1

    def mine(self, number: int) -> bool:
        """Tell whether a numbered piece of work is this rank's.

        Args:
            number: Of the piece, the same on every rank.

        Returns:
            Whether to do it.
        """
        return number % self.size == self.rank

    def gather(self, what: str, value: T) -> list[T]:
        """Bring a value of each rank to every rank.

        Args:
            what: What it is, the same on every rank.
            value: Anything that can be pickled.

        Returns:
            The values in the order of the ranks.
        """
        return [value]

    def in_order(self, what: str, found: Sequence[T], count: int) -> list[T]:
        """Bring what the ranks made of their numbers to every rank.

        Args:
            what: What it is, the same on every rank.
            found: This rank's results, in the order of its numbers.
            count: How many numbers there are.

        Returns:
            All results, in the order of the numbers.
        """
        parts = self.gather(what, list(found))
        return [parts[number % self.size][number // self.size] for number in range(count)]

    def map(self, what: str, function: Callable[[T], U], items: Iterable[T]) -> list[U]:
        """Apply a function to items, of which each rank takes some.

        Args:
            what: What comes of it, the same on every rank.
            function: Its results can be pickled.
            items: The same on every rank.

        Returns:
            All results, in the order of the items.
        """
        numbered = list(enumerate(items))
        found = [function(item) for number, item in numbered if self.mine(number)]
        return self.in_order(what, found, len(numbered))

    def once(self, what: str, job: Callable[[], T]) -> T:
        """Do something on the first rank, and tell the others what came of it.

        Args:
            what: What it is, the same on every rank.
            job: Its result can be pickled.

        Returns:
            The result, on every rank.
        """
        return self.gather(what, job() if self.first else None)[0]  # type: ignore[return-value]

    def add_up(self, counts: "Tensor") -> "Tensor":
        """Add up whole numbers over the ranks.

        Args:
            counts: Of the same shape and dtype on every rank, on the CPU; wide enough for the sum.

        Returns:
            The sum.
        """
        return counts

    def copy_from_first(self, value: "Tensor") -> None:
        """Replace a tensor by the first rank's.

        Args:
            value: Contiguous, on the CPU, of the same shape and dtype on every rank; changed in place.
        """

    def agree(self, what: str, facts: dict[str, Any], remedy: str) -> None:
        """Refuse to go on where ranks see different things.

        Args:
            what: What is compared.
            facts: This rank's, by name; values can be compared and shown.
            remedy: What to do about a difference.

        Raises:
            GradfixError: naming the first difference.
        """
        first, *others = self.gather(what, facts)
        for number, other in enumerate(others, 1):
            for name in {**first, **other}:
                if first.get(name) != other.get(name):
                    raise GradfixError(
                        f"{what}: {name}: rank {number} has {other.get(name)!r:.120}, rank 0 has "
                        f"{first.get(name)!r:.120}; {remedy}"
                    )


ALONE = Alone()
_current: Alone = ALONE


def ranks() -> Alone:
    """Give the ranks that this process works with.

    Returns:
        The group; one that is :class:`Alone` unless ranks were joined.
    """
    return _current


@contextmanager
def working_with(group: Alone) -> Iterator[None]:
    """Let this process work with others for a while.

    Args:
        group: They.

    Yields:
        Nothing.
    """
    global _current
    before, _current = _current, group
    try:
        yield
    finally:
        _current = before


class Group(Alone):
    """Several processes, by ``torch.distributed`` on gloo.

    Everything that is exchanged lies in the memory of the CPU, also where models compute on GPUs: counts and losses are
    kept there anyway.
    """

    def __init__(self, rank: int, size: int, hosts: Sequence[str], check: Callable[[], None]) -> None:
        """Take part in a process group that is open.

        Args:
            rank: This one.
            size: W.
            hosts: The machine of each rank.
            check: Raises where another rank has failed; called while waiting.
        """
        self.rank, self.size, self.sent = rank, size, 0
        self._hosts, self._check = hosts, check

    @property
    def on_host(self) -> int:
        """How many ranks share this machine, and its memory."""
        return list(self._hosts).count(self._hosts[self.rank])

    def gather(self, what: str, value: T) -> list[T]:
        """Bring a value of each rank to every rank; see :meth:`Alone.gather`."""
        import pickle

        import torch

        # What it is goes along: ranks that have gone different ways must not take one thing for another.
        content = torch.frombuffer(bytearray(pickle.dumps((what, value))), dtype=torch.uint8)
        lengths = [int(length) for length in self._all(torch.tensor([len(content)]))]
        padded = torch.zeros(max(lengths), dtype=torch.uint8)
        padded[: len(content)] = content
        found = [
            pickle.loads(part[:length].numpy().tobytes())
            for part, length in zip(self._all(padded), lengths, strict=True)
        ]
        for number, (theirs, _) in enumerate(found):
            if theirs != what:
                raise GradfixError(
                    f"ranks went different ways: rank {self.rank} is at {what!r}, rank {number} at {theirs!r}; start "
                    "again, and report it if that happens twice"
                )
        return [each for _, each in found]

    def add_up(self, counts: "Tensor") -> "Tensor":
        """Add up whole numbers over the ranks: each sums one part for all, as gloo has no sum of 16-bit numbers."""
        import torch
        import torch.distributed as dist

        flat = counts.reshape(-1)
        step = -(-flat.numel() // self.size)
        sent = torch.zeros(self.size * step, dtype=counts.dtype)
        sent[: flat.numel()] = flat
        received = torch.empty_like(sent)
        self._wait(dist.all_to_all_single(received.view(torch.uint8), sent.view(torch.uint8), async_op=True))
        self.sent += (self.size - 1) * step * counts.itemsize
        sums = received.view(self.size, step).sum(0, dtype=counts.dtype)
        whole = torch.cat([part.view(counts.dtype) for part in self._all(sums.view(torch.uint8))])
        return whole[: flat.numel()].view(counts.shape)

    def copy_from_first(self, value: "Tensor") -> None:
        """Replace a tensor by the first rank's."""
        import torch
        import torch.distributed as dist

        self._wait(dist.broadcast(value.view(-1).view(torch.uint8), src=0, async_op=True))
        self.sent += value.nbytes if self.first else 0

    def _all(self, mine: "Tensor") -> "list[Tensor]":
        import torch
        import torch.distributed as dist

        found = [torch.empty_like(mine) for _ in range(self.size)]
        self._wait(dist.all_gather(found, mine, async_op=True))
        self.sent += (self.size - 1) * mine.nbytes
        return found

    def _wait(self, work: Any) -> None:
        """Wait for others, and end where one of them has."""
        import time

        pause = 1e-5
        while not work.is_completed():
            self._check()
            time.sleep(pause)
            pause = min(2 * pause, 0.005)
        try:
            work.wait()
        except RuntimeError as error:
            raise RankLostError(str(error).splitlines()[0]) from error
