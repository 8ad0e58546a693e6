"""What ranks do in the tests: imported once by the server that they are forked from."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import matplotlib.pyplot  # noqa: F401 - takes long to import
import torch

from gradfix.cli import main
from gradfix.ranks import ranks
from gradfix.ranks.launch import joined
from tests import builders  # noqa: F401 - imports what commands import when they run


def command(*arguments: object) -> None:
    """One command line."""
    torch.set_num_threads(1)
    sys.argv = ["gradfix", *map(str, arguments)]
    main()


def commands(*several: tuple[object, ...]) -> None:
    """Commands one after the other, as a script would start them."""
    for arguments in several:
        try:
            command(*arguments)
        except SystemExit as end:
            if end.code:
                raise


def exchanged() -> None:
    """What each way of exchanging results promises."""
    with joined("exchange", {}) as group:
        rank, size = group.rank, group.size
        assert ranks() is group
        assert group.gather("squares", rank**2) == [other**2 for other in range(size)]
        assert group.map("cubes", lambda number: number**3, range(7)) == [number**3 for number in range(7)]
        assert group.once("first", lambda: f"from {rank}") == "from 0"
        for dtype, most in ((torch.int8, 100), (torch.int16, 30_000), (torch.int32, 2**30)):
            for shape in ((), (0,), (1,), (5, 3)):
                counts = torch.full(shape, (rank + 1) * most // 20, dtype=dtype)
                whole = group.add_up(counts)
                assert whole.dtype == dtype
                assert whole.shape == counts.shape
                assert (whole == sum((other + 1) * most // 20 for other in range(size))).all()
        value = torch.full((4, 3), float(rank))
        group.copy_from_first(value)
        assert not value.any()
        group.agree("things", {"one": 1}, "")
    assert ranks().size == 1


def at_odds(how: str) -> None:
    """Ranks of which the second one does something else."""
    with joined("try", {"seed": os.environ["RANK"] if how == "options" else 0}) as group:
        if how == "ways":
            group.gather("left" if group.first else "right", None)
        if group.rank == 1 and how == "error":
            raise ValueError("the second one's")
        if group.rank == 1 and how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        while how in ("error", "killed"):
            torch.ones(64, 64) @ torch.ones(64, 64)


def killed_at(point: str, rank: int, *arguments: Any) -> None:
    """A command, of which one rank is killed when it comes to an exchange of that name."""
    from gradfix.ranks.group import Group

    gather = Group.gather

    def dying(group: Group, what: str, value: Any) -> Any:
        if group.rank == rank and what == point:
            os.kill(os.getpid(), signal.SIGKILL)
        return gather(group, what, value)

    Group.gather = dying  # type: ignore[method-assign]
    command(*arguments)


def elsewhere(folders: list[Path], *arguments: object) -> None:
    """A command, with a folder to stand in for each rank."""
    os.chdir(folders[int(os.environ["RANK"])])
    command(*arguments)
