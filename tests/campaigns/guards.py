"""Take each guard out once, and see whether a test goes red: ``make guards [FILES="src/gradfix/votes/votes.py …"]``.

A guard is a ``raise``, or a call of a function that refuses (``require_…``, ``refuse_…``, ``check_…``). One run of the
tests records which of them reach which guard; then each guard is taken out, in a process of its own, and the quickest
tests that reached it run again. Those that stay green, or that no test reaches, are printed.
"""

import argparse
import ast
import importlib.machinery
import json
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import pytest

REFUSING = re.compile(r"_*(refuse|require|check)_")
ROOMS = ("text_files.py", "recipes", "checkpoints", "tasks", "vectors", "votes")
TESTS = ("test_text_files.py", "cli/test_hostile.py", "checkpoints", "recipes", "tasks", "vectors", "votes")
TRIES = 20
"""Tests that run again for a guard, at most: the quickest of those that reached it, up to the first that goes red."""
LIMIT_SECONDS = 120
HEAVY = (
    "datasets",
    "peft",
    "transformers.models.bert.modeling_bert",
    "transformers.models.gpt2.modeling_gpt2",
)
"""What tests need and is nothing of gradfix: imported once, for all processes."""


@dataclass(frozen=True)
class Guard:
    """A statement that refuses something.

    Attributes:
        path: Its file.
        line: Where it starts.
        column: Where it starts in the line.
        text: Its first line.
    """

    path: str
    line: int
    column: int
    text: str

    def is_at(self, node: ast.stmt) -> bool:
        """Whether it is this statement."""
        return (node.lineno, node.col_offset) == (self.line, self.column)


def guards_of(path: Path) -> list[Guard]:
    """Find the guards of a file.

    Args:
        path: Python source.

    Returns:
        Them, by line.
    """
    source = path.read_text()
    lines = source.splitlines()
    found = [
        Guard(str(path), node.lineno, node.col_offset, lines[node.lineno - 1].strip())
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.stmt) and _refuses(node)
    ]
    return sorted(found, key=lambda guard: guard.line)


def _refuses(node: ast.stmt) -> bool:
    if isinstance(node, ast.Raise):
        return node.exc is not None
    if not isinstance(node, ast.Expr) or not isinstance(node.value, ast.Call):
        return False
    called = node.value.func
    name = called.id if isinstance(called, ast.Name) else getattr(called, "attr", "")
    return REFUSING.match(name) is not None


class _Change(ast.NodeTransformer):
    """Puts other statements in place of guards; a function of its own, or a loop, is entered as any other."""

    def __init__(self, change: Callable[[ast.stmt, bool], list[ast.stmt]]) -> None:
        self._change, self._handling = change, False

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> ast.AST:
        before, self._handling = self._handling, True
        changed = self.generic_visit(node)
        self._handling = before
        return changed

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        before, self._handling = self._handling, False
        changed = self.generic_visit(node)
        self._handling = before
        return changed

    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        for field in ("body", "orelse", "finalbody"):
            statements = getattr(node, field, None)
            if isinstance(statements, list):
                setattr(node, field, [new for old in statements for new in self._changed(old)])
        return node

    def _changed(self, node: ast.stmt) -> list[ast.stmt]:
        return self._change(node, self._handling) if _refuses(node) else [node]


def _import_changed(paths: Sequence[str], change: Callable[[str, ast.stmt, bool], list[ast.stmt]]) -> None:
    """From now on, import these files with other statements in place of their guards."""
    real = {os.path.realpath(path): path for path in paths}
    original = importlib.machinery.SourceFileLoader.get_code

    def get_code(self: importlib.machinery.SourceFileLoader, fullname: str) -> object:
        path = real.get(os.path.realpath(self.path))
        if path is None:
            return original(self, fullname)
        tree = ast.parse(Path(path).read_text())
        tree = _Change(lambda node, handling: change(path, node, handling)).visit(tree)
        return compile(ast.fix_missing_locations(tree), self.path, "exec")

    importlib.machinery.SourceFileLoader.get_code = get_code  # type: ignore[assignment,method-assign]


class _Recorder:
    """A plugin of pytest: which tests reach which guards, and how long each test takes."""

    def __init__(self) -> None:
        self.reached: dict[int, set[str]] = {}
        self.seconds: dict[str, float] = {}
        self._now: set[int] = set()
        sys.modules["__main__"].__dict__["guard_reached"] = self._now.add

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> object:
        self._now.clear()
        started = time.monotonic()
        result = yield
        self.seconds[item.nodeid] = time.monotonic() - started
        for number in self._now:
            self.reached.setdefault(number, set()).add(item.nodeid)
        return result

    def quickest(self, number: int) -> list[str]:
        return sorted(self.reached.get(number, ()), key=self.seconds.__getitem__)[:TRIES]


