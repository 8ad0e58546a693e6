"""Which units each study is made of, how large they are, and about how long they take."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import product

from gradfix.demo.bench import CLOSE, FAR, INDEPENDENT
from gradfix.demo.datasets import available_tasks
from studies.units import Unit


@dataclass(frozen=True)
class Scale:
    """How much to measure.

    Attributes:
        draws: Support sets a cell.
        test: Test images a task.
        quick: The small version: fewer budgets, and digits only but where a study needs more.
    """

    draws: int = 5
    test: int = 500
    quick: bool = False

    def budgets(self, full: Sequence[int], quick: Sequence[int]) -> Sequence[int]:
        """Choose the budgets of a study.

        Args:
            full: Samples a class in the full version.
            quick: In the small one.

        Returns:
            One of the two.
        """
        return quick if self.quick else full

    @property
    def tasks(self) -> tuple[str, ...]:
        """Digits first; the small version has no others."""
        return ("digits",) if self.quick else available_tasks()


QUICK = Scale(draws=2, test=200, quick=True)

Cell = tuple[str, str, str, int]  # experiment, pair, task, samples a class


def _main(scale: Scale) -> Iterable[Cell]:
    for task in scale.tasks:
        main = task == "digits"
        for budget in scale.budgets((1, 2, 5, 10, 50) if main else (1, 2), (1, 2)):
            yield "baselines", INDEPENDENT, task, budget
        for budget in scale.budgets((1, 2, 5, 10, 50) if main else (2,), (1,)):
            yield "few-shot", INDEPENDENT, task, budget


def _masks(scale: Scale) -> Iterable[Cell]:
    yield from product(["masks"], [INDEPENDENT], ["digits"], scale.budgets((2, 10), (2,)))


def _votes(scale: Scale) -> Iterable[Cell]:
    yield from product(["alphas"], [INDEPENDENT], ["digits"], scale.budgets((1, 2, 10), (2,)))


def _sampling(scale: Scale) -> Iterable[Cell]:
    yield from product(["samplings"], [INDEPENDENT], ["digits"], scale.budgets((1, 2, 5), (2,)))


def _merging(scale: Scale) -> Iterable[Cell]:
    three = [task for task in ("digits", "mnist", "letters") if task in available_tasks()]
    tasks = ["digits", "letters"] if scale.quick else three
    for budget in scale.budgets((2, 10), (2,)):
        yield "merge-tasks", INDEPENDENT, "+".join(tasks), budget
    for budget in scale.budgets((2, 10), (2,)):
        yield "merge-sources", FAR, "digits", budget


def _signs(scale: Scale) -> Iterable[Cell]:
    for task in scale.tasks:
        yield "signs", INDEPENDENT, task, 0
    yield "signs", CLOSE, "digits", 0


def _pairs(scale: Scale) -> Iterable[Cell]:
    for pair in (INDEPENDENT, CLOSE):
        for budget in scale.budgets((1, 2, 10), (2,)):
            yield "baselines", pair, "digits", budget
        for budget in scale.budgets((1, 2, 10), (1,)):
            yield "few-shot", pair, "digits", budget


def _retention(scale: Scale) -> Iterable[Cell]:
    for budget in scale.budgets((2, 10), (2,)):
        yield "retention", INDEPENDENT, "digits", budget
        if not scale.quick:
            yield "few-shot", INDEPENDENT, "digits", budget


NARROW = ("letters",)
"""Tasks on which the oracle is worth no more than four points: the share of such a gap is mostly noise."""


def _beyond(scale: Scale) -> Iterable[Cell]:
    for budget in scale.budgets((0, 1, 2, 5, 10), (0, 2)):
        for task in (name for name in scale.tasks if name not in NARROW):
            yield "beyond", INDEPENDENT, task, budget
            if budget:
                yield "few-shot", INDEPENDENT, task, budget
        if budget in (1, 5):
            yield "beyond", CLOSE, "digits", budget


CELLS: dict[str, Callable[[Scale], Iterable[Cell]]] = {
    "main": _main,
    "beyond": _beyond,
    "masks": _masks,
    "votes": _votes,
    "sampling": _sampling,
    "merging": _merging,
    "signs": _signs,
    "pairs": _pairs,
    "retention": _retention,
}
"""By study, the cells it needs; several studies may need one cell."""


def units_of(study: str, scale: Scale) -> list[Unit]:
    """List a study's units.

    Args:
        study: A key of :data:`CELLS`.
        scale: How much to measure.

    Returns:
        Every draw of every cell.
    """
    return [
        Unit(*cell, draw=draw, test=scale.test)
        for cell in dict.fromkeys(CELLS[study](scale))
        for draw in range(scale.draws)
    ]


def plan(studies: Iterable[str], scale: Scale) -> list[Unit]:
    """List the units of several studies, each once.

    Args:
        studies: Keys of :data:`CELLS`.
        scale: How much to measure.

    Returns:
        The cheap ones first: a stopped run then has most of the tables.
    """
    wanted = dict.fromkeys(unit for study in studies for unit in units_of(study, scale))
    return sorted(wanted, key=lambda unit: (cost(unit), unit.draw))


CLASSES = {"letters": 26}


def cost(unit: Unit) -> float:
    """Guess how long a unit takes beside others.

    Args:
        unit: The unit.

    Returns:
        Seconds on the machine where the guess was fitted; another one is as much slower as its first unit.
    """
    samples = unit.budget * sum(CLASSES.get(task, 10) for task in unit.task.split("+"))
    evaluation = unit.test / 500  # seconds of one pass over the test images, about
    fixed, each = {
        "baselines": (3.0 + 4.0 * evaluation, 0.1),
        "few-shot": (4.0 + 3.0 * evaluation, 1.0),
        "beyond": (12.0 + 2.0 * evaluation, 0.5),
        "retention": (2.0 + 8.0 * evaluation, 0.06),
        "masks": (2.0 + 4.0 * evaluation, 0.1),
        "alphas": (2.0 + 20.0 * evaluation, 0.02),
        "samplings": (8.0 + 4.0 * evaluation, 0.2),
        "signs": (5.0, 0.0),
        "merge-tasks": (6.0 + 12.0 * evaluation, 0.3),
        "merge-sources": (4.0 + 5.0 * evaluation, 0.1),
    }[unit.experiment]
    return fixed + each * samples
