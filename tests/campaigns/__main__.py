"""All campaigns, and the table of what they found: ``python -m tests.campaigns [SEED] [SHARE]``.

SEED makes them repeat; a SHARE below 1 runs as much of each.
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
CAMPAIGNS: dict[str, tuple[Campaign, int]] = {
    "60 and more command lines with bad input: refused in one line, nothing written": (handmade, 80),
    "files with code in them: none is run": (canaries, 25),
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
    rows: list[tuple[str, Result, float]] = []
    with tempfile.TemporaryDirectory(prefix="gradfix-campaigns-") as folder:
        world = build(Path(folder) / "pristine")
        for what, (campaign, count) in CAMPAIGNS.items():
            root = Path(shutil.copytree(world, Path(folder) / "world"))
            started = time.monotonic()
            rows.append(
                (what, campaign(root, seed, max(1, round(count * share))), time.monotonic() - started)
            )
            shutil.rmtree(root)
    started = time.monotonic()
    rows.insert(0, (MUTATED, parallel(seed, round(MUTATIONS * share)), time.monotonic() - started))
    print("| campaign | tried | passed | slowest command | most memory | minutes |")
    print("|---|---|---|---|---|---|")
    for what, result, seconds in rows:
        print(
            f"| {what} | {result.tried} | {result.tried - len(result.faults)} | {result.slowest:.1f} s "
            f"| {result.largest / 1e9:.2f} GB | {seconds / 60:.1f} |"
        )
    print(f"\nRepeat it with `python -m tests.campaigns {seed}`.")
    for _, result, _ in rows:
        for case, fault in result.faults:
            print(f"{result.name}: {case}: {fault}", file=sys.stderr)
    sys.exit(any(result.faults for _, result, _ in rows))


if __name__ == "__main__":
    main()
