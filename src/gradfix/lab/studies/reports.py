"""What each study shows: its tables, its figure, and its caption, all from records."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from gradfix.comparison import CONTROL, FEW_SHOT, FULL, LABELS, ORACLE, ZERO_SHOT
from gradfix.intervals import Interval
from gradfix.lab.figures import Bars, Curves, Figure, Panel
from gradfix.lab.studies.bench import CLOSE, INDEPENDENT
from gradfix.lab.studies.experiments import FEW_SHOT_RATES, FEW_SHOT_STEPS, MANY, SAMPLINGS
from gradfix.lab.studies.tables import (
    Cell,
    Table,
    budgets,
    by_draw,
    grouped,
    mean_of,
    method_table,
    paired,
    validated,
    where,
)
from gradfix.lab.studies.units import Record

Records = Sequence[Record]
CHOSEN = "α and, for fine-tuning, learning rate and steps are chosen by cross-fitting on the support set."


@dataclass(frozen=True)
class Report:
    """A study's part of the page.

    Attributes:
        tables: In order.
        figure: The figure, or None where nothing is measured yet.
        note: What a reader must know to read them.
    """

    tables: Sequence[Table]
    figure: Figure | None
    note: str


@dataclass(frozen=True)
class Study:
    """A study and how it is shown.

    Attributes:
        title: What it asks.
        report: Makes its part of the page from its records.
    """

    title: str
    report: Callable[[Records], Report] = field(repr=False)


def percent(cell: Interval) -> Interval:
    """Scale a share to per cent.

    Args:
        cell: A share with its interval.

    Returns:
        The same times 100.
    """
    low, high = (None if end is None else 100 * end for end in (cell.low, cell.high))
    return Interval(100 * cell.value, low, high, cell.n, cell.method)


def _curve(columns: Mapping[str, Records], method: str) -> list[tuple[float, Interval]]:
    cells = [(float(x), mean_of(by_draw(records, method))) for x, records in columns.items()]
    return [(x, percent(cell)) for x, cell in cells if cell is not None]


def _level(records: Records, method: str) -> dict[str, float]:
    cell = mean_of(
        {number: score for number, score in enumerate(r["score"] for r in where(records, method=method))}
    )
    return {} if cell is None else {LABELS.get(method, method): 100 * cell.value}


def _panel(title: str, records: Records) -> Panel:
    columns = budgets(records)
    series = {
        LABELS[name]: _curve(columns, name)
        for name in ("gradfix", "mean", CONTROL, "naive", FEW_SHOT, ORACLE)
    }
    levels = {**_level(records, ZERO_SHOT), **_level(records, FULL)}
    return Panel(title, {label: points for label, points in series.items() if points}, levels)


def _three(title: str, records: Records, value: str = "score") -> list[Table]:
    columns = budgets(records)
    return [
        method_table(f"{title}: accuracy, %", columns, value=value),
        method_table(
            f"{title}: difference to the new base as it is, points", columns, value=value, against=ZERO_SHOT
        ),
        method_table(
            f"{title}: difference to the shuffled control, points",
            columns,
            value=value,
            against=CONTROL,
            methods=["mean", "force", "soft", "gradfix", FEW_SHOT],
        ),
    ]


FEW_SHOT_NOTE = (
    f"Few-shot fine-tuning chooses from learning rates {' and '.join(f'{rate:g}' for rate in FEW_SHOT_RATES)} "
    f"and {', '.join(map(str, FEW_SHOT_STEPS))} full-batch steps of AdamW, or none; on four folds up to {MANY} "
    "samples, on two above."
)


def _main(records: Records) -> Report:
    tables: list[Table] = []
    panels = []
    for task, found in _by_task(records).items():
        tables += _three(f"{task}, A → B", found)
        panels.append(_panel(task, found))
    note = f"{CHOSEN} {FEW_SHOT_NOTE} Full fine-tuning and the oracle see the whole training set of the task."
    return Report(tables, _curves(panels), note)


def _by_task(records: Records) -> dict[str, list[Record]]:
    order = list(dict.fromkeys(record["task"] for record in records))
    found = grouped(records, lambda record: record["task"])
    return {task: found[task] for task in sorted(order, key=lambda task: (task != "digits", task))}


def _curves(panels: Sequence[Panel]) -> Curves | None:
    return Curves(panels, "samples a class", "accuracy, %") if panels else None


def _pairs(records: Records) -> Report:
    titles = {
        INDEPENDENT: "A → B, pre-trained independently",
        CLOSE: "B → B-next, the next release",
    }
    tables: list[Table] = []
    panels = []
    for pair, title in titles.items():
        found = where(records, pair=pair)
        if found:
            tables += _three(f"digits, {title}", found)
            panels.append(_panel(title, found))
    return Report(tables, _curves(panels), f"{CHOSEN} {FEW_SHOT_NOTE}")


MASK_LABELS = {
    **LABELS,
    "gradfix": "majority signs, agreement",
    "force": "majority signs, force",
    "soft": "majority signs, soft",
    "random": "no signs, random half",
    "naive": "no signs, none (naive)",
    "oracle agreement": "oracle signs, agreement",
    "oracle force": "oracle signs, force",
    "oracle magnitude": "oracle magnitudes, magnitude",
}
MASK_ORDER = (ZERO_SHOT, "gradfix", "soft", "force", "random", "naive", CONTROL)
EXACT_ORDER = ("oracle agreement", "oracle force", "oracle magnitude")


def _masks(records: Records) -> Report:
    columns = budgets(records)
    order = [*MASK_ORDER, *EXACT_ORDER]
    tables = [
        method_table("digits, A → B: accuracy, %", columns, labels=MASK_LABELS, methods=order),
        method_table(
            "difference to the new base as it is, points",
            columns,
            labels=MASK_LABELS,
            methods=order,
            against=ZERO_SHOT,
        ),
        method_table(
            "difference to the shuffled control, points",
            columns,
            labels=MASK_LABELS,
            methods=order,
            against=CONTROL,
        ),
    ]
    groups = {f"{budget} a class": _intervals(found, order, MASK_LABELS) for budget, found in columns.items()}
    note = (
        f"{CHOSEN} Soft under oracle signs is agreement, since one ballot has one margin. Magnitude keeps what is "
        "within a factor of 2 of the oracle's size, whatever the signs."
    )
    return Report(tables, Bars(groups, "accuracy, %") if groups else None, note)


def _intervals(records: Records, methods: Sequence[str], labels: Mapping[str, str]) -> dict[str, Interval]:
    cells = {labels.get(method, method): mean_of(by_draw(records, method)) for method in methods}
    return {label: percent(cell) for label, cell in cells.items() if cell is not None}


VOTE_LABELS = {**LABELS, "gradfix": "majority vote, agreement", "mean": "mean vote, agreement"}


def _votes(records: Records) -> Report:
    columns = budgets(validated(records))
    title = "digits, A → B, α chosen on validation images"
    tables = [
        method_table(f"{title}: accuracy, %", columns, labels=VOTE_LABELS),
        method_table("difference to the mean vote, points", columns, labels=VOTE_LABELS, against="mean"),
        method_table(
            "difference to the shuffled control, points", columns, labels=VOTE_LABELS, against=CONTROL
        ),
    ]
    panels = []
    drawn = ("gradfix", "mean", CONTROL, "naive")
    for budget, found in budgets(records).items():
        by_alpha = grouped([r for r in found if r["alpha"]], lambda record: record["alpha"])
        cells = {f"{alpha:g}": points for alpha, points in by_alpha.items()}
        title = f"digits, A → B, {budget} a class, every α"
        tables.append(method_table(f"{title}: accuracy, %", cells, labels=VOTE_LABELS, corner="α"))
        rows = {
            f"majority − {VOTE_LABELS[name]}": [
                paired(by_draw(points, "gradfix"), by_draw(points, name)) for points in cells.values()
            ]
            for name in ("mean", CONTROL)
        }
        tables.append(Table(f"{title}: difference, points", "α", list(cells), rows, points=True))
        series = {VOTE_LABELS[name]: _curve(cells, name) for name in drawn}
        panels.append(Panel(f"{budget} a class", series, _level(found, ZERO_SHOT)))
    note = (
        "The upper tables choose each draw's α by the loss on the task's validation images (not more of them than "
        "test images), as the paper does; 0 is a candidate. The lower ones and the figure choose nothing: they show "
        "every α on test images, and no other table takes its α from them."
    )
    return Report(tables if columns else [], Curves(panels, "α", "accuracy, %") if panels else None, note)


def _sampling(records: Records) -> Report:
    columns = budgets(records)
    gradfix: dict[str, list[Cell]] = {}
    against: dict[str, list[Cell]] = {}
    control: dict[str, list[Cell]] = {}
    for sampling in SAMPLINGS:
        cells = [where(found, sampling=sampling) for found in columns.values()]
        randoms = [where(found, sampling="random") for found in columns.values()]
        gradfix[sampling] = [mean_of(by_draw(cell, "gradfix")) for cell in cells]
        control[sampling] = [paired(by_draw(cell, "gradfix"), by_draw(cell, CONTROL)) for cell in cells]
        if sampling != "random":
            against[sampling] = [
                paired(by_draw(cell, "gradfix"), by_draw(other, "gradfix"))
                for cell, other in zip(cells, randoms, strict=True)
            ]
    base = [mean_of(by_draw(where(found, sampling="random"), ZERO_SHOT)) for found in columns.values()]
    heads = list(columns)
    corner = "samples a class"
    tables = [
        Table("digits, A → B, GradFix: accuracy, %", corner, heads, {LABELS[ZERO_SHOT]: base, **gradfix}),
        Table("difference to random sampling, points", corner, heads, against, points=True),
        Table(
            "difference to the shuffled control on the same samples, points",
            corner,
            heads,
            control,
            points=True,
        ),
    ]
    panel = Panel(
        "GradFix by support sampling",
        {
            name: [
                (float(x), percent(cell)) for x, cell in zip(heads, cells, strict=True) if cell is not None
            ]
            for name, cells in gradfix.items()
        },
        _level(records, ZERO_SHOT),
    )
    note = f"{CHOSEN} Each draw chooses from a random half of the pool, the same for all four."
    return Report(tables if columns else [], _curves([panel]) if columns else None, note)


def _merging(records: Records) -> Report:
    tables: list[Table] = []
    groups: dict[str, dict[str, Interval]] = {}
    labels = {**LABELS, CONTROL: "control: each τ shuffled, mean, merge-then-mask"}
    for key, found in grouped(
        records, lambda r: (r["experiment"] == "merge-sources", r["task"], r["budget"])
    ).items():
        sources, task, budget = key
        what = (
            f"{task} from sources A and B, to B-next"
            if sources
            else f"{task.replace('+', ' + ')} from A, to B: mean over the tasks"
        )
        title = f"{what}, {budget} samples a class"
        order = list(dict.fromkeys(record["method"] for record in found))
        tests = [] if sources else task.split("+")
        rows = {
            labels.get(method, method): [
                mean_of(by_draw(found, method)),
                *(mean_of(by_draw(found, method, f"score_{each}")) for each in tests),
            ]
            for method in order
        }
        tables.append(Table(f"{title}: accuracy, %", "", ["all" if tests else "score", *tests], rows))
        differences = {
            labels.get(method, method): [
                paired(by_draw(found, method), by_draw(found, ZERO_SHOT)),
                paired(by_draw(found, method), by_draw(found, CONTROL)),
            ]
            for method in order
            if method not in {ZERO_SHOT, CONTROL}
        }
        tables.append(
            Table(
                f"{title}: difference, points",
                "",
                ["to the new base as it is", "to the shuffled control"],
                differences,
                points=True,
            )
        )
        if not sources:
            groups[what] = _intervals(found, order, labels)
    note = (
        "One model is judged on all tasks. One α for all of them, chosen by cross-fitting on the support sets: the "
        "smallest held-out loss summed over the tasks. TIES keeps the top 20 % of each task vector."
    )
    return Report(tables, Bars(groups, "accuracy, %") if groups else None, note)


def _signs(records: Records) -> Report:
    tables, panels = [], []
    for (pair, task), found in grouped(records, lambda r: (r["pair"], r["task"])).items():
        columns = grouped(found, lambda record: record["voters"])
        right = {n: {r["draw"]: r["right"] for r in points} for n, points in columns.items()}
        shuffled = {n: {r["draw"]: r["right_shuffled"] for r in points} for n, points in columns.items()}
        cells = {n: mean_of(values) for n, values in right.items()}
        p = next(cell.value for cell in cells.values() if cell is not None)
        bounds = {n: Interval(hoeffding(n, p), None, None, 1, "hoeffding") for n in columns}
        title = f"{task}, {pair.replace('→', ' → ')}"
        rows: dict[str, list[Cell]] = {
            "right signs": list(cells.values()),
            "Hoeffding's bound with the measured p": list(bounds.values()),
            "against shuffled signs of τ_B": [mean_of(values) for values in shuffled.values()],
        }
        tables.append(Table(f"{title}: share of right signs, %", "samples", [str(n) for n in columns], rows))
        tables.append(
            Table(
                f"{title}: right signs above shuffled ones, points",
                "samples",
                [str(n) for n in columns],
                {"difference": [paired(right[n], shuffled[n]) for n in columns]},
                points=True,
            )
        )
        series = {
            "majority": [(float(n), percent(cell)) for n, cell in cells.items() if cell is not None],
            "Hoeffding's bound": [(float(n), percent(bound)) for n, bound in bounds.items()],
        }
        panels.append(Panel(title, series, {"chance": 50.0}))
    note = (
        "Of the coordinates where τ_B is not 0, the share whose majority sign is τ_B's; ties count as wrong. The bound "
        "1 − exp(−2N(p − ½)²) supposes that every coordinate is right with one and the same p and that samples are "
        "independent; p is the share measured with one sample. Where the measured share stays below the bound, "
        "coordinates differ in p: more votes don't help those whose p is ½."
    )
    return Report(tables, Curves(panels, "samples", "right signs, %") if panels else None, note)


def hoeffding(samples: int, p: float) -> float:
    """Bound from below how often a majority of independent votes is right.

    Hoeffding, "Probability inequalities for sums of bounded random variables", JASA 1963.

    Args:
        samples: N.
        p: How often one vote is right, above ½.

    Returns:
        1 − exp(−2N(p − ½)²).
    """
    return 1 - math.exp(-2 * samples * (p - 0.5) ** 2)


def _retention(records: Records) -> Report:
    columns = budgets(records)
    others = [
        key.removeprefix("retained_")
        for key in dict.fromkeys(k for r in records for k in r)
        if "retained_" in key
    ]
    tables = [
        method_table(
            "tuned for digits, A → B: mean accuracy on the other tasks, %", columns, value="retained"
        ),
        method_table(
            "difference to the new base as it is, points", columns, value="retained", against=ZERO_SHOT
        ),
        method_table(
            "difference to the shuffled control, points", columns, value="retained", against=CONTROL
        ),
    ]
    groups: dict[str, dict[str, Interval]] = {}
    for budget, found in columns.items():
        order = list(dict.fromkeys(record["method"] for record in found))
        rows = {
            LABELS.get(method, method): [
                mean_of(by_draw(found, method)),
                *(mean_of(by_draw(found, method, f"retained_{other}")) for other in others),
            ]
            for method in order
        }
        tables.append(Table(f"{budget} samples a class: accuracy, %", "", ["digits", *others], rows))
        cells = {LABELS.get(m, m): mean_of(by_draw(found, m, "retained")) for m in order}
        groups[f"{budget} a class"] = {
            label: percent(cell) for label, cell in cells.items() if cell is not None
        }
    figure = Bars(groups, "accuracy on the other tasks, %") if groups else None
    return Report(tables if columns else [], figure, CHOSEN)


STUDIES: dict[str, Study] = {
    "main": Study("Main results: all baselines", _main),
    "masks": Study("Mask strategies, under noisy and under oracle signs", _masks),
    "votes": Study("Majority against mean, over α", _votes),
    "sampling": Study("How the support set is chosen", _sampling),
    "merging": Study("Several tasks, and several sources", _merging),
    "signs": Study("How many signs are right", _signs),
    "pairs": Study("The independent pair and the close release", _pairs),
    "retention": Study("What is left of other tasks", _retention),
}
"""All studies, in the order of the page; the same keys as the plan's."""