def _reporting(number: int, node: ast.stmt) -> list[ast.stmt]:
    """A guard that tells when it refuses."""
    tell = ast.parse(f"__import__('sys').modules['__main__'].guard_reached({number})").body
    if isinstance(node, ast.Raise):
        return [*tell, node]
    handler = ast.ExceptHandler(ast.Name("BaseException", ast.Load()), None, [*tell, ast.Raise()])
    return [ast.Try([node], [handler], [], [])]


def _child(work: Callable[[], int]) -> int:
    """Run something in a process of its own, in silence."""
    sys.stdout.flush()
    process = os.fork()
    if process:
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    status = 1
    try:
        status = work()
    finally:
        os._exit(status)


def _pytest(tests: Sequence[str], *plugins: object) -> int:
    fixed = ("-q", "-p", "no:cacheprovider", "--assert=plain", "-m", "not campaign")
    return int(pytest.main([*fixed, *tests], plugins=list(plugins)))


def record(guards: Sequence[Guard], tests: Sequence[str]) -> list[list[str]]:
    """Run tests, and see which guards each of them reaches.

    Args:
        guards: The guards.
        tests: Files, folders or names for pytest.

    Returns:
        For each guard the quickest tests that reach it.
    """
    with tempfile.NamedTemporaryFile("r", suffix=".json") as file:

        def work() -> int:
            recorder = _Recorder()

            def change(path: str, node: ast.stmt, _: bool) -> list[ast.stmt]:
                for number, guard in enumerate(guards):
                    if guard.path == path and guard.is_at(node):
                        return _reporting(number, node)
                return [node]

            _import_changed([guard.path for guard in guards], change)
            status = _pytest(tests, recorder)
            Path(file.name).write_text(json.dumps([recorder.quickest(n) for n in range(len(guards))]))
            return status

        status = _child(work)
        if status:
            sys.exit(f"the tests are not green with all guards in place: pytest ended with {status}")
        return list(json.load(file))


def is_missed(guard: Guard, tests: Sequence[str]) -> bool:
    """Take a guard out.

    Args:
        guard: The guard.
        tests: Names of tests that reach it.

    Returns:
        Whether a test goes red.
    """

    def change(_: str, node: ast.stmt, handling: bool) -> list[ast.stmt]:
        if not guard.is_at(node):
            return [node]
        return [ast.Raise() if handling else ast.Pass()]

    def work() -> int:
        signal.alarm(LIMIT_SECONDS)  # without its guard, code may never end
        _import_changed([guard.path], change)
        return _pytest(["-x", *tests])

    status = _child(work)
    return status < 0 or status in {pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.INTERRUPTED}


def _chosen(places: Sequence[str]) -> list[Guard]:
    """All guards of folders and files, and those at single lines."""
    found: dict[Guard, None] = {}
    for place in places:
        path, _, line = place.partition(":")
        files = sorted(Path(path).rglob("*.py")) if Path(path).is_dir() else [Path(path)]
        for file in files:
            found |= {guard: None for guard in guards_of(file) if not line or guard.line == int(line)}
    return list(found)


def main() -> None:
    """Print the guards that no test misses; exit status 1 if there are any."""
    here = Path(__file__).resolve().parents[2]
    os.chdir(here)
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument(
        "files", nargs="*", help="FILE or FILE:LINE; the rooms that read users' files by default"
    )
    options.add_argument("--tests", nargs="*", default=[f"tests/{test}" for test in TESTS])
    chosen = options.parse_args()
    guards = _chosen(chosen.files or [f"src/gradfix/{room}" for room in ROOMS])
    print(f"{len(guards)} guards", flush=True)
    for name in HEAVY:
        import_module(name)
    green = 0
    for guard, tests in zip(guards, record(guards, chosen.tests), strict=True):
        missed = bool(tests) and is_missed(guard, tests)
        green += not missed
        if not missed:
            why = "green without it" if tests else "no test reaches it"
            print(f"{guard.path}:{guard.line}: {why}: {guard.text}", flush=True)
    print(f"{len(guards) - green} of {len(guards)} guards are missed by a test when taken out")
    sys.exit(green > 0)


if __name__ == "__main__":
    main()
