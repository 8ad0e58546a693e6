"""The whole vision table of `gradfix paper` on tiny models: a Hub on this machine, five tasks, one command, its time.

python benchmarks/paper.py [--output FOLDER] [--budgets 1 2 5 10] [--draws 5]

The models and data sets are of a few kilobytes, so the scores say nothing; what is measured is that the whole table
comes from ids alone, and how long everything but large models takes.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import datasets
import yaml

from tests import tiny
from tests.builders import tuned_from
from tests.fake_hub import FakeHub, serve

TASKS = ("eurosat", "svhn", "gtsrb", "resisc45", "dtd")
NAMES = ("red", "green", "blue")
TRAINING, TEST = 60, 90
COMMAND = (sys.executable, "-m", "gradfix", "paper", "vision")


def hub_of(root: Path) -> tuple[FakeHub, Path]:
    """A Hub with two bases, five fine-tunes of either and five data sets, and the study that names them."""
    hub = FakeHub()
    bases = {name: tiny.save_tiny_clip(root / name, seed=seed) for name, seed in (("old", 0), ("new", 2))}
    tasks = {}
    for name, base in bases.items():
        hub.push(f"tiny/{name}", base)
        for number, task in enumerate(TASKS):
            tuned = tuned_from(root / f"{name}-{task}", base, "AutoModel", scale=0.02 + 0.01 * number)
            hub.push(f"tiny/{name}_{task}", tuned)
    for number, task in enumerate(TASKS):
        splits = {
            "train": tiny.images(TRAINING, seed=2 * number),
            "test": tiny.images(TEST, seed=2 * number + 1),
        }
        label = datasets.ClassLabel(names=list(NAMES))
        hub.push_data(f"tiny/{task}", root / f"{task}-data", splits, image=datasets.Image(), label=label)
        tasks[task] = {
            "data": f"tiny/{task}", "templates": "prompts.txt", "classes": len(NAMES), "test_samples": TEST,
            "megabytes": 1,
        }  # fmt: skip
    (root / "prompts.txt").write_text("a photo of a {}.\nthe {} photo.\n")
    study = {
        "task": "zero-shot-image-classification",
        "source_base": "tiny/old",
        "source_tuned": "tiny/old_{task}",
        "target_base": "tiny/new",
        "default": list(TASKS),
        "tasks": tasks,
        "model_megabytes": [1, 1],
        "gigaflops": 0.001,
    }
    (root / "study.yaml").write_text(yaml.safe_dump(study))
    return hub, root / "study.yaml"


def timed(*arguments: object, **environment: str) -> float:
    """Run the command; its output goes to the terminal."""
    started = time.perf_counter()
    subprocess.run([*COMMAND, *map(str, arguments)], check=True, env={**os.environ, **environment})
    return time.perf_counter() - started


def main() -> None:
    """Measure the dry run of the package's own study, then the whole table of tiny models."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--output", type=Path, help="keep the table there")
    arguments.add_argument("--budgets", type=int, nargs="+", default=[1, 2, 5, 10], help="samples a class")
    arguments.add_argument("--draws", type=int, default=5)
    given = arguments.parse_args()
    budgets = [part for budget in given.budgets for part in ("--samples-per-class", budget)]
    with tempfile.TemporaryDirectory(prefix="gradfix-paper-") as name:
        root = Path(name)
        dry = timed("--output", root / "nothing", "--dry-run")
        hub, study = hub_of(root)
        with serve(hub) as endpoint:
            whole = timed(
                "--study", study, "--output", given.output or root / "table",
                "--target-tuned", "tiny/new_{task}", *budgets, "--seeds", given.draws,
                HF_ENDPOINT=endpoint, HF_HOME=str(root / "home"), NO_PROXY="127.0.0.1", HF_HUB_DISABLE_XET="1",
            )  # fmt: skip
    asked = f"{len(TASKS)} tasks, {len(given.budgets)} budgets, {given.draws} draws"
    print(f"\ndry run {dry:.2f} s; the whole table, {asked}: {whole:.0f} s on {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
