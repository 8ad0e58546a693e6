"""Each rank says that it lives, and hears of those that don't: a thread beside the work.

Ranks meet in a store of ``torch.distributed``, which the launcher or the first rank keeps. There, whoever fails first
says why, and speaks for all; whoever falls silent is missed by the others.
"""

import json
import os
import signal
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from gradfix.ranks.group import RankFailedError

PERIOD = 1.0
"""Seconds between two signs of life."""

MISSED = 20
"""Signs of life in a row that a rank may miss: it may be starved of processor time, but not for so long."""

GRACE = 20.0
"""Seconds from another rank's failure until this one ends even if it is inside of one long operation."""

FAILED = "failed"
ENDED = b"ended"


class Watch:
    """The thread, and what it knows.

    Attributes:
        failure: What ended the job; None as long as nothing did.
        spoke: Whether this rank is the one that says so.
    """

    def __init__(self, store: Any, rank: int, names: Sequence[str]) -> None:
        """Prepare.

        Args:
            store: For the thread alone: a client of its own.
            rank: This one.
            names: What to call each rank.
        """
        self.failure: str | None = None
        self.spoke = False
        self._store, self._rank, self._names = store, rank, names
        self._keys = [f"alive/{number}" for number in range(len(names))]
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._body, name="gradfix-watch", daemon=True)
        self._main = threading.main_thread().ident
        self._before: Any = None
        self._raised = False
        self._gone: set[str] = set()

    def start(self) -> None:
        """Begin; every rank has given its first sign of life already."""
        if threading.current_thread() is threading.main_thread():
            self._before = {
                number: signal.signal(number, self._interrupted)
                for number in (signal.SIGUSR1, signal.SIGTERM)
            }
        self._thread.start()

    def check(self) -> None:
        """Raise if another rank has failed.

        Raises:
            RankFailedError: with what happened.
        """
        if self.failure is not None:
            raise RankFailedError(self.failure)

    def report(self, text: str) -> bool:
        """Say that this rank has failed.

        Args:
            text: Why.

        Returns:
            Whether it is the first to say so, and should tell the user.
        """
        if threading.current_thread() is threading.main_thread():
            self._raised = True  # the work has ended already
        if self.failure is not None:
            return False
        self.failure = text
        mine = json.dumps([self._rank, text]).encode()
        with self._lock, suppress(Exception):
            self.spoke = bytes(self._store.compare_set(FAILED, b"", mine)) == mine
            return self.spoke
        return True  # no store to ask: whoever kept it has ended

    def missing(self) -> None:
        """Find out who is not there any more, after a connection to somebody broke; waits until that is known."""
        self._raised = True  # the work has ended already
        for _ in range(MISSED + 5):
            if self.failure is not None:
                return
            threading.Event().wait(PERIOD)

    def stop(self, patience: float) -> None:
        """End; the first rank, which may keep the store, once all others have, or have had time to.

        Args:
            patience: Seconds to wait for others: the store must not go before they have heard. They don't ask it again,
                for torch would report a store that has gone.
        """
        self._stop.set()
        self._thread.join()
        with suppress(Exception):
            self._store.set(self._keys[self._rank], ENDED)
            left = [key for key in self._keys if key not in self._gone]
            while self._rank == 0 and patience > 0 and set(self._store.multi_get(left)) != {ENDED}:
                threading.Event().wait(0.05)
                patience -= 0.05
        if self._before is not None:
            for number, handler in self._before.items():
                signal.signal(number, handler)

    def _body(self) -> None:
        seen, missed, tick = [b""] * len(self._keys), [0] * len(self._keys), 0
        while not self._stop.wait(PERIOD):
            tick += 1
            try:
                with self._lock:
                    self._store.set(self._keys[self._rank], str(tick).encode())
                    found = [bytes(value) for value in self._store.multi_get(self._keys)]
                    failed = self._store.check([FAILED]) and bytes(self._store.get(FAILED))
            except Exception as error:  # noqa: BLE001 - of whatever kind: the store is gone
                self._end(f"{self._names[0]}, or the launcher, has ended ({type(error).__name__})")
                return
            if failed:
                self._end(json.loads(failed)[1], told=True)
                return
            for number, (before, now) in enumerate(zip(seen, found, strict=True)):
                missed[number] = missed[number] + 1 if before == now != ENDED else 0
            seen = found
            gone = [number for number, times in enumerate(missed) if times >= MISSED]
            if gone:
                self._gone = {self._keys[number] for number in gone}
                names = ", ".join(self._names[number] for number in gone)
                text = f"{names} ended without a word, as after SIGKILL or for want of memory"
                self._end(text, told=not self.report(text))
                return

    def _end(self, text: str, *, told: bool = False) -> None:
        """Interrupt the work, and see to it that it ends."""
        if self.failure is None:
            self.failure, self.spoke = text, not told
        if self._before is not None and self._main is not None:
            signal.pthread_kill(self._main, signal.SIGUSR1)
        if not self._stop.wait(GRACE):
            if self.spoke:
                sys.stderr.write(f"{self._names[self._rank]}: {text}\n")
                sys.stderr.flush()
            os._exit(1)

    def _interrupted(self, number: int, _: Any) -> None:
        """Raise in the work, once: what is tidied up then must not be interrupted again."""
        failure = self.failure or ("ended by SIGTERM" if number == signal.SIGTERM else None)
        if failure is not None and not self._raised:
            self._raised = True
            raise RankFailedError(failure)
