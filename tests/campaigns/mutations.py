"""Thousands of broken files of every kind: each must be read as well, or be refused in plain words."""

import json
import multiprocessing
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests.campaigns.grammar import as_json, as_safetensors, as_yaml, changed, damaged, safetensors_parts
from tests.campaigns.runner import Outcome, Runner
from tests.campaigns.world import SUBJECTS, Subject, build


@dataclass(frozen=True)
class Case:
    """A broken file and the command that meets it."""

    subject: Subject
    content: bytes
    command: str


@st.composite
def cases(draw: st.DrawFn, root: Path) -> Case:
    """Draw a case.

    Args:
        draw: Given by hypothesis.
        root: The well-formed world.

    Returns:
        The case.
    """
    subject = draw(st.sampled_from(SUBJECTS))
    content = (root / subject.path).read_bytes()
    command = draw(st.sampled_from(subject.commands))
    if subject.kind == "bytes" or draw(st.integers(0, 4)) == 0:
        return Case(subject, draw(damaged(content)), command)
    if subject.kind == "json":
        return Case(subject, as_json(draw(changed(json.loads(content)))), command)
    if subject.kind == "yaml":
        import yaml

        return Case(subject, as_yaml(draw(changed(yaml.safe_load(content)))), command)
    if subject.kind == "safetensors":
        header, data = safetensors_parts(content)
        if subject.path in {"votes.safetensors", "tau.safetensors"} and draw(st.booleans()):
            header["__metadata__"] = _inner(draw, header["__metadata__"])
            return Case(subject, as_safetensors(header, data), command)
        return Case(subject, as_safetensors(draw(changed(header)), data), command)
    lines = content.splitlines()
    index = draw(st.integers(0, len(lines) - 1))
    lines[index] = as_json(draw(changed(json.loads(lines[index]))))
    return Case(subject, b"\n".join(lines), command)


def _inner(draw: st.DrawFn, metadata: dict[str, str]) -> dict[str, str]:
    """Change JSON inside of the text entries of a header."""
    key = draw(st.sampled_from(sorted(metadata)))
    try:
        value = json.loads(metadata[key])
    except ValueError:
        value = metadata[key]
    wrapped = as_json(draw(changed([value])))[1:-1]
    return {**metadata, key: wrapped.decode("utf-8", "replace")}


@contextmanager
def broken(root: Path, case: Case) -> Iterator[None]:
    """Put a case's file in place of the well-formed one.

    Args:
        root: The world.
        case: The case.

    Yields:
        Nothing; afterwards the world is whole again.
    """
    path = root / case.subject.path
    content = path.read_bytes()
    path.write_bytes(case.content)
    try:
        yield
    finally:
        path.write_bytes(content)
        out = root / "out"
        if out.is_dir():
            shutil.rmtree(out)
        for left in root.glob("out*"):
            shutil.rmtree(left) if left.is_dir() else left.unlink()


@dataclass
class Result:
    """What a campaign found: how many cases, and what was wrong with which."""

    tried: int
    faults: list[tuple[str, Case]]
    slowest: float = 0.0
    largest: int = 0


def campaign(
    root: Path, number: int, count: int, seen: Callable[[Case, Outcome], None] | None = None
) -> Result:
    """Run cases one after the other.

    Args:
        root: A world of its own.
        number: The seed.
        count: Cases.
        seen: Told of each.

    Returns:
        The faults.
    """
    result = Result(0, [])
    with Runner() as runner:

        @seed(number)
        @settings(
            max_examples=count,
            phases=[Phase.generate],
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(cases(root))
        def probe(case: Case) -> None:
            with broken(root, case):
                outcome = runner.run(*case.command.split(), cwd=root)
            result.tried += 1
            result.slowest = max(result.slowest, outcome.seconds)
            result.largest = max(result.largest, outcome.peak)
            if outcome.fault:
                result.faults.append((outcome.fault, case))
            if seen is not None:
                seen(case, outcome)

        probe()
    return result


def _part(arguments: tuple[Path, int, int]) -> Result:
    root, number, count = arguments
    return campaign(root, number, count)


def parallel(number: int, count: int, processes: int = 2) -> Result:
    """Run a campaign in several processes, each with a world and a seed of its own.

    Args:
        number: The first seed.
        count: Cases in all.
        processes: How many.

    Returns:
        All faults.
    """
    with tempfile.TemporaryDirectory(prefix="gradfix-campaign-") as folder:
        first = build(Path(folder) / "0")
        parts = [(first, number, count // processes)]
        for index in range(1, processes):
            parts.append(
                (Path(shutil.copytree(first, Path(folder) / str(index))), number + index, count // processes)
            )
        with multiprocessing.get_context("spawn").Pool(processes) as pool:
            results = pool.map(_part, parts)
    return Result(
        sum(r.tried for r in results),
        [fault for r in results for fault in r.faults],
        max(r.slowest for r in results),
        max(r.largest for r in results),
    )


def main() -> None:
    """Print faults by kind: ``python -m tests.campaigns.mutations SEED COUNT [PROCESSES]``."""
    import sys

    number, count, *rest = map(int, sys.argv[1:])
    result = parallel(number, count, *rest)
    kinds = Counter((fault[:110], case.subject.path) for fault, case in result.faults)
    for (fault, path), times in kinds.most_common():
        print(f"{times:5} {path}: {fault}")
    shown = set()
    for fault, case in result.faults:
        if (fault[:60], case.subject.path) not in shown:
            shown.add((fault[:60], case.subject.path))
            print(
                f"--- {fault}\n    {case.command}\n    {case.subject.path}: {case.content[:3000]!r}",
                file=sys.stderr,
            )
    print(
        f"{result.tried} tried, {len(result.faults)} faults; slowest {result.slowest:.1f} s, "
        f"most memory {result.largest / 1e9:.2f} GB"
    )


if __name__ == "__main__":
    main()
