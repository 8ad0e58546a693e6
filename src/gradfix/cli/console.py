"""How commands talk: results on stdout, everything for people on stderr."""

import json
import sys
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console as RichConsole
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from gradfix.report.facts import Part
    from gradfix.transport.checks import Finding


class Console:
    """The output of one command; a context manager, so that a progress bar never outlives an error.

    Attributes:
        as_json: Whether stdout gets the machine-readable result.
        err: Rich console on stderr.
    """

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json
        self.err = RichConsole(stderr=True, highlight=False)
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}

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
        """Draw how far a stage is; a :class:`gradfix.progress.Progress`.

        Args:
            stage: What is being done.
            done: Units completed.
            total: Units in all.
            unit: What is counted.
        """
        if not self.err.is_terminal:
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
        count = DownloadColumn().render if unit == "bytes" else None
        if stage not in self._tasks:
            self._tasks[stage] = self._bars.add_task(stage, total=total, count="")
        task = self._tasks[stage]
        self._bars.update(task, completed=done, total=total)
        speed = self._bars.tasks[-1].speed
        text = str(count(self._bars.tasks[-1])) if count else f"{done}/{total} {unit}"
        self._bars.update(task, count=text + (f" · {speed:.1f}/s" if speed and not count else ""))

    def say(self, message: str) -> None:
        """Tell a person something, on stderr.

        Args:
            message: Rich markup is not read in it: names from files may contain anything.
        """
        self.close_bars()
        self.err.print(message, markup=False, soft_wrap=True)

    def tell(self, finding: "Finding") -> None:
        """Tell a person what was found of the inputs, so that it is read before anything long starts.

        Args:
            finding: A note or a warning; an error ends the command, which then says it.
        """
        if finding.level != "error":
            self.say(f"{finding.level}: {finding.text}")

    def show(self, renderable: Any) -> None:
        """Show a rich table or panel to a person, on stderr.

        Args:
            renderable: What rich can draw.
        """
        self.close_bars()
        self.err.print(renderable)

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
