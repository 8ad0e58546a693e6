"""Interrupt, kill, resume: nothing under the final name, then the same bytes."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from gradfix.checkpoints import CheckpointWriter, TensorSpec
from gradfix.errors import GradfixError

pytestmark = pytest.mark.slow

SPECS = {f"layer.{number}.weight": TensorSpec(torch.float32, (64, 16)) for number in range(12)}
SHARD_SIZE = 2 * 64 * 16 * 4


def values(name):
    return torch.randn(64, 16, generator=torch.Generator().manual_seed(int(name.split(".")[1])))


def run(output, *, stop_at=None, error=KeyboardInterrupt, pause=0.0, identity=None, **options):
    """Write everything; raise before tensor number ``stop_at``."""
    options = {"shard_size": SHARD_SIZE, **options}
    computed = []
    with CheckpointWriter(output, SPECS, identity=identity or {"alpha": 1.0}, **options) as writer:
        for number, name in enumerate(SPECS):
            if number == stop_at:
                raise error
            if name not in writer.done:
                computed.append(name)
                writer.write(name, values(name).split(16))
                writer.facts[name] = {"seen": number}
                time.sleep(pause)
        writer.add_file("config.json", b"{}")
    return computed


def content(directory):
    return {
        str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }


@pytest.fixture
def whole(tmp_path):
    run(tmp_path / "whole")
    expected = content(tmp_path / "whole")
    shutil.rmtree(tmp_path / "whole")
    return expected


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("stop_at", [0, 1, 2, 3, 5, 11])
def test_interrupted_then_resumed_gives_the_same_bytes(tmp_path, whole, stop_at, error):
    output = tmp_path / "out"
    with pytest.raises(error):
        run(output, stop_at=stop_at, error=error)
    left = os.listdir(tmp_path)
    if stop_at < 3:  # no shard had been closed
        assert left == []
    else:
        assert len(left) == 1
        assert left[0].startswith("out.partial-")
        assert len(list((tmp_path / left[0]).glob("*.safetensors"))) == (stop_at - 1) // 2
        with pytest.raises(GradfixError, match="--resume or discard it with --restart"):
            run(output)
    computed = run(output, resume=True)
    assert len(computed) == len(SPECS) - (0 if stop_at < 3 else (stop_at - 1) // 2 * 2)
    assert os.listdir(tmp_path) == ["out"]
    assert content(output) == whole


def test_writer_says_what_is_left_behind(tmp_path):
    writer = CheckpointWriter(tmp_path / "out", SPECS, identity={}, shard_size=SHARD_SIZE)

    def write_some():
        with writer:
            for name in list(SPECS)[:5]:
                writer.write(name, [values(name)])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_some()
    assert writer.partial is not None
    assert writer.partial.is_dir()


def test_restart_discards(tmp_path, whole):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "out", stop_at=6)
    assert len(run(tmp_path / "out", restart=True)) == len(SPECS)
    assert os.listdir(tmp_path) == ["out"]
    assert content(tmp_path / "out") == whole
    with pytest.raises(GradfixError, match="exclude each other"):
        run(tmp_path / "other", restart=True, resume=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"identity": {"alpha": 2.0}}, "alpha is 2.0 now and was 1.0"),
        ({"identity": {"alpha": 1.0, "votes": "v"}}, 'votes is "v" now and was absent'),
        ({"shard_size": 10**6}, "shard_size is 1000000 now and was 8192"),
        ({"metadata": {"format": "np"}}, 'metadata is {"format": "np"} now and was {"format": "pt"}'),
    ],
)
def test_a_partial_output_of_something_else_is_refused(tmp_path, change, message):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "out", stop_at=6)
    before = content(tmp_path)
    with pytest.raises(GradfixError, match=message):
        run(tmp_path / "out", resume=True, **change)
    assert content(tmp_path) == before


def test_a_damaged_shard_is_written_again(tmp_path, whole):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "out", stop_at=9)
    (partial,) = tmp_path.iterdir()
    shards = sorted(partial.glob("*.safetensors"))
    assert len(shards) == 4
    damaged = bytearray(shards[1].read_bytes())
    damaged[-1] ^= 1
    shards[1].write_bytes(damaged)
    os.truncate(shards[2], 100)
    (partial / "stray").write_bytes(b"")
    assert len(run(tmp_path / "out", resume=True)) == len(SPECS) - 4
    assert content(tmp_path / "out") == whole


def test_a_shard_that_is_a_link_is_not_trusted(tmp_path, whole):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "out", stop_at=6)
    (partial,) = tmp_path.iterdir()
    shard = sorted(partial.glob("*.safetensors"))[0]
    shard.rename(tmp_path / "elsewhere")
    shard.symlink_to(tmp_path / "elsewhere")
    run(tmp_path / "out", resume=True)
    assert content(tmp_path / "out") == whole
    assert not any(path.is_symlink() for path in (tmp_path / "out").iterdir())


def test_a_broken_manifest_is_named(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "out", stop_at=6)
    (partial,) = tmp_path.iterdir()
    for text in ("{", "[]", '{"format": "gradfix-manifest", "version": 99}'):
        (partial / "gradfix-manifest.json").write_text(text)
        with pytest.raises(GradfixError, match=r"gradfix-manifest\.json: unreadable"):
            run(tmp_path / "out", resume=True)


def test_killed_anywhere_then_resumed_gives_the_same_bytes(tmp_path, whole):
    output = tmp_path / "out"
    program = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n" + (
        "from pathlib import Path\nfrom test_writer_resume import run\nimport sys\nprint('go', flush=True)\n"
        f"run(Path({str(output)!r}), pause=0.02, resume=True)\n"
    )
    chance = random.Random(0)
    kills = 0
    for _ in range(4):
        process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(chance.uniform(0.01, 0.2))
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        kills += process.returncode == -signal.SIGKILL
        if output.exists():
            assert content(output) == whole
            break
    assert kills > 0
    if not output.exists():
        run(output, resume=True)
    assert content(output) == whole
    # Killed between its last two steps, a run leaves its lock; the next run takes it over.
    assert set(os.listdir(tmp_path)) <= {"out", ".out.gradfix-lock"}
