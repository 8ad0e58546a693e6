"""A full disk, a failing disk, a missing permission: the message says what to do, and nothing is half-written."""

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gradfix.checkpoints import CheckpointWriter, TensorSpec, files, write_safetensors
from gradfix.checkpoints.writing import atomic
from gradfix.errors import GradfixError

pytestmark = pytest.mark.slow

ROWS, WIDTH = 64, 16
SPECS = {name: TensorSpec(torch.float32, (ROWS, WIDTH)) for name in "abcdef"}
SHARD = ROWS * WIDTH * 4


def run(output, *, stop=False, **options):
    with CheckpointWriter(output, SPECS, identity={}, shard_size=SHARD, **options) as writer:
        for name in SPECS:
            writer.write(name, torch.ones(ROWS, WIDTH).split(16))
            if stop:
                raise KeyboardInterrupt


def fail_pwrite(monkeypatch, code, after):
    """Let ``os.pwrite`` fail from its n-th call, with half a write before, as a disk that fills up."""
    real, calls = os.pwrite, []

    def pwrite(descriptor, data, offset):
        calls.append(len(data))
        if len(calls) > after:
            raise OSError(code, os.strerror(code))
        return real(descriptor, data[: max(1, len(data) // 2)], offset)

    monkeypatch.setattr(os, "pwrite", pwrite)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EACCES, errno.EDQUOT])
@pytest.mark.parametrize("after", [60, 200, 300])
def test_an_error_of_the_disk_can_be_resumed_from(tmp_path, monkeypatch, code, after):
    with monkeypatch.context() as patch:
        fail_pwrite(patch, code, after)
        with pytest.raises(GradfixError) as caught:
            run(tmp_path / "out")
    message = str(caught.value)
    assert "\n" not in message
    assert f"({errno.errorcode[code]})" in message
    assert message.startswith(str(tmp_path / "out"))
    assert ("bytes free" in message) == (code in {errno.ENOSPC, errno.EDQUOT})
    left = os.listdir(tmp_path)
    assert "out" not in left
    assert len(left) <= 1
    assert ("continue with --resume" in message) == bool(left)
    assert ("run again" in message) == (not left)
    run(tmp_path / "out", resume=True)
    assert os.listdir(tmp_path) == ["out"]


def test_short_writes_are_continued(tmp_path, monkeypatch):
    run(tmp_path / "plain")
    fail_pwrite(monkeypatch, errno.EIO, 10**9)
    run(tmp_path / "short")
    for path in (tmp_path / "plain").iterdir():
        assert (tmp_path / "short" / path.name).read_bytes() == path.read_bytes()


def test_a_disk_that_takes_nothing_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "pwrite", lambda descriptor, data, offset: 0)
    with pytest.raises(GradfixError, match="EIO"):
        run(tmp_path / "out")
    with pytest.raises(GradfixError, match="EIO"):
        write_safetensors(tmp_path / "x", SPECS, lambda name: [torch.ones(ROWS, WIDTH)], {})
    assert os.listdir(tmp_path) == []


def test_a_failing_fsync_is_not_ignored(tmp_path, monkeypatch):
    def fsync(descriptor):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(GradfixError, match="EIO"):
        run(tmp_path / "out")
    with pytest.raises(GradfixError, match="EIO"):
        write_safetensors(tmp_path / "x", SPECS, lambda name: [torch.ones(ROWS, WIDTH)], {})
    assert os.listdir(tmp_path) == []


def test_a_size_limit_of_the_process_acts_as_a_full_disk(tmp_path):
    """RLIMIT_FSIZE makes the kernel itself refuse (EFBIG), after a short write."""
    program = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "import resource, signal, torch\nfrom pathlib import Path\nfrom gradfix.checkpoints import *\n"
        "from gradfix.errors import GradfixError\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, (5000, {resource.RLIM_INFINITY}))\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "specs = {name: TensorSpec(torch.float32, (rows,)) for name, rows in (('a', 1000), ('b', 1500))}\n"
        "try:\n"
        f"    with CheckpointWriter(Path({str(tmp_path / 'out')!r}), specs, identity={{}}, shard_size=10) as writer:\n"
        "        for name, spec in specs.items():\n"
        "            writer.write(name, [torch.ones(spec.shape)])\n"
        "except GradfixError as error:\n    print(error)\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "model-00002-of-00002.safetensors: cannot write: File too large (EFBIG)" in result.stdout
    assert "continue with --resume" in result.stdout
    (partial,) = tmp_path.iterdir()
    assert sorted(os.listdir(partial)) == ["gradfix-manifest.json", "model-00001-of-00002.safetensors"]


def test_space_is_checked_before(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "free_bytes", lambda path: 100)
    needed = CheckpointWriter(tmp_path / "out", SPECS, identity={}, shard_size=SHARD).nbytes
    with pytest.raises(
        GradfixError, match=f"{needed} bytes needed, 100 free in {tmp_path}; free {needed - 100}"
    ):
        run(tmp_path / "out")
    with pytest.raises(GradfixError, match="100 free"):
        write_safetensors(tmp_path / "x", SPECS, lambda name: [torch.ones(ROWS, WIDTH)], {})
    assert os.listdir(tmp_path) == []


