"""Carry fine-tunes of the demo's model A over to bases trained apart, of its size and of others, without a label.

``python benchmarks/shapes.py WORKDIR [--targets equal wider deeper smaller] [--tasks digits …] [--draws 5]
[--samples-per-class 5 …] [--more-inputs 1024 …]``

A draw is a choice of 256 unlabelled inputs, or more, from the task's training images. Nothing is chosen: α is 1, and
distillation is 100 steps of AdamW at 1e-4 on the same inputs with the tuned source's labels. With labelled samples,
``auto`` chooses among its methods by cross-fitting on them, few-shot fine-tuning among its rates and steps. The
targets are stored with the demo's models; a full fine-tune that is not (of other sizes, on clothing and letters) is
made in WORKDIR, two minutes of a core each. What was measured is kept there, too, and a stopped run goes on. With
``--write PAGE`` the page's table is replaced.
"""

import argparse
import itertools
import json
import math
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from gradfix.alignment import Aligned, align, run_source
from gradfix.checkpoints import Checkpoint
from gradfix.demo.bench import BATCH, task_of
from gradfix.demo.datasets import available_tasks, load_task
from gradfix.demo.models import save_directory
from gradfix.demo.pair import load, load_model, names, provenance
from gradfix.evaluation.binding import Rows, bind, choose_support
from gradfix.evaluation.evaluate import EncodedRows
from gradfix.evaluation.finetuning import finetune as train
from gradfix.evaluation.intervals import mean_interval
from gradfix.evaluation.target_model import TargetModel
from gradfix.recipes.settings import SETTINGS
from gradfix.transport.comparison import Judge, arrived
from gradfix.transport.context import SelectionContext
from gradfix.transport.folds import split_folds
from gradfix.transport.selection import select
from gradfix.vectors.apart import place_apart
from gradfix.vectors.task_vector import TaskVector

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from studies.pair.finetune import finetune

TARGETS = {"equal": "B", "wider": "wider", "deeper": "deeper", "smaller": "smaller"}
"""The stored base of each target's name."""

INPUTS, STEPS, RATE, TESTS = 256, 100, 1e-4, 1000

CELL = "target", "task", "draw"
"""What results are kept by."""

ROWS = {
    "zero-shot": "the new base, zero-shot",
    "aligned": "fitted to activations, block by block",
    "aligned control": "its control: τ shuffled",
    "answers": "last layer fitted to the answers",
    "answers control": "its control: τ shuffled",
    "distilled": "distillation: trained on the same inputs with the source's labels",
    "full": "full fine-tuning on all labels",
}

MORE = {
    "answers": "last layer fitted to the answers on {:,} inputs",
    "answers control": "its control: τ shuffled",
    "distilled": "distillation on these",
}
"""Rows of a larger number of inputs, which their keys end in."""

ALONE = ("digits", "mnist")
"""The tasks whose mean stands by itself beside that of all."""

LABELLED = {"auto": "`auto` with {} labelled a class", "few-shot": "few-shot fine-tuning on these"}
"""Rows of a number of labelled samples a class, which their keys end in."""


