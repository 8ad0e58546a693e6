"""Several processes and one: the same votes, the same bytes; and however one of them ends, all end, and say why."""

import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from gradfix.errors import GradfixError
from gradfix.ranks import watch
from gradfix.ranks.launch import PATIENCE, first_host, place
from gradfix.votes import Votes
from tests.builders import gradfix, job, tuned_from
from tests.ranks import jobs
from tests.ranks.world import ended, started, together

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models and samples in a folder, as a user has them."""
    root = tmp_path_factory.mktemp("ranks")
    made = job("text-classification", root)
    shutil.rmtree(root / "new")  # a close release: naive addition and masks are tried, too
    tuned_from(root / "new", root / "old", made.auto_class, scale=0.03)
    for name, rows in (("support", made.rows), ("test", made.held_out[:9])):
        (root / f"{name}.jsonl").write_text("".join(json.dumps(dict(row)) + "\n" for row in rows))
    return root


def commands(work: Path, out: Path) -> list[tuple[object, ...]]:
    """A count, a streamed count and a measurement; a transport that chooses its method; training; block by block."""
    out.mkdir()
    task = ("--task", "text-classification", "--batch-size", 4)
    models = ("--source-base", work / "old", "--source-tuned", work / "mine", "--target-base", work / "new")
    support = ("--support", work / "support.jsonl")
    # fmt: off
    return [
        ("votes", "--target-base", work / "new", *task, *support, "--output", out / "votes.safetensors"),
        ("votes", "--target-base", work / "new", *task, *support, "--memory", "1MB", "--output",
         out / "streamed.safetensors"),
        ("evaluate", "--model", work / "mine", *task, "--data", work / "test.jsonl", "--output", out / "measured.json"),
        ("transport", *models, *task, *support, "--test", work / "test.jsonl", "--alpha", "0.5,1", "--shard-size",
         "10KB", "--output", out / "resident"),
        ("transport", *models, *task, *support, "--alpha", "0.5", "--finetune-steps", 2, "--output", out / "trained"),
        ("transport", *models, *task, *support, "--alpha", "0.5,1", "--memory", "1MB", "--output",
         out / "fetched"),
    ]
    # fmt: on


def content(out: Path) -> dict[str, bytes]:
    """All that must not depend on how many ranks there were: not what holds times, or the page with the record."""
    found = {}
    for path in sorted(out.rglob("*")):
        if path.suffix == ".safetensors" or path.name in {"config.json", "model.safetensors.index.json"}:
            found[str(path.relative_to(out))] = path.read_bytes()
    for record in out.rglob("gradfix.json"):
        facts = json.loads(record.read_text())
        kept = {
            name: facts[name] for name in ("method", "alpha", "certificate", "votes", "support", "applied")
        }
        kept["applied"].pop("seconds")
        kept["applied"].pop("output")
        found[str(record.relative_to(out))] = json.dumps(_timeless(kept)).encode()
    measured = json.loads((out / "measured.json").read_text())
    found["measured"] = json.dumps(_timeless(measured)).encode()
    return found


def _timeless(value: object) -> object:
    if isinstance(value, dict):
        return {key: _timeless(each) for key, each in value.items() if key != "seconds"}
    return [_timeless(each) for each in value] if isinstance(value, list) else value


@pytest.fixture(scope="module")
def alone(work: Path) -> dict[str, bytes]:
    out = work / "one"
    together(1, jobs.commands, *commands(work, out), logs=work / "logs one")
    return content(out)


@pytest.mark.parametrize("size", [2, 4])
def test_the_result_does_not_depend_on_how_many_ranks_there_are(
    work: Path, alone: dict[str, bytes], size: int
) -> None:
    out = work / f"of {size}"
    together(size, jobs.commands, *commands(work, out), logs=work / f"logs {size}")
    assert len([name for name in alone if name.startswith("resident/model-")]) > 3, (
        "ranks have shards to share"
    )
    assert content(out) == alone
    assert not list(out.glob(".*")), "nothing is left beside the outputs"
    first, *others = sorted((work / f"logs {size}").iterdir())
    said = first.read_text()
    assert "wrote" in said
    counts = sum("--support" in command for command in commands(work, work / f"told {size}"))
    idle = "1 of 4 ranks have nothing to count: 9 samples make 3 batches of at most 4; --batch-size 2 gives each some"
    assert said.count(idle) == (counts if size == 4 else 0)
    assert [path.read_text() for path in others] == [""] * (size - 1)


@pytest.mark.parametrize("size", [2, 3])
def test_what_ranks_exchange_arrives_as_promised(tmp_path: Path, size: int) -> None:
    together(size, jobs.exchanged, logs=tmp_path)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("options", "of 2: try: seed: rank 1 has '1', rank 0 has '0'"),
        ("ways", "ranks went different ways: rank"),
        ("error", "the second one's"),
    ],
)
def test_one_rank_says_why_and_all_end(tmp_path: Path, how: str, said: str) -> None:
    assert ended(started(2, jobs.at_odds, how, logs=tmp_path), patience=60) == [1, 1]
    told = [path.read_text() for path in sorted(tmp_path.iterdir())]
    assert said in "".join(told)
    assert sum("FailedElsewhereError" in each.splitlines()[-1] for each in told) == 1, told


def test_a_rank_that_is_killed_is_missed_by_the_others(tmp_path: Path) -> None:
    codes = ended(started(2, jobs.at_odds, "killed", logs=tmp_path), patience=60)
    assert codes == [1, -9]
    assert "ended without a word" in (tmp_path / "0.txt").read_text()
    assert watch.MISSED * watch.PERIOD + watch.GRACE < 60


def writing(work: Path, out: Path) -> tuple[object, ...]:
    """A transport that writes several shards."""
    return next(each for each in commands(work, out) if "--shard-size" in each)


def written(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*.safetensors")}


def test_a_transport_that_is_killed_goes_on_to_the_same_bytes(work: Path, alone: dict[str, bytes]) -> None:
    out, logs = work / "killed", work / "logs of killed"
    command = writing(work, out)
    # When its shards are on the disk, and before the first rank has heard so.
    processes = started(2, jobs.killed_at, "shards", 1, *command, logs=logs)
    processes[1].join()
    assert ended(processes, patience=60) == [1, -9], "the other one ends within a minute"
    assert "gradfix transport: rank 0 of 2: rank 1 (process " in (logs / "0.txt").read_text()
    assert not (out / "resident").exists()
    assert list(out.glob("resident.partial-*"))
    together(2, jobs.command, *command, "--resume", logs=logs)
    assert written(out) == {name: data for name, data in alone.items() if name.startswith("resident/model-0")}
    assert [path.name for path in out.iterdir()] == ["resident"]


def test_ranks_that_read_other_files_are_refused(work: Path, tmp_path: Path) -> None:
    lines = (work / "support.jsonl").read_text().splitlines(keepends=True)
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder, rows in zip(folders, (lines, [*lines[1:], lines[0]]), strict=True):
        folder.mkdir()
        (folder / "support.jsonl").write_text("".join(rows))
    command = ("votes", "--target-base", work / "new", "--task", "text-classification", "--support", "support.jsonl",
               "--output", tmp_path / "votes.safetensors")  # fmt: skip
    codes = ended(started(2, jobs.elsewhere, folders, *command, logs=tmp_path / "logs"))
    assert codes == [1, 1]
    said = "".join(path.read_text() for path in (tmp_path / "logs").iterdir())
    assert len(said.splitlines()) == 1
    assert "gradfix votes: rank" in said
    assert "inputs: data: rank 1 has" in said


def test_a_command_that_is_not_shared_says_so_once(tmp_path: Path) -> None:
    codes = ended(started(2, jobs.command, "inspect", tmp_path, logs=tmp_path / "logs"))
    assert codes == [1, 1]
    said = "".join(path.read_text() for path in (tmp_path / "logs").iterdir())
    assert said.count("runs in one process, and 2 were started") == 1


def test_places_are_read_from_each_launcher() -> None:
    assert place({}) is None
    assert place({"RANK": "0", "WORLD_SIZE": "1"}) is None
    # What a batch script of Slurm sees: it was not started once a task.
    assert place({"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_JOB_ID": "7"}) is None
    found = place({
        "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_STEP_NUM_TASKS": "4", "SLURM_JOB_ID": "41007",
        "SLURM_STEP_NODELIST": "gpu[07-08]",
    })  # fmt: skip
    assert found is not None
    assert (found.rank, found.size, found.local, found.address, found.port) == (3, 4, 1, "gpu07", 21007)
    torchrun = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "9"}
    found = place(torchrun)
    assert found is not None
    assert (found.rank, found.local, found.address, found.port) == (1, 1, "a", 9)
    for wrong in ({"RANK": "2"}, {"WORLD_SIZE": "two"}):
        with pytest.raises(GradfixError, match=r"RANK|WORLD_SIZE"):
            place({**torchrun, **wrong})
    assert [first_host(nodes) for nodes in ("a", "a,b", "a[1-3],b", "gpu[007,9]", "")] == [
        "a", "a", "a1", "gpu007", "127.0.0.1"
    ]  # fmt: skip


@pytest.mark.campaign
def test_a_rank_may_be_killed_at_any_moment(work: Path, alone: dict[str, bytes]) -> None:
    draw = random.Random(int(os.environ["CAMPAIGN_SEED"]))
    expected = {name: data for name, data in alone.items() if name.startswith("resident/model-0")}
    out, logs = work / "killed at random", work / "logs of random"
    command = writing(work, out)
    started_at = time.monotonic()
    together(2, jobs.command, *command, logs=logs)
    seconds = time.monotonic() - started_at
    for _ in range(10):
        shutil.rmtree(out)
        out.mkdir()
        rank, after = draw.randrange(2), draw.uniform(0, seconds)
        processes = started(2, jobs.command, *command, logs=logs)
        time.sleep(after)
        processes[rank].kill()
        # one that was killed before it had joined can't be told from one that is late
        codes = ended(processes, patience=PATIENCE.total_seconds() + 60)
        case = f"rank {rank} killed after {after:.1f} s, {codes}: {[each.read_text() for each in logs.iterdir()]}"
        assert None not in codes, case
        if not (out / "resident").exists():
            assert codes[1 - rank] == 1, case
            together(2, jobs.command, *command, "--resume", logs=logs)
        assert written(out) == expected, case
        assert [path.name for path in out.iterdir()] == ["resident"], case


def test_torchrun_starts_what_one_process_does(work: Path, alone: dict[str, bytes], tmp_path: Path) -> None:
    counting = commands(work, tmp_path / "out")[0]
    launcher = (
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "gradfix",
    )
    ran = subprocess.run([*launcher, *map(str, counting)], capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr.count("wrote") == 1
    assert (tmp_path / "out" / "votes.safetensors").read_bytes() == alone["votes.safetensors"]


def test_days_of_votes_are_added_up_and_applied(work: Path, alone: dict[str, bytes], tmp_path: Path) -> None:
    lines = (work / "support.jsonl").read_text().splitlines(keepends=True)
    task = ("--task", "text-classification", "--batch-size", 4, "--target-base", work / "new")
    days = [tmp_path / "monday.safetensors", tmp_path / "tuesday.safetensors"]
    for path, part in zip(days, (lines[:4], lines[4:]), strict=True):
        path.with_suffix(".jsonl").write_text("".join(part))
        counted = gradfix("votes", *task, "--support", path.with_suffix(".jsonl"), "--output", path)
        assert counted.exit_code == 0, counted.stderr
    merged = gradfix("merge-votes", *days, "--output", tmp_path / "all.safetensors")
    assert merged.exit_code == 0, merged.stderr
    assert "9 samples" in merged.stderr
    whole = work / "whole.safetensors"
    whole.write_bytes(alone["votes.safetensors"])
    found, expected = Votes.load(tmp_path / "all.safetensors"), Votes.load(whole)
    assert sorted(found.sample_ids) == sorted(expected.sample_ids)
    # Other batches change votes of gradients within rounding of zero, as those of keys' biases are.
    ours, theirs = (
        torch.cat([each[name].flatten() for name in expected if "key.bias" not in name])
        for each in (found, expected)
    )
    assert (ours == theirs).float().mean() > 0.99
    applied = gradfix(
        "apply", "--source-base", work / "old", "--source-tuned", work / "mine", "--target-base", work / "new",
        "--votes", tmp_path / "all.safetensors", "--output", tmp_path / "applied",
    )  # fmt: skip
    assert applied.exit_code == 0, applied.stderr
    twice = gradfix("merge-votes", *days, days[0], "--output", tmp_path / "twice.safetensors")
    assert twice.exit_code == 1
    assert "monday.safetensors: can't add votes: 4 samples are in both" in twice.stderr
    assert not (tmp_path / "twice.safetensors").exists()
