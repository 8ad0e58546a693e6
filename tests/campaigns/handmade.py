"""Wrong input as people make it: each command line is refused with one line, and writes nothing."""

import os
import shutil
from pathlib import Path

from tests.campaigns.results import Result
from tests.campaigns.runner import runner
from tests.campaigns.world import CHECK, LABELLED, MODELS

APPLY = f"apply {MODELS}"
OUT = "--output out"
EVALUATE = "evaluate --model target --task text-classification --data rows.jsonl"

COMMANDS = (
    # numbers
    *(f"{APPLY} {OUT} --alpha {value}" for value in ("nan", "inf", "-inf", "1e400", "one", "''")),
    *(f"{APPLY} {OUT} --shard-size {value}" for value in ("inf", "nan", "-1GB", "0", "1e400TB", "five")),
    f"{APPLY} {OUT} --seed 1.5",
    f"{APPLY} {OUT} --dtype float61",
    f"{APPLY} {OUT} --rounding stochastic --dtype float16",
    f"{APPLY} {OUT} --alpha 1e7 --dtype float16",
    f"{APPLY} {OUT} --votes votes.safetensors --mask confident --confidence 0.9",
    f"{APPLY} {OUT} --votes votes.safetensors --mask confident --confidence nan",
    "merge --task-vector tau.safetensors --output out",
    "merge --task-vector tau.safetensors --task-vector tau.safetensors --density 2 --output out",
    f"transport {MODELS} {LABELLED} --alpha 0,nan {OUT}",
    f"transport {MODELS} {LABELLED} --steps 0 {OUT}",
    f"votes --target-base target {LABELLED} --batch-size 0 {OUT}",
    f"votes --target-base target {LABELLED} --batch-size 99999999999999999999 {OUT}",
    f"votes --target-base target {LABELLED} --batch-size 2147483647 {OUT}",
    f"votes --target-base target {LABELLED} --max-length -1 {OUT}",
    f"votes --target-base target {LABELLED} --max-length 0 {OUT}",
    f"votes --target-base target {LABELLED} --memory 1 {OUT}",
    f"transport {MODELS} {LABELLED} --seed -1 {OUT}",
    f"transport {MODELS} {LABELLED} --seed 99999999999999999999 {OUT}",
    *(f"votes --target-base target {LABELLED} --device {name} {OUT}" for name in ("cuda:99", "meta", "hpu")),
    f"{EVALUATE} --device cuda:99",
    # places
    "apply --source-base none --source-tuned tuned --target-base target --output out",
    f"{APPLY} --output missing/folder/out",
    f"{APPLY} --output rows.jsonl/out",
    f"{APPLY} --output target",
    f"{APPLY} --output target --overwrite",
    f"{APPLY} --output base --overwrite",
    f"{APPLY} --output target/out",
    f"{APPLY} --output . --overwrite",
    f"{APPLY} --output ..",
    f"{APPLY} --output ''",
    f"apply --source-base '' --source-tuned tuned --target-base target {OUT}",
    "evaluate --model '' --task text-classification --data rows.jsonl",
    "merge --task-vector tau.safetensors --task-vector tau.safetensors --output tau.safetensors --overwrite",
    "extract --source-base base --source-tuned tuned --rank 2 --output base --overwrite",
    "extract --source-base base --source-tuned tuned --rank 0 --output out",
    "demo --output target --overwrite",
    "inspect /dev/zero",
    f"{APPLY} --output link --overwrite",
    f"{APPLY} --output {'n' * 300}",
    f"{EVALUATE} --output rows.jsonl",
    f"{EVALUATE} --output rows.jsonl --overwrite",
    f"{EVALUATE} --output recipe.yaml",
    f"{EVALUATE} --output target",
    f"{EVALUATE} --output missing/out",
    "report written --output missing/out.html",
    "report written --output rows.jsonl",
    "report written --output target",
    "report missing",
    "report target",
    "report rows.jsonl",
    "inspect missing",
    "inspect rows.jsonl",
    "inspect recipe.yaml",
    "inspect pipe",
    "run pipe",
    "run missing.yaml",
    "run target",
    "run rows.csv",
    "diff --source-base base --source-tuned tuned --output rows.jsonl",
    "diff --source-base base --source-tuned tuned --output target --overwrite",
    "diff --source-base base --source-tuned chat-tuned --output out",
    "check --source-base base --source-tuned base --target-base target",
    "check --source-base base --source-tuned chat-base --target-base target",
    # data and tasks
    f"{CHECK} --task text-clasification --support rows.jsonl",
    f"{CHECK} --task text-classification --support missing.jsonl",
    f"{CHECK} --task text-classification --support pipe",
    f"{CHECK} --task text-classification --support tau.safetensors",
    f"{CHECK} --task text-classification --support rows.jsonl --column text",
    f"{CHECK} --task text-classification --support rows.jsonl --column text=nothing",
    f"{CHECK} --task causal-lm --support rows.jsonl",
    f"{CHECK} --task zero-shot-image-classification --support rows.jsonl",
    f"votes --target-base target --task text-classification {OUT}",
    f"votes --target-base chat-target {LABELLED} {OUT} --data rows.jsonl",
    "apply",
    "transport --output out",
)


def handmade(root: Path, seed: int, count: int) -> Result:
    """Run wrong command lines.

    Args:
        root: A world.
        seed: Without effect: the cases are the same each time.
        count: At most so many.

    Returns:
        Which were not refused, refused without a line of their own, or changed a file.
    """
    result = Result("handmade bad input")
    (root / "link").symlink_to("target")
    os.mkfifo(root / "pipe")
    before = _snapshot(root)
    for command in COMMANDS[:count]:
        outcome = runner().run(*[word.strip("'") for word in command.split()], cwd=root)
        found = outcome.fault or ("" if outcome.status in {1, 2} else "not refused")
        if not found and outcome.status == 1 and not _told(outcome.stderr):
            found = f"no line of its own: {outcome.stderr[-200:]!r}"
        if not found and _snapshot(root) != before:
            found = f"changed files: {sorted(set(_snapshot(root)) ^ set(before))[:3]}"
        result.add(command, found, outcome)
        if (root / "out").exists():
            shutil.rmtree(root / "out") if (root / "out").is_dir() else (root / "out").unlink()
    (root / "link").unlink()
    (root / "pipe").unlink()
    return result


def _told(stderr: str) -> bool:
    lines = stderr.strip().splitlines()
    return bool(lines) and lines[-1].startswith(("gradfix ", "error: "))


def _snapshot(root: Path) -> dict[str, tuple[int, int]]:
    return {
        str(path.relative_to(root)): (path.lstat().st_size, path.lstat().st_mtime_ns)
        for path in sorted(root.rglob("*"))
        if not path.is_dir()
    }
