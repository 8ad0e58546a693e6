"""Ctrl-C at any moment: one line and exit status 130."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

STATUS = 130


def end_at_once() -> None:
    """Let Ctrl-C end the process on the spot, as long as it holds nothing that would have to be tidied up.

    Python raises ``KeyboardInterrupt`` wherever it happens to be, inside an import or while it shuts down, and prints
    a traceback. Commands that write ask for that exception with :func:`interrupts_raised`.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


def _end(*_: Any) -> None:
    os.write(2, b"interrupted\n")
    os._exit(STATUS)


@contextmanager
def interrupts_raised() -> Iterator[None]:
    """Raise ``KeyboardInterrupt`` for Ctrl-C inside the block, so that what is being written is tidied up.

    Yields:
        Nothing.
    """
    if signal.getsignal(signal.SIGINT) is not _end:  # not this program's main thread, or not this program
        yield
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, _end)
