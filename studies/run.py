"""Measure units: what is finished is skipped, several processes share the rest, and the time is told beforehand."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import as_completed
from pathlib import Path

from gradfix.demo.processes import one_thread, processes
from gradfix.progress import Progress, silent
from studies.experiments import EXPERIMENTS
from studies.plan import cost
from studies.units import Unit, read_unit, write_unit


def run(
    units: Sequence[Unit],
    folder: Path,
    *,
    jobs: int = 1,
    progress: Progress = silent,
    say: Callable[[str], None] = lambda message: None,
) -> int:
    """Measure the units that are not finished yet.

    Args:
        units: All that are wanted, in the order in which to measure them.
        folder: Where their records are; made if it does not exist.
        jobs: Processes.
        progress: Told the units finished.
        say: Told the expected time, once a first unit is measured.

    Returns:
        How many units were measured; the others were there already.
    """
    folder.mkdir(parents=True, exist_ok=True)
    missing = [unit for unit in units if read_unit(unit, folder) is None]
    done = len(units) - len(missing)
    progress("measuring", done, len(units), "units")
    if not missing:
        return 0
    first = sorted(missing, key=cost)[len(missing) // 2]  # neither the cheapest nor the dearest
    started = time.perf_counter()
    measure(first, folder)
    seconds = time.perf_counter() - started
    rest = [unit for unit in missing if unit != first]
    expected = seconds / cost(first) * sum(map(cost, rest)) / max(1, min(jobs, len(rest)))
    say(
        f"{done} of {len(units)} units were finished; the first of {len(missing)} took {seconds:.0f} s, "
        f"so the rest will take about {_minutes(expected)} with {jobs} process{'es' if jobs > 1 else ''}"
    )
    done += 1
    progress("measuring", done, len(units), "units")
    if jobs == 1:
        for unit in rest:
            measure(unit, folder)
            done += 1
            progress("measuring", done, len(units), "units")
        return len(missing)
    with processes(jobs) as pool:
        for future in as_completed([pool.submit(measure, unit, folder) for unit in rest]):
            future.result()
            done += 1
            progress("measuring", done, len(units), "units")
    return len(missing)


def measure(unit: Unit, folder: Path) -> None:
    """Measure one unit and keep its records.

    Args:
        unit: The unit.
        folder: Where to.
    """
    started = time.perf_counter()
    with one_thread():
        records = EXPERIMENTS[unit.experiment](unit)
    write_unit(unit, folder, records, time.perf_counter() - started)


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} minutes"
