"""What is measured on one draw. Every setting is chosen by cross-fitting on the support set, as users' are."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from gradfix.demo.bench import Bench, bench, others
from gradfix.evaluation.binding import choose_support
from gradfix.recipes.settings import SETTINGS
from gradfix.transport.comparison import CONTROL, FEW_SHOT, ZERO_SHOT, Judge, Outcome, baseline, draw
from gradfix.transport.comparison.draws import Place
from gradfix.transport.context import SelectionContext
from gradfix.transport.methods import AddVector
from gradfix.vectors.control import shuffled
from gradfix.vectors.masks import mask
from gradfix.vectors.task_vector import TaskVector
from gradfix.votes import Votes
from studies.beyond import beyond
from studies.merges import merge_sources, merge_tasks
from studies.units import Record, Unit

ALPHAS = (0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)
SAMPLINGS = ("random", "herding", "k-medoids", "coreset")
VOTERS = (1, 3, 9, 27, 81, 243)
"""Odd, so that few coordinates tie."""


def _support(here: Bench, unit: Unit) -> list[Mapping[str, Any]]:
    return list(
        choose_support(
            here.model, here.pool, samples_per_class=unit.budget, sampling="random", seed=unit.draw
        )
    )


def _records(outcomes: Iterator[tuple[str, Outcome]]) -> list[Record]:
    return [{"method": name, **asdict(outcome)} for name, outcome in outcomes]


def baselines(unit: Unit) -> list[Record]:
    """Measure every method of `gradfix compare` but few-shot fine-tuning, which takes longer than all others.

    Args:
        unit: The draw.

    Returns:
        A record a method.
    """
    here = bench(unit.pair, unit.task, unit.test)
    judge = Judge(here.model, here.test)
    return _records(draw(judge, _support(here, unit), seed=unit.draw, oracle=here.oracle, few_shot=False))


def few_shot(unit: Unit) -> list[Record]:
    """Fine-tune the target on the support set alone.

    Args:
        unit: The draw.

    Returns:
        One record, with the score on every other task.
    """
    here = bench(unit.pair, unit.task, unit.test)
    judge = Witness(here.model, here.test, others=others(unit.pair, unit.task, unit.test))
    found = dict(draw(judge, _support(here, unit), seed=unit.draw, methods=(), few_shot=True))
    # The draw measured the new base as it is first.
    return [{"method": FEW_SHOT, **asdict(found[FEW_SHOT]), **judge.kept[1]}]


@dataclass
class Witness(Judge):
    """A judge who also asks what is left of the other tasks, and remembers each answer.

    Attributes:
        others: The other tasks and their encoded images, by name.
        kept: Scores on them, one mapping an outcome, in order.
    """

    others: Mapping[str, Any] = field(default_factory=dict)
    kept: list[dict[str, float]] = field(default_factory=list)

    def measure(
        self, setting: Mapping[str, float], seconds: Callable[[], float], place: Place | None = None
    ) -> Outcome:
        """Measure the model where it stands, on all tasks.

        Args:
            setting: What brought it there.
            seconds: Tells how long its method took so far.
            place: Of which what was measured serves again.

        Returns:
            The outcome; its retention is the mean over the other tasks.
        """
        outcome = super().measure(setting, seconds, place)
        scores = {
            f"retained_{name}": self.model.evaluate(rows, task=task).score
            for name, (task, rows) in self.others.items()
        }
        self.kept.append(scores)
        mean = float(np.mean(list(scores.values()))) if scores else None
        return Outcome(outcome.score, outcome.loss, outcome.setting, mean, outcome.seconds)


def retention(unit: Unit) -> list[Record]:
    """Measure what transports leave of the other tasks.

    Args:
        unit: The draw.

    Returns:
        A record a method, with the score on every other task.
    """
    here = bench(unit.pair, unit.task, unit.test)
    judge = Witness(here.model, here.test, others=others(unit.pair, unit.task, unit.test))
    methods = ("naive", "mean", "gradfix", CONTROL)
    records = _records(
        draw(judge, _support(here, unit), seed=unit.draw, methods=methods, oracle=here.oracle, few_shot=False)
    )
    return [{**record, **kept} for record, kept in zip(records, judge.kept, strict=True)]


def masks(unit: Unit) -> list[Record]:
    """Measure mask strategies under the support set's majority signs and under the oracle's.

    Args:
        unit: The draw.

    Returns:
        A record a strategy and kind of signs.
    """
    here = bench(unit.pair, unit.task, unit.test)
    oracle = here.oracle
    noisy = ("gradfix", "force", "soft", "random", "naive", CONTROL)
    exact = [_oracle(name, here.model.vector, oracle) for name in ("agreement", "force", "magnitude")]
    judge = Judge(here.model, here.test)
    return _records(
        draw(judge, _support(here, unit), seed=unit.draw, methods=noisy, others=exact, few_shot=False)
    )


def _oracle(strategy: str, tau: TaskVector, oracle: TaskVector | None) -> AddVector:
    name, vector = f"oracle {strategy}", mask(tau, oracle, strategy=strategy)
    return AddVector(name, name, vector=vector, grid=SETTINGS.alphas)


def alphas(unit: Unit) -> list[Record]:
    """Measure every α, on test and on validation images: what is chosen from them is chosen by who reads them.

    Args:
        unit: The draw.

    Returns:
        A record a method and α; α = 0 is the method of doing nothing.
    """
    here = bench(unit.pair, unit.task, unit.test)
    model, support = here.model, _support(here, unit)

    def record(method: str, alpha: float) -> Record:
        found, validated = model.evaluate(here.test), model.evaluate(here.validation)
        return {
            "method": method,
            "alpha": alpha,
            "score": found.score,
            "loss": found.loss,
            "validation_loss": validated.loss,
        }

    records = [record(ZERO_SHOT, 0.0)]
    with SelectionContext(model, support, [range(len(support))], seed=unit.draw) as context:
        for name in ("gradfix", "mean", "force", "random", "naive", CONTROL):
            delta, _ = baseline(name, model.vector, SETTINGS, unit.draw).build(context, {"alpha": 1.0})
            for alpha in ALPHAS:
                model.move(delta, alpha)
                records.append(record(name, alpha))
            model.restore()
    return records


def samplings(unit: Unit) -> list[Record]:
    """Measure GradFix and its control on support sets chosen in four ways from a random half of the pool.

    Herding and k-medoids would choose the same samples in every draw of a fixed pool; of halves they don't.

    Args:
        unit: The draw.

    Returns:
        A record a sampling and method.
    """
    here = bench(unit.pair, unit.task, unit.test)
    order = np.random.default_rng(unit.draw).permutation(len(here.pool))
    half = [here.pool[index] for index in sorted(order[: len(order) // 2].tolist())]
    judge = Judge(here.model, here.test)
    methods = ("gradfix", CONTROL)
    records: list[Record] = []
    for sampling in SAMPLINGS:
        support = choose_support(
            here.model,
            half,
            samples_per_class=unit.budget,
            sampling=sampling,  # type: ignore[arg-type]
            seed=unit.draw,
        )
        found = _records(draw(judge, support, seed=unit.draw, methods=methods, few_shot=False))
        records += [{"sampling": sampling, **record} for record in found]
    return records


def signs(unit: Unit) -> list[Record]:
    """Count how many majority signs are τ_B's as samples are added, one random order a draw.

    Args:
        unit: The draw.

    Returns:
        A record a number of samples: shares of the coordinates where τ_B is not 0.
    """
    here = bench(unit.pair, unit.task, unit.test)
    if here.oracle is None:
        return []
    order = np.random.default_rng(unit.draw).permutation(len(here.pool))[: VOTERS[-1]].tolist()
    total: Votes | None = None
    records: list[Record] = []
    done = 0
    for count in VOTERS:
        more = here.model.votes([here.pool[index] for index in order[done:count]], seed=unit.draw)
        total, done = more if total is None else total + more, count
        records.append({"voters": count, **_right(total, here.oracle), **_right_of(total, here)})
    return records


def _right(votes: Votes, truth: TaskVector) -> Record:
    right = tied = known = 0
    for name in truth.specs:
        exact, found = truth.read(name).sign(), votes.read(name).sign()
        there = exact != 0
        known += int(there.sum())
        right += int(((found == exact) & there).sum())
        tied += int(((found == 0) & there).sum())
    return {"right": right / known, "tied": tied / known}


def _right_of(votes: Votes, here: Bench) -> Record:
    """The same share for the shuffled control's signs: what agreement by chance looks like."""
    assert here.oracle is not None
    return {"right_shuffled": _right(votes, shuffled(here.oracle, 0))["right"]}


EXPERIMENTS: dict[str, Callable[[Unit], list[Record]]] = {
    "baselines": baselines,
    "few-shot": few_shot,
    "beyond": beyond,
    "retention": retention,
    "masks": masks,
    "alphas": alphas,
    "samplings": samplings,
    "signs": signs,
    "merge-tasks": merge_tasks,
    "merge-sources": merge_sources,
}
"""By name, what measures a unit."""
