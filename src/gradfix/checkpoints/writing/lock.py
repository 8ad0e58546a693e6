"""One run at a time on an output, and a name for the one that has it."""

import errno
import json
import os
import socket
import time
from pathlib import Path
from types import TracebackType

from filelock import FileLock, Timeout

from gradfix.checkpoints.files import UNSUPPORTED, explain_os_errors
from gradfix.errors import GradfixError
from gradfix.text_files import parse_json, read_text

_LONGEST = 10_000


class OutputLock:
    """Holds ``.<output>.gradfix-lock`` beside an output while the context is open.

    The lock is the system's, which ends with its process. Network file systems may grant it to everyone or to
    nobody, so the file also says who holds it; what a process of this machine held that has ended is taken.
    Safety doesn't rest on the lock: each run writes into its own directory and publishes without replacing.

    Args:
        output: Absolute path of the output; its parent exists.
    """

    def __init__(self, output: Path) -> None:
        self.output = output
        self.path = output.with_name(f".{output.name}.gradfix-lock")
        self._lock = FileLock(self.path, blocking=False)

    def __enter__(self) -> "OutputLock":
        """Take the lock at once or refuse.

        Returns:
            Itself.

        Raises:
            GradfixError: Another run has it (the message says which), or the file can't be made.
        """
        with explain_os_errors(self.path, "choose an output in a directory you may write to"):
            locked = self._acquire()
            record = _read(self.path)
            if not locked or _alive(record):
                self._lock.release()
                raise GradfixError(self._held_by(record))
            try:
                self.path.write_text(json.dumps(_own_record()), encoding="utf-8")
            except BaseException:
                self.path.unlink()
                self._lock.release()
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the lock file, then let go of the lock."""
        self.path.unlink(missing_ok=True)
        self._lock.release()

    def _acquire(self) -> bool:
        """Take the system's lock; where the file system has none, what the file says decides alone."""
        try:
            self._lock.acquire()
        except Timeout:
            return False
        except OSError as error:
            if error.errno not in UNSUPPORTED | {errno.ENOLCK}:
                raise
        return True

    def _held_by(self, record: dict[str, object]) -> str:
        holder = "another run"
        if record:
            holder = f"process {record.get('pid')} on {record.get('host')} since {record.get('since')}"
        text = f"{self.output}: {holder} is writing this output; wait for it, or choose another output"
        if record and record.get("host") != socket.gethostname():
            text += f" (if that process has ended, delete {self.path})"
        return text


def _read(path: Path) -> dict[str, object]:
    """What the holder wrote; nothing when it was killed before it could."""
    try:
        return parse_json(read_text(path, _LONGEST), str(path))
    except GradfixError:
        return {}


def _own_record() -> dict[str, object]:
    since = time.strftime("%Y-%m-%d %H:%M:%S %z")
    pid = os.getpid()
    return {"pid": pid, "host": socket.gethostname(), "since": since, "started": _start_time(pid)}


def _alive(record: dict[str, object]) -> bool:
    """Whether a record that the system's lock doesn't protect may still be someone's."""
    pid = record.get("pid")
    if not isinstance(pid, int) or not 0 < pid < 2**31:
        return False
    if record.get("host") != socket.gethostname():
        return True  # no way to ask another machine
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    # The number may belong to a new process by now; where the system tells, the start time decides.
    return record.get("started") == _start_time(pid)


def _start_time(pid: int) -> str | None:
    """Clock ticks from boot to the start of a process on Linux: proc(5), field 22; a zombie has none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return "ended" if fields[0] in "ZX" else fields[19]
