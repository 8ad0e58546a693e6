"""How commands talk: results on stdout, what happens on the way on stderr."""

import json
import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console as RichConsole
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from gradfix.report.facts import Part
    from gradfix.transport.checks import Finding

SECONDS_A_LINE = 30.0
"""Between lines of progress where there is no terminal to draw a bar on: a log should show that the run lives."""


class Console:
    """The output of one command; a context manager, so that a progress bar never outlives an error.

    Attributes:
        as_json: Whether stdout gets the machine-readable result; not of a quiet one, which says nothing at all.
        err: Rich console on stderr.
    """

    def __init__(self, as_json: bool, *, quiet: bool = False) -> None:
        self.as_json = as_json and not quiet
        self.err = RichConsole(stderr=True, highlight=False, quiet=quiet)
        self._quiet = quiet
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._said = time.monotonic()

    def __enter__(self) -> "Console":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close_bars()

    def close_bars(self) -> None:
        """Take the progress bars off the terminal."""
        if self._bars is not None:
            self._bars.stop()
        self._bars, self._tasks = None, {}

    def progress(self, stage: str, done: int, total: int, unit: str = "") -> None:
        """Draw how far a stage is; a :class:`gradfix.progress.Progress`. Without a terminal: a line now and then.

        Args:
            stage: What is being done.
            done: Units completed.
            total: Units in all.
            unit: What is counted.
        """
        if not self.err.is_terminal:
            if time.monotonic() - self._said >= SECONDS_A_LINE:
                self.say(f"{stage}: {_count(done, total, unit)}")
            return
        if self._bars is None:
            self._bars = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.fields[count]}"),
                TimeRemainingColumn(),
                console=self.err,
                transient=True,
            )
            self._bars.start()
        if stage not in self._tasks:
            self._tasks[stage] = self._bars.add_task(stage, total=total, count="")
        # One bar: a stage within a stage takes the line, and gives it back.
        for name, task in self._tasks.items():
            self._bars.update(task, visible=name == stage)
        self._bars.update(self._tasks[stage], completed=done, total=total, count=_count(done, total, unit))

    def say(self, message: str) -> None:
        """Tell a person something, on stderr.

        Args:
            message: Rich markup is not read in it: names from files may contain anything.
        """
        self.close_bars()
        self._said = time.monotonic()
        self.err.print(_shown(message), markup=False, soft_wrap=True)

    def tell(self, finding: "Finding") -> None:
        """Tell a person what was found of the inputs, so that it is read before anything long starts.

        Args:
            finding: A note or a warning; an error ends the command, which then says it.
        """
        if finding.level != "error":
            self.say(f"{finding.level}: {finding.text}")

    def answer(self, text: str) -> None:
        """Print the result for people: on stdout, unless the machine-readable one stands there.

        Args:
            text: What was asked for.
        """
        self.close_bars()
        if self.as_json:
            self.say(text)
        elif not self._quiet:
            sys.stdout.write(_shown(text) + "\n")

    def answer_table(self, renderable: Any) -> None:
        """Print a rich table or panel where :meth:`answer` prints.

        Args:
            renderable: What rich can draw.
        """
        self.close_bars()
        console = self.err if self.as_json or self._quiet else RichConsole(file=sys.stdout, highlight=False)
        console.print(renderable)

    def result(self, content: "Part | Mapping[str, Any]") -> None:
        """Print the machine-readable result on stdout, where it was asked for.

        Args:
            content: JSON, or what a record has of it.
        """
        self.close_bars()
        if self.as_json:
            plain = content if isinstance(content, Mapping) else content.plain()
            json.dump(plain, sys.stdout, indent=1, sort_keys=True, ensure_ascii=False)
            sys.stdout.write("\n")


BLANKS = "\n\N{NO-BREAK SPACE}\N{NARROW NO-BREAK SPACE}"
"""What Python calls not printable, and sentences hold."""


def _shown(text: str) -> str:
    """A name from a file must not steer the terminal."""
    return "".join(letter if letter.isprintable() or letter in BLANKS else "\ufffd" for letter in text)


def _count(done: int, total: int, unit: str) -> str:
    if unit == "bytes":
        return (
            f"{done / 1e9:.2f} of {total / 1e9:.2f} GB"
            if total >= 10**8
            else f"{done / 1e6:.1f} of {total / 1e6:.1f} MB"
        )
    return f"{done} of {total} {unit}".rstrip()
