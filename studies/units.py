"""The units of work that all studies are made of: one draw of one experiment, measured once and kept as JSON."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from gradfix.checkpoints.files import replace_file
from gradfix.demo.bench import PAIRS
from gradfix.demo.pair import provenance

FORMAT = 1
Record = dict[str, Any]


@dataclass(frozen=True)
class Unit:
    """One draw of one experiment. Studies share units: the same draw is measured once.

    Attributes:
        experiment: A key of :data:`studies.experiments.EXPERIMENTS`.
        pair: A key of :data:`gradfix.demo.bench.PAIRS`.
        task: The task, or tasks joined by ``+``.
        budget: Samples a class; 0 where the experiment has its own counts.
        draw: Number of the draw, and seed of all that is random in it.
        test: Test images of each task.
    """

    experiment: str
    pair: str
    task: str
    budget: int
    draw: int
    test: int

    @property
    def group(self) -> tuple[str, str, str, int, int]:
        """What several draws have in common."""
        return self.experiment, self.pair, self.task, self.budget, self.test

    def path(self, folder: Path) -> Path:
        """Tell where the unit's records are kept.

        Args:
            folder: Of all units.

        Returns:
            A path that says what is in it.
        """
        pair = self.pair.replace("→", "-to-")
        return folder / (
            f"{self.experiment}_{pair}_{self.task}_{self.budget}-a-class_{self.test}-test_draw-{self.draw}.json"
        )


@cache
def identity() -> str:
    """Tell which checkpoints the numbers are of.

    Returns:
        Twelve hexadecimal digits that change with any of :func:`studied`.
    """
    return hashlib.sha256(json.dumps(studied(), sort_keys=True).encode()).hexdigest()[:12]


def studied() -> dict[str, str]:
    """List the stored checkpoints that the studies use.

    Returns:
        SHA-256 by name, of the bases of :data:`PAIRS` and what was tuned from them.
    """
    bases = {name for pair in PAIRS.values() for name in pair}
    return {
        name: entry["sha256"]
        for name, entry in provenance()["checkpoints"].items()
        if name in bases or entry["base"] in bases
    }


def write_unit(unit: Unit, folder: Path, records: Sequence[Record], seconds: float) -> None:
    """Keep what was measured; the file appears whole.

    Args:
        unit: The unit.
        folder: Of all units; it exists.
        records: What its experiment gave.
        seconds: Wall time.
    """
    content = {
        "format": FORMAT,
        "checkpoints": identity(),
        "unit": asdict(unit),
        "seconds": seconds,
        "records": list(records),
    }
    replace_file(unit.path(folder), (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())


def read_unit(unit: Unit, folder: Path) -> list[Record] | None:
    """Read a finished unit.

    Args:
        unit: The unit.
        folder: Of all units.

    Returns:
        Its records; None if there are none yet, or they are of other checkpoints or another format.
    """
    try:
        content = json.loads(unit.path(folder).read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    if (content.get("format"), content.get("checkpoints")) != (FORMAT, identity()):
        return None
    records: list[Record] = content["records"]
    return records


def collect(units: Iterable[Unit], folder: Path, draws: int) -> list[Record]:
    """Read all units of which every draw is finished: a table shows whole cells only.

    Args:
        units: The units wanted.
        folder: Of all units.
        draws: How many draws make a cell whole.

    Returns:
        Records, each with what its unit says: experiment, pair, task, budget, draw.
    """
    groups: dict[tuple[str, str, str, int, int], list[Record]] = {}
    finished: dict[tuple[str, str, str, int, int], int] = {}
    for unit in units:
        records = read_unit(unit, folder)
        if records is not None:
            finished[unit.group] = finished.get(unit.group, 0) + 1
            groups.setdefault(unit.group, []).extend({**asdict(unit), **record} for record in records)
    return [record for group, records in groups.items() if finished[group] == draws for record in records]
