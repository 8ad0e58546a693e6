"""Merging experiments: several tasks from one source, and several sources of one task."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from gradfix.demo.bench import CLOSE, FAR, Bench, bench
from gradfix.evaluation.binding import choose_support
from gradfix.recipes import MergeMethod, MergeOrder
from gradfix.recipes.settings import SETTINGS
from gradfix.transport.candidates import Candidate
from gradfix.transport.comparison import CONTROL, FULL, ZERO_SHOT
from gradfix.transport.context import Held, SelectionContext, Setting, StartingPoint, Swap
from gradfix.transport.cross_validation import cross_validate
from gradfix.transport.folds import split_folds
from gradfix.transport.methods import Method
from gradfix.vectors.control import shuffled
from gradfix.vectors.masks import mask
from gradfix.vectors.merging import merge
from gradfix.vectors.task_vector import TaskVector
from gradfix.votes import Votes
from studies.units import Record, Unit

BASELINES: tuple[MergeMethod, ...] = ("mean", "ties")
ORDERS: tuple[MergeOrder, ...] = ("merge-then-mask", "mask-then-merge")
Merge = Callable[[Sequence[TaskVector], Sequence[Votes]], TaskVector]


def _ways(seed: int) -> Iterator[tuple[str, Merge]]:
    """Every method and order, naive merging, and the control of the first masked one."""
    for method in BASELINES:
        yield f"{method}, not masked", partial(_plain, method)
        for order in ORDERS:
            yield f"{method}, {order}", partial(_masked, method, order)
    yield CONTROL, partial(_control, seed)


def _plain(method: MergeMethod, taus: Sequence[TaskVector], votes: Sequence[Votes]) -> TaskVector:
    return merge(taus, method=method)


def _masked(
    method: MergeMethod, order: MergeOrder, taus: Sequence[TaskVector], votes: Sequence[Votes]
) -> TaskVector:
    return merge(taus, votes, method=method, order=order)


def _control(seed: int, taus: Sequence[TaskVector], votes: Sequence[Votes]) -> TaskVector:
    strangers = [shuffled(tau, seed * len(taus) + t) for t, tau in enumerate(taus)]
    return merge(strangers, votes, method="mean", order="merge-then-mask")


def _one(number: int, taus: Sequence[TaskVector], votes: Sequence[Votes]) -> TaskVector:
    return taus[number]


def _one_masked(number: int, taus: Sequence[TaskVector], votes: Sequence[Votes]) -> TaskVector:
    return mask(taus[number], votes[number])


@dataclass
class Merging(Method):
    """Along what a merge makes of the votes of one or several supports, all dealt into as many folds."""

    make: Merge = field(kw_only=True)
    taus: Sequence[TaskVector] = field(kw_only=True)
    grounds: Sequence[tuple[SelectionContext, StartingPoint]] = field(kw_only=True)

    def candidates(self, context: SelectionContext, held: Held) -> Iterator[Setting]:
        """Try every α."""
        delta = context.scratch.keep(self.build(context, {"alpha": 1.0}, held)[0])
        for alpha in context.settings.alphas:
            context.model.move(delta, alpha)
            yield {"alpha": alpha}

    def build(self, context: SelectionContext, setting: Setting, held: Held = ()) -> tuple[TaskVector, float]:
        """Merge by the votes of the samples that take part."""
        votes = [each.votes_without(start, held) for each, start in self.grounds]
        return self.make(self.taus, votes), setting["alpha"]

    def control(self, swap: Swap) -> Method:
        """Merge the controls' vectors."""
        return Merging(
            self.name, self.label, make=self.make, taus=[swap(tau) for tau in self.taus], grounds=self.grounds
        )


