"""All campaigns, and the table of what they found: ``python -m tests.campaigns [SEED] [SHARE]``.

SEED makes them repeat; a SHARE below 1 runs as much of each that is drawn.
"""

import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.campaigns.canaries import canaries
from tests.campaigns.ends import faults, kills, races
from tests.campaigns.handmade import handmade
from tests.campaigns.mutations import parallel
from tests.campaigns.numbers import numbers
from tests.campaigns.results import Result
from tests.campaigns.world import build

Campaign = Callable[[Path, int, int], Result]
ALL = 10**6
CAMPAIGNS: dict[str, tuple[Campaign, int]] = {
    "60 and more command lines with bad input: refused in one line, nothing written": (handmade, ALL),
    "files with code in them: none is run": (canaries, ALL),
    "NaN and ±Inf in each parameter of three models: refused by name": (numbers, 500),
    "SIGKILL, SIGTERM, SIGINT at random moments: whole or absent, the same bytes again": (kills, 220),
    "an error at each write, fsync, open, rename: one line, the earlier output stays": (faults, 400),
    "two commands on one output at once (25 pairs)": (races, 25),
}
MUTATIONS = 10_000
MUTATED = "files of every kind, mutated: no traceback, crash, 10 s or 2 GB"


def main() -> None:
    """Run them, and print the table as Markdown; exit status 1 if anything was wrong."""
    seed = int(sys.argv[1]) if len(sys.argv) > 1 else int(time.time())
    share = float(sys.argv[2]) if len(sys.argv) > 2 else 1.0
    results: list[Result] = []
    print("| campaign | tried | passed | slowest command | most memory | minutes |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="gradfix-campaigns-") as folder:
        world = build(Path(folder) / "pristine")
        for what, (campaign, count) in CAMPAIGNS.items():
            root = Path(shutil.copytree(world, Path(folder) / "world"))
            started = time.monotonic()
            results.append(campaign(root, seed, max(1, round(count * share))))
            _print_row(what, results[-1], started)
            shutil.rmtree(root)
    started = time.monotonic()
    results.append(parallel(seed, round(MUTATIONS * share)))
    _print_row(MUTATED, results[-1], started)
    print(f"\nRepeat it with `python -m tests.campaigns {seed}{f' {share:g}' if share < 1 else ''}`.")
    for result in results:
        for case, fault in result.faults:
            print(f"{result.name}: {case}: {fault}", file=sys.stderr)
    sys.exit(any(result.faults for result in results))


def _print_row(what: str, result: Result, started: float) -> None:
    minutes = (time.monotonic() - started) / 60
    print(
        f"| {what} | {result.tried} | {result.tried - len(result.faults)} | {result.slowest:.1f} s "
        f"| {result.largest / 1e9:.2f} GB | {minutes:.1f} |",
        flush=True,
    )


if __name__ == "__main__":
    main()
