"""Ctrl-C at any moment: one line and exit status 130.

Nothing but what Python has imported by itself is imported here: until it is, Ctrl-C gives Python's own traceback.
"""

from __future__ import annotations

import os
import signal
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType

STATUS = 130


def end_at_once() -> None:
    """Let Ctrl-C end the process on the spot, as long as it holds nothing that would have to be tidied up.

    Python raises ``KeyboardInterrupt`` wherever it happens to be, inside an import or while it shuts down, and prints
    a traceback. Commands that write ask for that exception with :class:`InterruptsRaised`.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


def _end(number: int, frame: FrameType | None) -> None:
    os.write(2, b"interrupted\n")
    os._exit(STATUS)


class InterruptsRaised:
    """Raises ``KeyboardInterrupt`` for Ctrl-C inside the block, so that what is being written is tidied up.

    Libraries turn it into errors of their own, transformers where it is interrupted in an import: whatever leaves the
    block after Ctrl-C is a ``KeyboardInterrupt`` again.
    """

    def __init__(self) -> None:
        # Otherwise this is not the program's main thread, or not this program.
        self._ours = signal.getsignal(signal.SIGINT) is _end
        self._seen = False

    def _raise(self, number: int, frame: FrameType | None) -> None:
        self._seen = True
        raise KeyboardInterrupt

    def _ignored(self, unraisable: sys.UnraisableHookArgs) -> None:
        """Raise again, a little later, what was raised where Python goes on after any error: in a ``__del__``."""
        if self._seen and unraisable.exc_type is KeyboardInterrupt:
            import threading

            # To the main thread, which may be waiting for something.
            main = threading.main_thread().ident
            again = threading.Timer(0.02, signal.pthread_kill, (main, signal.SIGINT))
            again.daemon = True
            again.start()
        else:
            self._told(unraisable)

    def __enter__(self) -> None:
        if self._ours:
            signal.signal(signal.SIGINT, self._raise)
            self._told, sys.unraisablehook = sys.unraisablehook, self._ignored

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if self._ours:
            signal.signal(signal.SIGINT, _end)
            sys.unraisablehook = self._told
        if self._seen and error is not None and not isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt from error
