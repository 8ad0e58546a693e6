"""Passes through one model that advance together, so that each block's weights are fetched once for all of them.

A lane runs a function in a thread of its own, but only while the scheduler waits for it: never two at a time. When
the model in it comes to a unit, the lane pauses, and the scheduler runs the unit for it. So the model's own code runs
between the units as it is, whatever it does, and every lane can be at the same block at the same time.
"""

import threading
from collections.abc import Callable
from typing import Any

_here = threading.local()


class Cancelled(BaseException):
    """Ends a paused lane; nobody but the lane catches it."""


class Lane:
    """One pass, which pauses whenever it needs a unit.

    Attributes:
        request: What it waits for; None before it starts and once it has ended.
        result: What its function returned.
        done: Whether it has ended.
    """

    def __init__(self, function: Callable[[], Any]) -> None:
        """Prepare.

        Args:
            function: What to run; it calls the model.
        """
        self.request: Any = None
        self.result: Any = None
        self.done = False
        self._function = function
        self._error: BaseException | None = None
        self._answer: Any = None
        self._cancelled = False
        self._go, self._paused = threading.Semaphore(0), threading.Semaphore(0)
        self._thread: threading.Thread | None = None

    def resume(self, answer: Any = None) -> None:
        """Go on until the lane needs a unit or ends; its errors are raised here.

        Args:
            answer: What the unit returned that it waited for.
        """
        self._answer, self.request = answer, None
        if self._thread is None:
            self._thread = threading.Thread(target=self._body, name="gradfix-lane", daemon=True)
            self._thread.start()
        else:
            self._go.release()
        self._paused.acquire()
        self._answer = None
        if self.done:
            self._thread.join()
        if self._error is not None:
            raise self._error

    def wait_for(self, request: Any) -> Any:
        """Pause, inside of the lane.

        Args:
            request: What is needed.

        Returns:
            The answer.

        Raises:
            Cancelled: if there will be none.
        """
        self.request = request
        self._paused.release()
        self._go.acquire()
        if self._cancelled:
            raise Cancelled
        return self._answer

    def cancel(self) -> None:
        """End a lane that is paused; one that has not begun or has ended stays as it is."""
        if self._thread is not None and not self.done:
            self._cancelled = True
            self._go.release()
            self._thread.join()

    def _body(self) -> None:
        _here.lane = self
        try:
            self.result = self._function()
        except Cancelled:
            pass
        except BaseException as error:  # noqa: BLE001 - raised again where the lane is waited for
            self._error = error
        finally:
            self.done, self.request = True, None
            del self._function
            self._paused.release()


def current_lane() -> Lane | None:
    """Tell in which lane the caller runs.

    Returns:
        The lane; None outside of all.
    """
    return getattr(_here, "lane", None)