def merge_tasks(unit: Unit) -> list[Record]:
    """Merge the task vectors of several tasks, and judge one model on all of them.

    One α for all: the candidate with the smallest held-out loss, averaged over the tasks.

    Args:
        unit: The draw; its tasks are joined by ``+``.

    Returns:
        A record a way of merging, with the score on each task and their mean.
    """
    tasks = unit.task.split("+")
    benches = [bench(unit.pair, task, unit.test) for task in tasks]
    supports = [_support(here, unit) for here in benches]
    taus = [here.model.vector for here in benches]
    records = [_judged(ZERO_SHOT, tasks, benches, None, 0.0)]
    with ExitStack() as stack:
        grounds = [
            (stack.enter_context(_ground(here, rows, unit)), StartingPoint())
            for here, rows in zip(benches, supports, strict=True)
        ]
        for name, make in _ways(unit.draw):
            way = Merging(name, name, make=make, taus=taus, grounds=grounds)
            choices = [cross_validate(context, way) for context, _ in grounds]
            merged, _ = way.build(grounds[0][0], {"alpha": 1.0})
            records.append(_judged(name, tasks, benches, merged, _joint_alpha(choices)))
    for task, here in zip(tasks, benches, strict=True):
        if here.oracle is not None:
            records.append(_judged(f"full fine-tuning on {task}", tasks, benches, here.oracle, 1.0))
    return records


def _ground(here: Bench, rows: Sequence[Any], unit: Unit) -> SelectionContext:
    folds = split_folds(here.model.task.classes(rows), SETTINGS.folds, unit.draw)
    return SelectionContext(here.model, rows, folds, seed=unit.draw)


def _joint_alpha(choices: Sequence[Candidate]) -> float:
    """The α with the smallest loss summed over tasks."""
    curves = [{setting["alpha"]: loss for setting, loss, _ in choice.curve} for choice in choices]
    tried = sorted(set.intersection(*(set(curve) for curve in curves)))
    return min(tried, key=lambda alpha: (sum(curve[alpha] for curve in curves), alpha))


def _judged(
    name: str, tasks: Sequence[str], benches: Sequence[Bench], delta: TaskVector | None, alpha: float
) -> Record:
    scores = {}
    for task, here in zip(tasks, benches, strict=True):
        try:
            if delta is not None:
                here.model.move(delta, alpha)
            scores[task] = here.model.evaluate(here.test).score
        finally:
            here.model.restore()
    mean = sum(scores.values()) / len(scores)
    return {"method": name, "score": mean, "alpha": alpha, **{f"score_{t}": s for t, s in scores.items()}}


def merge_sources(unit: Unit) -> list[Record]:
    """Merge the task vectors that two sources have of one task, and move them to the next release.

    Args:
        unit: The draw.

    Returns:
        A record a way of merging, and for each source alone.
    """
    benches = [bench(pair, unit.task, unit.test) for pair in (FAR, CLOSE)]
    here = benches[0]
    taus = [each.model.vector for each in benches]
    rows = _support(here, unit)
    alone: list[tuple[str, Merge]] = []
    for number, source in enumerate("AB"):
        alone.append((f"{source} alone, not masked", partial(_one, number)))
        alone.append((f"{source} alone, masked", partial(_one_masked, number)))
    records = [_judged(ZERO_SHOT, [unit.task], [here], None, 0.0)]
    with _ground(here, rows, unit) as context:
        grounds = [(context, StartingPoint())] * 2
        for name, make in [*alone, *_ways(unit.draw)]:
            way = Merging(name, name, make=make, taus=taus, grounds=grounds)
            merged, alpha = way.build(context, cross_validate(context, way).setting)
            records.append(_judged(name, [unit.task], [here], merged, alpha))
    if here.oracle is not None:
        records.append(_judged(FULL, [unit.task], [here], here.oracle, 1.0))
    return records


def _support(here: Bench, unit: Unit) -> list[Mapping[str, Any]]:
    return list(
        choose_support(
            here.model, here.pool, samples_per_class=unit.budget, sampling="random", seed=unit.draw
        )
    )