def test_a_parent_that_is_missing_or_a_file_or_a_loop_is_named(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "loop").symlink_to("loop")
    for parent in ("missing", "file", "loop"):
        for write in (run, lambda path: write_safetensors(path, {}, lambda name: [], {})):
            with pytest.raises(GradfixError, match=str(tmp_path / parent)):
                write(tmp_path / parent / "out")
    for path in (Path(), Path("/"), tmp_path / ".."):
        with pytest.raises(GradfixError, match="not a name for an output"):
            run(path)


def test_a_directory_without_permission_is_named(tmp_path, monkeypatch):
    def refuse(path, *rest, **more):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(os, "open", refuse)  # as root, modes alone refuse nothing
    with pytest.raises(GradfixError, match=r"EACCES.*choose an output in a directory you may write to"):
        run(tmp_path / "out")


def test_an_error_in_the_thread_reaches_the_caller_while_it_still_writes(tmp_path, monkeypatch):
    fail_pwrite(monkeypatch, errno.EIO, 100)
    asked = []

    def endless():
        while len(asked) < 10**6:
            asked.append(1)
            yield torch.ones(1, WIDTH)

    with (
        pytest.raises(GradfixError, match="EIO"),
        CheckpointWriter(
            tmp_path / "out", {"a": TensorSpec(torch.float32, (10**6, WIDTH))}, identity={}
        ) as writer,
    ):
        writer.write("a", endless())
    assert len(asked) < 10**6


@pytest.mark.parametrize("native", [True, False])
class TestReplacing:
    """With renameat2 and without it."""

    @pytest.fixture(autouse=True)
    def _system(self, monkeypatch, native):
        if not native:
            monkeypatch.setattr(atomic, "_renameat2", lambda *arguments: False)

    def test_existing_output_needs_overwrite(self, tmp_path):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "config.json").write_bytes(b"old")
        with pytest.raises(GradfixError, match="exists already; replace it with --overwrite"):
            run(tmp_path / "out")
        assert os.listdir(tmp_path) == ["out"]
        assert os.listdir(tmp_path / "out") == ["config.json"]

    def test_overwrite_keeps_the_old_until_the_new_is_whole(self, tmp_path):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "config.json").write_bytes(b"old")
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "out", overwrite=True, stop=True)
        assert os.listdir(tmp_path) == ["out"]
        assert (tmp_path / "out" / "config.json").read_bytes() == b"old"
        run(tmp_path / "out", overwrite=True)
        assert os.listdir(tmp_path) == ["out"]
        assert not (tmp_path / "out" / "config.json").exists()
        run(tmp_path / "new", overwrite=True)
        assert (tmp_path / "new").is_dir()

    def test_overwrite_puts_the_old_back_when_the_rename_fails(self, tmp_path, monkeypatch):
        run(tmp_path / "out")
        before = (tmp_path / "out" / "gradfix-manifest.json").stat().st_ino
        real = os.rename

        def rename(source, target):
            if str(target) == str(tmp_path / "out") and ".partial-" in str(source):
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            real(source, target)

        monkeypatch.setattr(os, "rename", rename)
        monkeypatch.setattr(atomic, "_renameat2", lambda *arguments: False)
        with pytest.raises(GradfixError, match="EIO"):
            run(tmp_path / "out", overwrite=True)
        assert (tmp_path / "out" / "gradfix-manifest.json").stat().st_ino == before

    def test_overwrite_spares_what_is_no_checkpoint(self, tmp_path):
        (tmp_path / "home").mkdir()
        (tmp_path / "home" / "thesis.tex").write_bytes(b"")
        (tmp_path / "file").write_bytes(b"")
        (tmp_path / "link").symlink_to("home")
        (tmp_path / "dangling").symlink_to("nowhere")
        for name in ("home", "file", "link", "dangling"):
            with pytest.raises(GradfixError, match="not replaced"):
                run(tmp_path / name, overwrite=True)
        assert (tmp_path / "home" / "thesis.tex").exists()

    def test_the_second_to_finish_replaces_nothing(self, tmp_path):
        def overtaken():
            with CheckpointWriter(tmp_path / "out", {}, identity={}):
                (tmp_path / "out").mkdir()
                (tmp_path / "out" / "theirs").write_bytes(b"")

        with pytest.raises(GradfixError, match="another run finished this output first"):
            overtaken()
        assert os.listdir(tmp_path / "out") == ["theirs"]

    def test_a_file_is_published_without_replacing(self, tmp_path):
        (tmp_path / "new").write_bytes(b"new")
        (tmp_path / "old").write_bytes(b"old")
        with pytest.raises(FileExistsError):
            atomic.publish(tmp_path / "new", tmp_path / "old")
        assert (tmp_path / "old").read_bytes() == b"old"
        atomic.publish(tmp_path / "new", tmp_path / "other")
        assert sorted(os.listdir(tmp_path)) == ["old", "other"]
