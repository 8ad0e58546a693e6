"""Two runs on one output: one wins at once, the other says who holds it."""

import fcntl
import json
import os
import socket
import subprocess
import sys

import pytest
import torch

from gradfix.checkpoints import CheckpointWriter, TensorSpec
from gradfix.checkpoints.writing.lock import OutputLock, _start_time
from gradfix.errors import GradfixError

SPECS = {name: TensorSpec(torch.float32, (4,)) for name in "abc"}


def write_record(path, **record):
    path.write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": "then", **record}))


def test_the_second_run_names_the_first(tmp_path):
    with CheckpointWriter(tmp_path / "out", {}, identity={}):
        with (
            pytest.raises(
                GradfixError, match=rf"process {os.getpid()} on {socket.gethostname()} since 2\d\d\d-"
            ),
            CheckpointWriter(tmp_path / "out", {}, identity={}, restart=True),
        ):
            pass
        with CheckpointWriter(tmp_path / "another", {}, identity={}):
            pass
    assert sorted(os.listdir(tmp_path)) == ["another", "out"]


def test_a_lock_held_by_another_process_is_seen(tmp_path):
    program = (
        "import sys, pathlib\nfrom gradfix.checkpoints.writing.lock import OutputLock\n"
        f"with OutputLock(pathlib.Path({str(tmp_path / 'out')!r})):\n    print('held', flush=True); sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(GradfixError, match=f"process {process.pid} on"), OutputLock(tmp_path / "out"):
            pass
        process.kill()
    with OutputLock(tmp_path / "out"):  # the killed process left its record
        pass
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "text",
    ["", "{", "[1]", '{"pid": "x"}', '{"pid": -1}', f'{{"pid": {10**20}}}', "[" * 9_000, "9" * 5_000, "\xff"],
)
def test_a_record_that_says_nothing_is_taken_over(tmp_path, text):
    lock = OutputLock(tmp_path / "out")
    lock.path.write_text(text)
    with lock:
        assert json.loads(lock.path.read_text())["pid"] == os.getpid()


def test_a_pid_that_belongs_to_a_new_process_is_taken_over(tmp_path):
    lock = OutputLock(tmp_path / "out")
    write_record(lock.path, started="1")
    with lock:
        pass


def test_where_locks_silently_succeed_the_record_decides(tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", lambda descriptor, operation: None)
    lock = OutputLock(tmp_path / "out")
    write_record(lock.path, started=_start_time(os.getpid()))
    with pytest.raises(GradfixError, match=f"process {os.getpid()}"), lock:
        pass
    write_record(lock.path, host="elsewhere")
    with pytest.raises(GradfixError, match=f"on elsewhere since then.*delete {lock.path}"), lock:
        pass


def test_two_runs_that_both_have_the_lock_do_not_mix(tmp_path, monkeypatch):
    """The second resumes what the first still writes: one of them publishes, whole; the other fails."""
    monkeypatch.setattr(OutputLock, "__enter__", lambda self: self)
    monkeypatch.setattr(OutputLock, "__exit__", lambda self, *error: None)
    first = CheckpointWriter(tmp_path / "out", SPECS, identity={}, shard_size=16)

    def both():
        with first:
            for name in "ab":
                first.write(name, [torch.full((4,), 1.0)])
            first._background.drain()
            with CheckpointWriter(tmp_path / "out", SPECS, identity={}, shard_size=16, resume=True) as second:
                assert second.done == {"a"}
                for name in "bc":
                    second.write(name, [torch.full((4,), 2.0)])
            first.write("c", [torch.full((4,), 1.0)])

    with pytest.raises(GradfixError, match="ENOENT"):
        both()
    assert os.listdir(tmp_path) == ["out"]
    data = [path.read_bytes()[-16:] for path in sorted((tmp_path / "out").glob("*.safetensors"))]
    assert data == [torch.full((4,), value).numpy().tobytes() for value in (1.0, 2.0, 2.0)]


def test_a_lock_file_that_is_a_link_is_not_followed(tmp_path):
    lock = OutputLock(tmp_path / "out")
    (tmp_path / "precious").write_text("text")
    lock.path.symlink_to("precious")
    with pytest.raises(GradfixError, match="gradfix-lock"), lock:
        pass
    assert (tmp_path / "precious").read_text() == "text"
