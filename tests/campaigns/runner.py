"""Runs commands of gradfix one by one, each in a child of its own: a crash, a hang or a flood ends that alone.

``python -m tests.campaigns.runner`` reads requests from stdin, a line of JSON each, and answers them on stdout. It
imports everything heavy once and forks for each request, so that a case costs milliseconds.
"""

import atexit
import gc
import json
import os
import resource
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from gradfix.tasks import chat_templates

LIMIT_SECONDS = 10.0
LIMIT_BYTES = 2 * 10**9
_MOST_ADDRESSES = 12 * 2**30
"""What a child may map: beyond, it fails instead of taking the machine with it."""

_HEAVY = (
    "datasets",
    "gradfix.cli",
    "gradfix.ranks.launch",
    "gradfix.ranks.watch",
    "gradfix.transport.inspection",
    "gradfix.transport.pipeline",
    "plotly.offline",
    "rich._emoji_codes",
    "scipy.stats",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.bert.modeling_bert",
    "transformers.models.gpt2.modeling_gpt2",
)

_HELD = {signal.SIGINT}
"""Kept back until a child is the command: what interrupts the copy of the runner says nothing of gradfix."""


@dataclass(frozen=True)
class Outcome:
    """How a command ended.

    Attributes:
        status: Exit status; negative for the signal that ended it; None where it was killed for its time.
        seconds: From start to end, without what it waited for a processor that others had.
        peak: Bytes of memory at most.
        stderr: What it said.
        stdout: Its result.
    """

    status: int | None
    seconds: float
    peak: int
    stderr: str
    stdout: str = ""

    @property
    def fault(self) -> str:
        """What is wrong with this end, whatever the input was; empty where it is a clean one."""
        if self.status is None:
            return f"hung: more than {LIMIT_SECONDS:.0f} s"
        if self.status < 0:
            return f"crashed: {signal.Signals(-self.status).name}"
        if "Traceback (most recent call last)" in self.stderr:
            return f"traceback: {self.stderr.strip().splitlines()[-1][:200]}"
        if self.status not in {0, 1, 2}:
            return f"status {self.status}: {self.stderr.strip()[-200:]}"
        if self.status and not self.stderr.strip():
            return "refused without a word"
        if self.peak > LIMIT_BYTES:
            return f"took {self.peak / 1e9:.1f} GB"
        return ""


class Runner:
    """A warm process that runs commands for a campaign; a context manager."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.campaigns.runner"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> "Runner":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def run(self, *arguments: object, cwd: Path | None = None, **more: Any) -> Outcome:
        """Run one command.

        Args:
            *arguments: After ``gradfix``.
            cwd: Where; here by default.
            **more: ``signal`` sent ``after`` so many seconds; ``fault``: fields of :class:`Fault`.

        Returns:
            How it ended.
        """
        return self.together([arguments], cwd=cwd, **more)[0]

    def together(
        self, commands: Sequence[Sequence[object]], cwd: Path | None = None, **more: Any
    ) -> list[Outcome]:
        """Run commands at once.

        Args:
            commands: The arguments of each.
            cwd: Where; here by default.
            **more: As :meth:`run`.

        Returns:
            How they ended, in the same order.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        texts = [[str(argument) for argument in arguments] for arguments in commands]
        request = {"commands": texts, "cwd": str(cwd or Path.cwd()), **more}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return [Outcome(**fields) for fields in json.loads(self._process.stdout.readline())]


