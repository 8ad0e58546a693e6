"""All campaigns, and the table of what they found: ``python -m tests.campaigns [SEED] [SHARE] [CAMPAIGN …]``.

SEED makes them repeat; a SHARE below 1 runs as much of each that is drawn; campaigns can be named. Two run at a time.
"""

import multiprocessing
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from tests.campaigns.canaries import canaries
from tests.campaigns.ends import faults, kills, races
from tests.campaigns.handmade import handmade
from tests.campaigns.mutations import mutations
from tests.campaigns.numbers import numbers
from tests.campaigns.results import Result
from tests.campaigns.world import build

ALL = 10**6
PROCESSES = 2


class Campaign(NamedTuple):
    """What runs, and how much of it.

    Attributes:
        what: In the table.
        run: Given a world, a seed and how many cases.
        cases: In all.
        parts: Of equal size, each with a seed of its own, so that two processes end at the same time.
    """

    what: str
    run: Callable[[Path, int, int], Result]
    cases: int
    parts: int = 1


CAMPAIGNS = (
    Campaign("SIGKILL, SIGTERM, SIGINT at random moments: whole or absent, the same bytes again", kills, 220),
    Campaign("an error at each write, fsync, open, rename: one line, the earlier output stays", faults, 400),
    Campaign("NaN and ±Inf in each parameter of three models: refused by name", numbers, 500),
    Campaign("two commands on one output at once", races, 50 // 2),
    Campaign("files with code in them: none is run", canaries, ALL),
    Campaign("command lines with bad input: refused in one line, nothing written", handmade, ALL),
    Campaign("files of every kind, mutated: no traceback, crash, 10 s or 2 GB", mutations, 10_000, parts=20),
)


class _Part(NamedTuple):
    campaign: Campaign
    world: Path
    seed: int
    cases: int


def _parts(world: Path, seed: int, share: float, names: list[str]) -> Iterator[_Part]:
    for campaign in CAMPAIGNS:
        if not names or campaign.run.__name__ in names:
            count = max(1, round(campaign.cases * share / campaign.parts))
            yield from (_Part(campaign, world, seed + part, count) for part in range(campaign.parts))


def _run(part: _Part) -> Result:
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="gradfix-campaign-") as folder:
        root = Path(shutil.copytree(part.world, Path(folder) / "world"))
        result = part.campaign.run(root, part.seed, part.cases)
    result.seconds = time.monotonic() - started
    return result


def main() -> None:
    """Run them, and print the table as Markdown; exit status 1 if anything was wrong."""
    seed = int(sys.argv[1]) if len(sys.argv) > 1 else int(time.time())
    share = float(sys.argv[2]) if len(sys.argv) > 2 else 1.0
    started, found = time.monotonic(), False
    print("| campaign | tried | passed | slowest command | most memory | minutes of a core |")
    print("|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory(prefix="gradfix-campaigns-") as folder:
        parts = list(_parts(build(Path(folder) / "world"), seed, share, sys.argv[3:]))
        with multiprocessing.get_context("spawn").Pool(PROCESSES, maxtasksperchild=1) as pool:
            results = pool.imap(_run, parts)
            for campaign in dict.fromkeys(part.campaign for part in parts):
                whole: Result | None = None
                for _ in range(campaign.parts):
                    part = next(results)
                    for case, fault in part.faults:
                        print(f"{part.name}: {case}: {fault}", file=sys.stderr, flush=True)
                    whole = part if whole is None else whole + part
                    found = found or bool(part.faults)
                    print(f"{part.name}: {whole.tried} tried", file=sys.stderr, flush=True)
                assert whole is not None
                print(_row(campaign.what, whole), flush=True)
    minutes = (time.monotonic() - started) / 60
    again = f"{seed} {share:g} {' '.join(sys.argv[3:])}" if len(sys.argv) > 2 else str(seed)
    print(f"\n{minutes:.0f} minutes; repeat it with `python -m tests.campaigns {again.strip()}`.")
    sys.exit(found)


def _row(what: str, result: Result) -> str:
    return (
        f"| {what} | {result.tried:,} | {result.tried - len(result.faults):,} | {result.slowest:.1f} s "
        f"| {result.largest / 1e9:.2f} GB | {result.seconds / 60:.1f} |"
    )
