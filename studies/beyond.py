"""What is measured of the methods past the paper: aligned, re-voted, warm-started, labelled by the source, chosen."""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from gradfix.alignment import Activations, Aligned, align, observe
from gradfix.alignment.rows import each_token
from gradfix.alignment.source import SourceRun
from gradfix.checkpoints import Checkpoint
from gradfix.demo.bench import BATCH, PAIRS, bench, task_of
from gradfix.demo.datasets import load_task
from gradfix.demo.pair import load
from gradfix.evaluation.binding import bind, choose_support, without_labels
from gradfix.evaluation.streaming.choice import load_target
from gradfix.recipes.settings import SETTINGS
from gradfix.tasks.data import Row
from gradfix.transport.candidates import Choice
from gradfix.transport.comparison import ORACLE, ZERO_SHOT, Judge
from gradfix.transport.context import SelectionContext, Setting, controls
from gradfix.transport.cross_validation import cross_validate
from gradfix.transport.folds import split_folds
from gradfix.transport.methods import AddVector, FineTune, Method
from gradfix.transport.selection import select
from gradfix.vectors.masks import mask
from gradfix.vectors.placement import place
from gradfix.vectors.similarity import similarity
from gradfix.vectors.task_vector import TaskVector
from studies.units import Record, Unit

INPUTS = 200
"""Unlabelled inputs that are aligned on: none of them was trained on, and none is judged on."""

STEPS = 4


@dataclass(frozen=True)
class Sight:
    """What one draw of unlabelled inputs gave.

    Attributes:
        aligned: τ in the target's coordinates, and its control; None for bases that are alike.
        labelled: The inputs that the tuned source is sure of, with its labels.
        stack: Keeps the files that the alignment lies in.
    """

    aligned: Aligned | None
    labelled: Sequence[Row]
    stack: ExitStack


@lru_cache(maxsize=64)
def sight(pair: str, task: str, test: int, seed: int) -> Sight:
    """Observe a pair's source on unlabelled inputs, and align.

    Args:
        pair: A key of :data:`gradfix.demo.bench.PAIRS`.
        task: The task.
        test: How many of the first test images are judged on: inputs are drawn behind them.
        seed: Of the draw.

    Returns:
        What was seen.
    """
    here = bench(pair, task, test)
    source, target = PAIRS[pair]
    base = Checkpoint.open(load(source))
    tau = TaskVector.between(base, load(f"{source}-{task}"))
    lab_task = load_task(task)
    images = [*lab_task.rows("validation"), *lab_task.rows("test")[test:]]
    drawn = np.random.default_rng(seed).permutation(len(images))[:INPUTS].tolist()
    inputs = without_labels(here.model.task, [images[index] for index in drawn])
    ours = task_of(task)
    bind(ours, base, tau, inputs)
    stack = ExitStack()
    activations = stack.enter_context(Activations(each_token(len(inputs))))
    source_model = load_target(ours, base, place(tau, base), batch_size=BATCH)
    every = range(len(inputs))
    observed = observe(source_model, inputs, None, activations, recorded=every, control_seed=seed)
    alike = similarity(base, Checkpoint.open(load(target)), tau)
    method = "regression" if alike is not None and alike < SETTINGS.close else "none"
    seen = SourceRun(inputs, every, observed, activations, method, alike, len(inputs))
    aligned = align(seen, here.model, control_seed=seed)
    return Sight(aligned, seen.pseudo_labels(here.model.task), stack)


def beyond(unit: Unit) -> list[Record]:
    """Measure the methods past the paper, those that a user ends up with beside their shuffled controls.

    Args:
        unit: The draw; with 0 samples a class there are unlabelled inputs only.

    Returns:
        A record a method.
    """
    here = bench(unit.pair, unit.task, unit.test)
    seen = sight(unit.pair, unit.task, unit.test, unit.draw)
    judge = Judge(here.model, here.test)
    records: list[Record] = [_record(ZERO_SHOT, judge, {})]
    # With no labelled sample at all, those that the source labelled select, each fold held out in turn.
    support: Sequence[Any] = (
        choose_support(
            here.model, here.pool, samples_per_class=unit.budget, sampling="random", seed=unit.draw
        )
        if unit.budget
        else seen.labelled
    )
    folds = split_folds(here.model.task.classes(support), SETTINGS.folds, unit.draw)
    swap = controls(here.model.vector, seen.aligned, unit.draw)
    aligned = seen.aligned.vector if seen.aligned else None

    def report(
        name: str, context: SelectionContext, way: Method, setting: Setting, *, control: bool = False
    ) -> None:
        both = [(name, way), *([(f"{name} control", way.control(swap))] if control else [])]
        for label, one in both:
            delta, alpha = one.build(context, setting)
            try:
                here.model.move(delta, alpha)
                records.append(_record(label, judge, setting))
            finally:
                here.model.restore()

    with SelectionContext(here.model, support, folds, seed=unit.draw, aligned=seen.aligned) as context:
        naive = AddVector("naive", "naive addition", vector=here.model.vector, grid=(1.0,))
        report("naive", context, naive, {"alpha": 1.0})
        if here.oracle is not None:
            # At the best of the grid by the samples at hand, as in the other studies.
            exact = AddVector(
                ORACLE, "oracle mask", vector=mask(here.model.vector, here.oracle), grid=SETTINGS.alphas
            )
            delta, alpha = exact.build(context, cross_validate(context, exact).setting)
            here.model.move(delta, alpha)
            records.append(_record(ORACLE, judge, {"alpha": alpha}))
            here.model.restore()
        if not unit.budget:
            if aligned is not None:
                straight = AddVector("aligned", "aligned addition", vector=aligned, grid=(1.0,))
                report("aligned", context, straight, {"alpha": 1.0}, control=True)
            chosen = select(context, steps=STEPS)
            report("labelled", context, chosen.way, chosen.candidate.setting, control=True)
            return records
        chosen = select(context, steps=STEPS)
        for name in ("gradfix", "confident", "aligned", "re-voted"):
            for way, candidate in zip(chosen.ways, chosen.candidates, strict=True):
                if candidate.name == name:
                    report(name, context, way, candidate.setting)
        report("auto", context, *_untrained(chosen), control=True)
        report("auto, fine-tuned", context, chosen.way, chosen.candidate.setting, control=True)
    return records


def _untrained(chosen: Choice) -> tuple[Method, Setting]:
    """What would have been chosen without training: where the last candidate, the trained one, set out from."""
    last = chosen.ways[-1]
    assert isinstance(last, FineTune)
    if last.start.way is None:
        return chosen.ways[0], chosen.candidates[0].setting
    return last.start.way, last.start.setting


def _record(method: str, judge: Judge, setting: Setting) -> Record:
    started = time.perf_counter()
    return {"method": method, **asdict(judge.measure(setting, lambda: time.perf_counter() - started))}