@dataclass
class Fault:
    """An error of the operating system that a command meets: the n-th call of a function of ``os`` fails.

    Attributes:
        call: The function's name.
        number: Which call, from 1; 0 counts them only, and says how many there were in a file.
        code: The error; a short write where it is 0.
        count: Where the number of calls is written.
    """

    call: str
    number: int
    code: int
    count: str

    def install(self) -> None:
        """Put the failing function in place."""
        original, seen = getattr(os, self.call), 0

        def faulty(*arguments: Any, **options: Any) -> Any:
            nonlocal seen
            seen += 1
            if seen == self.number:
                if self.code:
                    raise OSError(self.code, os.strerror(self.code))
                descriptor, data, offset = arguments
                return original(descriptor, data[: max(1, len(data) // 2)], offset)
            return original(*arguments, **options)

        setattr(os, self.call, faulty)
        self._seen = lambda: seen

    def report(self) -> None:
        """Write down how often the function was called."""
        Path(self.count).write_text(str(self._seen()))


def _child(request: dict[str, Any], arguments: list[str], stdout: int, stderr: int) -> None:
    """Be the command; never returns."""
    status = 1
    try:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(stdout, 1)
        os.dup2(stderr, 2)
        resource.setrlimit(resource.RLIMIT_AS, (_MOST_ADDRESSES, _MOST_ADDRESSES))
        os.chdir(request["cwd"])
        sys.argv = ["gradfix", *arguments]
        from gradfix.__main__ import main
        from gradfix.interrupts import end_at_once

        end_at_once()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _HELD)
        fault = Fault(**request["fault"]) if "fault" in request else None
        if fault is not None:
            fault.install()
        try:
            main()
        finally:
            if fault is not None:
                fault.report()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001  as Python itself ends a program
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status & 0xFF)


def _waited(session: int) -> float:
    """Seconds that the processes of a session were ready to run, and had no processor."""
    total = 0
    for place in Path("/proc").glob("[0-9]*"):
        with suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            if (place / "stat").read_text().rpartition(")")[2].split()[3] == str(session):
                total += int((place / "schedstat").read_text().split()[1])
    return total / 1e9


class _Lent:
    """What a child has of the runner's renderer of chat templates, as if it had started it: it can't wait for it."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self.stdin, self.stdout, self._pid = process.stdin, process.stdout, process.pid

    def poll(self) -> None:
        """Say that it runs: the runner has looked."""

    def kill(self) -> None:
        """End it."""
        with suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)

    def communicate(self) -> None:
        """Wait for nothing."""


class _Renderer:
    """The renderer of chat templates, started once: of a command on chats that takes the longest."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def lend(self) -> None:
        """Let the next child have it."""
        if self._process is None or self._process.poll() is not None:
            self._process = chat_templates._started()
        chat_templates._RENDERER._process = _Lent(self._process)  # type: ignore[assignment]

    def withdraw(self) -> None:
        """Let further children start their own."""
        chat_templates._RENDERER._process = None

    def stop(self) -> None:
        """End it: whoever had it may have left a question open."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


class _Running:
    """A child, and what it says."""

    def __init__(self, request: dict[str, Any], arguments: list[str]) -> None:
        self._stdout, self._stderr = (tempfile.TemporaryFile() for _ in range(2))  # noqa: SIM115  closed at its end
        self._started = time.monotonic()
        signal.pthread_sigmask(signal.SIG_BLOCK, _HELD)
        self._child = os.fork()
        if self._child == 0:
            _child(request, arguments, self._stdout.fileno(), self._stderr.fileno())
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _HELD)
        self._watch = os.pidfd_open(self._child)

    def wait(self, seconds: float) -> bool:
        """Wait for its end for so long."""
        while (left := seconds - self.seconds()) > 0:
            if select.select([self._watch], [], [], left)[0]:
                return True
        return bool(select.select([self._watch], [], [], 0)[0])

    def seconds(self) -> float:
        """How long it has run; a machine that is busy with other work does not make a command hang."""
        return time.monotonic() - self._started - _waited(self._child)

    def send(self, number: int) -> None:
        """Send it a signal."""
        with suppress(ProcessLookupError):
            os.kill(self._child, number)

    def outcome(self) -> Outcome:
        """Wait for the end, and tell how it was."""
        ended = self.wait(LIMIT_SECONDS)
        seconds = self.seconds()
        if not ended:
            os.killpg(self._child, signal.SIGKILL)
        _, code, usage = os.wait4(self._child, 0)
        os.close(self._watch)
        texts = []
        for file in (self._stdout, self._stderr):
            file.seek(0)
            texts.append(file.read(200_000).decode("utf-8", "replace"))
            file.close()
        status = os.waitstatus_to_exitcode(code) if ended else None
        return Outcome(status, seconds, usage.ru_maxrss * 1024, texts[1], texts[0])


@cache
def runner() -> Runner:
    """One warm process for all campaigns of this one; it ends with this one.

    Returns:
        It.
    """
    warm = Runner()
    atexit.register(warm.close)
    return warm


def _answer(request: dict[str, Any], renderer: _Renderer) -> list[Outcome]:
    renderer.lend()
    running = []
    for arguments in request["commands"]:
        running.append(_Running(request, arguments))
        renderer.withdraw()
    if "signal" in request and not running[0].wait(request["after"]):
        running[0].send(request["signal"])
    outcomes = [each.outcome() for each in running]
    if outcomes[0].status not in {0, 1, 2}:
        renderer.stop()
    return outcomes


def _warm() -> None:
    """Import what the commands import."""
    for name in _HEAVY:
        import_module(name)
    import torch
    import transformers
    import typer.main
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    from gradfix.cli.command import app

    torch.set_num_threads(1)
    command = typer.main.get_command(app)  # of all options: a third of what `inspect` takes
    typer.main.get_command = lambda _: command
    transformers.logging.set_verbosity_error()
    get_checkpoint_conversion_mapping("bert")  # a thousand regular expressions, compiled once
    gc.freeze()  # what the children share with this process stays shared


def main() -> None:
    """Answer requests until there are no more."""
    # Nothing but answers may go to stdout.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    _warm()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background would ignore it
    renderer = _Renderer()
    for line in sys.stdin:
        answers.write(json.dumps([asdict(outcome) for outcome in _answer(json.loads(line), renderer)]) + "\n")
        answers.flush()
    renderer.stop()


if __name__ == "__main__":
    main()
