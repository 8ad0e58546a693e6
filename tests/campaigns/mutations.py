"""Thousands of broken files of every kind: each must be read as well, or be refused in plain words."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests.campaigns.grammar import as_json, as_safetensors, as_yaml, changed, damaged, safetensors_parts
from tests.campaigns.results import Result
from tests.campaigns.runner import runner
from tests.campaigns.world import SUBJECTS, Subject


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


def mutations(root: Path, number: int, count: int) -> Result:
    """Run cases one after the other.

    Args:
        root: A world of its own.
        number: The seed.
        count: Cases.

    Returns:
        The faults.
    """
    result = Result("mutations")

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
            outcome = runner().run(*case.command.split(), cwd=root)
        what = f"{case.subject.path} for `{case.command}`: {case.content[:2000]!r}"
        result.add(what, outcome.fault, outcome)

    probe()
    return result