def main() -> None:
    """Measure what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workdir", type=Path)
    parser.add_argument("--targets", nargs="+", default=list(TARGETS), choices=list(TARGETS))
    parser.add_argument(
        "--tasks", nargs="+", default=list(available_tasks()), choices=list(available_tasks())
    )
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument(
        "--samples-per-class", type=int, nargs="*", default=[], help="with labelled samples, too"
    )
    parser.add_argument("--more-inputs", type=int, nargs="*", default=[], help="on so many, too")
    parser.add_argument("--write", type=Path, help="a page, whose table is replaced")
    asked = parser.parse_args()
    asked.workdir.mkdir(parents=True, exist_ok=True)
    results = asked.workdir / "shapes.jsonl"
    lines = results.read_text().splitlines() if results.exists() else []
    found = {tuple(one[key] for key in CELL): one for one in map(json.loads, lines)}
    wanted = {f"auto {budget}": budget for budget in asked.samples_per_class}
    for draw in range(asked.draws):
        for target, task in itertools.product(asked.targets, asked.tasks):
            one = found.setdefault((target, task, draw), dict(zip(CELL, (target, task, draw), strict=True)))
            before = one.get("scores", {})
            budgets = [budget for key, budget in wanted.items() if key not in before]
            scores = {}
            if budgets or not before:
                scores = measure(asked.workdir, target, task, draw, budgets, bare=bool(before))
            for count in asked.more_inputs:
                if f"answers {count}" not in before:
                    more = measure(asked.workdir, target, task, draw, [], bare=False, count=count)
                    scores |= {f"{key} {count}": more[key] for key in MORE}
            if not scores:
                continue
            one["scores"] = before | scores
            results.write_text("".join(json.dumps(each) + "\n" for each in found.values()))
            print(one, flush=True)
    text = table(
        [one for one in found.values() if one["target"] in asked.targets and one["task"] in asked.tasks]
    )
    print(text)
    if asked.write:
        before, _, rest = asked.write.read_text().partition("<!-- table -->\n")
        after = rest.partition("<!-- end of table -->\n")[2]
        asked.write.write_text(f"{before}<!-- table -->\n\n{text}\n\n<!-- end of table -->\n{after}")


def measure(
    workdir: Path,
    name: str,
    task_name: str,
    draw: int,
    budgets: Sequence[int],
    *,
    bare: bool,
    count: int = INPUTS,
) -> dict[str, float]:
    """Test accuracy of everything in :data:`ROWS` unless ``bare``, and in :data:`LABELLED` for each budget."""
    lab, task = load_task(task_name), task_of(task_name)
    base, tuned = Checkpoint.open(load("A")), load(f"A-{task_name}")
    tau = TaskVector.between(base, tuned)
    target, full = load(TARGETS[name]), full_finetune(workdir, TARGETS[name], task_name)
    pool = lab.rows("train")
    order = torch.randperm(len(pool), generator=torch.Generator().manual_seed(draw))[:count]
    inputs = [pool[place] for place in order.tolist()]
    checkpoint = Checkpoint.open(target)
    bind(task, checkpoint, tau, pool)
    with ExitStack() as stack:
        source = run_source(
            base,
            tau,
            task,
            pool,
            stack,
            align="regression",
            alike=0.0,
            apart=True,
            unlabelled=inputs,
            control_seed=draw,
            loading={"batch_size": BATCH},
        )
        assert source is not None
        model = TargetModel.load(task, checkpoint, place_apart(tau, checkpoint, task), batch_size=BATCH)
        test = model.encode(lab.rows("test")[:TESTS])
        found = align(source, model, control_seed=draw)
        assert found is not None
        scores: dict[str, float] = {}
        for budget in budgets:
            scores |= labelled(model, found, pool, test, budget, draw)
        if bare:
            return scores
        assert found.answers is not None
        assert found.control is not None
        assert found.answers.control is not None
        scores["zero-shot"] = model.evaluate(test).score
        vectors = {
            "aligned": found.vector,
            "aligned control": found.control,
            "answers": found.answers.vector,
            "answers control": found.answers.control,
            "full": TaskVector.between(target, full),
        }
        for key, vector in vectors.items():
            scores[key] = score(model, vector, test)
        rows = source.pseudo_labels(task)
        for _ in train(model, len(rows), model.encoder(rows), learning_rate=RATE, stops=[STEPS], seed=draw):
            scores["distilled"] = model.evaluate(test).score
        model.restore()
    return scores


def labelled(
    model: TargetModel, aligned: Aligned, pool: Rows, test: EncodedRows, budget: int, draw: int
) -> dict[str, float]:
    """Test accuracy of ``auto`` and of few-shot fine-tuning with so many labelled samples a class."""
    support = choose_support(model, pool, samples_per_class=budget, sampling="random", seed=draw)
    folds = split_folds(model.task.classes(support), SETTINGS.folds, draw)
    judge = Judge(model, test)
    with SelectionContext(model, support, folds, seed=draw, aligned=aligned) as ground:
        choice = select(ground, alike=0.0)
        ways = {one.name: (way, one) for way, one in zip(choice.ways, choice.candidates, strict=True)}
        ways["auto"] = choice.way, choice.candidate
        return {
            f"{key} {budget}": arrived(judge, ground, way, one.setting, ground.clock()).score
            for key, (way, one) in ways.items()
            if key in LABELLED
        }


def score(model: TargetModel, vector: TaskVector, test: EncodedRows) -> float:
    """Accuracy at α = 1; the model is at θ_B afterwards."""
    try:
        model.move(vector, 1.0)
        return model.evaluate(test).score
    finally:
        model.restore()


def full_finetune(workdir: Path, base: str, task: str) -> Path:
    """Directory of a base that was fine-tuned on all labels of a task: a stored one, or made where it is missing."""
    name = f"{base}-{task}"
    if name in names():
        return load(name)
    tuned = workdir / name
    if not tuned.exists():
        model = load_model(base)
        finetune(model, load_task(task), seed=provenance()["checkpoints"][base]["seed"])
        unfinished = workdir / f".{name}"
        save_directory(model.half(), unfinished)
        unfinished.rename(tuned)
    return tuned


def table(found: Sequence[Mapping[str, Any]]) -> str:
    """Accuracy by target and task, means over the draws, and the share of the gap that is closed."""
    if not found:
        return "Nothing was measured."
    lines = []
    draws = max(one["draw"] for one in found) + 1
    for target in dict.fromkeys(one["target"] for one in found):
        here = [one for one in found if one["target"] == target]
        tasks = list(dict.fromkeys(one["task"] for one in here))
        lines += [
            f"| {target}: accuracy, % | {' | '.join(tasks)} | share of the gap closed | on {' and '.join(ALONE)} |",
            "|---" * (len(tasks) + 3) + "|",
        ]
        budgets = sorted(
            {int(key.split()[1]) for one in here for key in one["scores"] if key.startswith("auto ")}
        )
        counts = sorted(
            {int(key.split()[1]) for one in here for key in one["scores"] if key.startswith("distilled ")}
        )
        labels = ROWS | {
            f"{key} {count}": label.format(count) for count in counts for key, label in MORE.items()
        }
        labels |= {
            f"{key} {budget}": label.format(budget) for budget in budgets for key, label in LABELLED.items()
        }
        for key, label in labels.items():
            have = {
                task: [one for one in here if one["task"] == task and key in one["scores"]] for task in tasks
            }
            drawn = {len(ones) for ones in have.values() if ones}
            if not drawn:
                continue
            few = (
                ""
                if min(drawn) == draws
                else f" (draws: {' to '.join(map(str, sorted({min(drawn), max(drawn)})))})"
            )
            cells = [
                f"{100 * fmean(one['scores'][key] for one in ones):.1f}" if ones else ""
                for ones in have.values()
            ]
            shares = [closed(here, key, tasks), closed(here, key, ALONE)]
            lines.append(f"| {label}{few} | {' | '.join([*cells, *shares])} |")
        lines.append("")
    return "\n".join([*lines, f"Means over {draws} draws of {INPUTS} inputs, {TESTS} test images at most."])


def closed(found: Sequence[Mapping[str, Any]], key: str, tasks: Sequence[str]) -> str:
    """Share of the gap from zero-shot to full fine-tuning, a mean over tasks, with its interval over draws of all."""
    shares: dict[int, dict[str, float]] = {}
    for one in found:
        if key in one["scores"] and one["task"] in tasks:
            low, high, here = (one["scores"][name] for name in ("zero-shot", "full", key))
            shares.setdefault(one["draw"], {})[one["task"]] = (here - low) / (high - low)
    values = [fmean(each.values()) for each in shares.values() if len(each) == len(tasks)]
    if key in ("zero-shot", "full") or not values:
        return ""
    found_in = mean_interval(values, bounds=(-math.inf, math.inf))
    if found_in.low is None or found_in.high is None:
        return f"{fmean(values):.0%}"
    return f"{fmean(values):.0%} ({found_in.low:.0%} to {found_in.high:.0%})"


if __name__ == "__main__":
    main()
