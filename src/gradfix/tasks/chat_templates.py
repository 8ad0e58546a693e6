"""Chat templates bounded in time, memory and length: they are programs that came with a model."""

import atexit
import json
import os
import select
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SECONDS = 6.0
"""Of the processor, for one conversation; a template takes milliseconds."""

PATIENCE = 120.0
"""Seconds to wait for an answer: the renderer, too, is slow where the machine is busy."""

LONGEST = 50_000_000
"""Letters of one answer."""


@contextmanager
def bounded_templates() -> Iterator[None]:
    """Let transformers render chat templates in a process that is killed where a template goes on and on.

    transformers renders in one function, which a tokenizer calls with all that a template may see; that function is
    replaced inside the block. The process starts with the first conversation and serves all that follow.

    Yields:
        Nothing. Inside, a template that fails or exceeds a bound raises ValueError with the reason.
    """
    from transformers import tokenization_utils_base as transformers_tokenizers

    original = transformers_tokenizers.render_jinja_template
    transformers_tokenizers.render_jinja_template = _RENDERER.render
    try:
        yield
    finally:
        transformers_tokenizers.render_jinja_template = original


class _Renderer:
    """The process of :mod:`gradfix.tasks.chat_renderer`."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def render(self, **arguments: Any) -> Any:
        """Render as transformers' function of the same arguments does."""
        try:
            request = json.dumps({"seconds": SECONDS, "arguments": arguments}).encode() + b"\n"
        except (TypeError, ValueError) as error:
            raise ValueError(f"a message holds what is no text: {error}") from None
        with self._lock:
            answer = self._ask(request)
        if "error" in answer:
            raise ValueError(answer["error"])
        return answer["rendered"]

    def _ask(self, request: bytes) -> dict[str, Any]:
        if self._process is None or self._process.poll() is not None:
            self._process = _started()
        process, answer = self._process, bytearray()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(request)
            process.stdin.flush()
            while not answer.endswith(b"\n") and len(answer) <= LONGEST:
                ready, _, _ = select.select([process.stdout], [], [], PATIENCE)
                part = os.read(process.stdout.fileno(), 1 << 20) if ready else b""
                if not part:
                    break
                answer += part
        except BrokenPipeError:
            answer.clear()
        if answer.endswith(b"\n"):
            found: dict[str, Any] = json.loads(answer)
            return found
        self.stop()
        return {"error": f"it takes more than {SECONDS:.0f} s, or more memory or text than a template should"}

    def stop(self) -> None:
        """End the process; the next conversation starts another."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


_RENDERER = _Renderer()
atexit.register(_RENDERER.stop)


def _started() -> subprocess.Popen[bytes]:
    # By its path: as a module of the package it would wait for torch.
    script = Path(__file__).with_name("chat_renderer.py")
    # -P: in the script's folder lie modules of gradfix that would be taken for others.
    options = ["-P"] if sys.version_info >= (3, 11) else []
    return subprocess.Popen(
        [sys.executable, *options, str(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
