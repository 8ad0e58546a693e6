"""Runs commands of gradfix one by one, each in a child of its own: a crash, a hang or a flood ends that alone.

``python -m tests.campaigns.runner`` reads requests from stdin, a line of JSON each, and answers them on stdout. It
imports everything heavy once and forks for each request, so that a case costs milliseconds.
"""

import json
import os
import resource
import select
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

LIMIT_SECONDS = 10.0
LIMIT_BYTES = 2 * 10**9
_MOST_ADDRESSES = 12 * 2**30
"""What a child may map: beyond, it fails instead of taking the machine with it."""


@dataclass(frozen=True)
class Outcome:
    """How a command ended.

    Attributes:
        status: Exit status; negative for the signal that ended it; None where it was killed for its time.
        seconds: From start to end.
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
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def run(self, *arguments: object, cwd: Path | None = None) -> Outcome:
        """Run one command.

        Args:
            *arguments: After ``gradfix``.
            cwd: Where; here by default.

        Returns:
            How it ended.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        request = {"arguments": [str(argument) for argument in arguments], "cwd": str(cwd or Path.cwd())}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return Outcome(**json.loads(self._process.stdout.readline()))


def _child(request: dict[str, Any], stdout: int, stderr: int) -> None:
    """Be the command; never returns."""
    status = 1
    try:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(stdout, 1)
        os.dup2(stderr, 2)
        resource.setrlimit(resource.RLIMIT_AS, (_MOST_ADDRESSES, _MOST_ADDRESSES))
        os.chdir(request["cwd"])
        sys.argv = ["gradfix", *request["arguments"]]
        from gradfix.cli import main

        main()
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


def _run(request: dict[str, Any]) -> Outcome:
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        started = time.monotonic()
        child = os.fork()
        if child == 0:
            _child(request, stdout.fileno(), stderr.fileno())
        watch = os.pidfd_open(child)
        try:
            ended, _, _ = select.select([watch], [], [], LIMIT_SECONDS)
        finally:
            os.close(watch)
        if not ended:
            os.killpg(child, signal.SIGKILL)
        _, code, usage = os.wait4(child, 0)
        texts = []
        for file in (stdout, stderr):
            file.seek(0)
            texts.append(file.read(200_000).decode("utf-8", "replace"))
        return Outcome(
            status=os.waitstatus_to_exitcode(code) if ended else None,
            seconds=time.monotonic() - started,
            peak=usage.ru_maxrss * 1024,
            stderr=texts[1],
            stdout=texts[0],
        )


def _warm() -> None:
    """Import what the commands import."""
    import datasets  # noqa: F401
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer  # noqa: F401
    from transformers.models.bert import modeling_bert  # noqa: F401
    from transformers.models.gpt2 import modeling_gpt2  # noqa: F401

    import gradfix.transport.pipeline  # noqa: F401

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()


def main() -> None:
    """Answer requests until there are no more."""
    # Nothing but answers may go to stdout.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    _warm()
    for line in sys.stdin:
        answers.write(json.dumps(asdict(_run(json.loads(line)))) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
