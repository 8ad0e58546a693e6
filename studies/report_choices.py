"""Reports of the studies of the method's parts: masks, votes, right signs, merging."""

import math

from gradfix.evaluation.intervals import Interval
from gradfix.transport.comparison import CONTROL, LABELS, ZERO_SHOT
from studies.cells import Cell, Table, budgets, by_draw, grouped, mean_of, method_table, paired, validated
from studies.figures import Curves, Dots, Panel
from studies.report import CHOSEN, Records, Report, curve, intervals, level, percent

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


def masks(records: Records) -> Report:
    """Show the study of this name.

    Args:
        records: Of its whole cells.

    Returns:
        Its part of the page.
    """
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
    groups = {f"{budget} a class": intervals(found, order, MASK_LABELS) for budget, found in columns.items()}
    note = (
        f"{CHOSEN} Soft under oracle signs is agreement, since one ballot has one margin. Magnitude keeps what is "
        "within a factor of 2 of the oracle's size, whatever the signs."
    )
    return Report(tables, Dots(groups, "accuracy, %") if groups else None, note)


VOTE_LABELS = {**LABELS, "gradfix": "majority vote, agreement", "mean": "mean vote, agreement"}


def votes(records: Records) -> Report:
    """Show the study of this name.

    Args:
        records: Of its whole cells.

    Returns:
        Its part of the page.
    """
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
        series = {VOTE_LABELS[name]: curve(cells, name) for name in drawn}
        panels.append(Panel(f"{budget} a class", series, level(found, ZERO_SHOT)))
    note = (
        "The upper tables choose each draw's α by the loss on the task's validation images (not more of them than "
        "test images), as the paper does; 0 is a candidate. The lower ones and the figure choose nothing: they show "
        "every α on test images, and no other table takes its α from them."
    )
    return Report(tables if columns else [], Curves(panels, "α", "accuracy, %") if panels else None, note)


def signs(records: Records) -> Report:
    """Show the study of this name.

    Args:
        records: Of its whole cells.

    Returns:
        Its part of the page.
    """
    tables, panels = [], []
    for (pair, task), found in grouped(records, lambda r: (r["pair"], r["task"])).items():
        columns = grouped(found, lambda record: record["voters"])
        right = {n: {r["draw"]: r["right"] for r in points} for n, points in columns.items()}
        shuffled = {n: {r["draw"]: r["right_shuffled"] for r in points} for n, points in columns.items()}
        cells = {n: mean_of(values) for n, values in right.items()}
        p = next(cell.value for cell in cells.values() if cell is not None)
        bounds = {n: Interval(hoeffding(n, p), None, None, 1, "hoeffding") for n in columns}
        equal = {n: Interval(majority_of_equals(n, p), None, None, 1, "binomial") for n in columns}
        title = f"{task}, {pair.replace('→', ' → ')}"
        rows: dict[str, list[Cell]] = {
            "right signs": list(cells.values()),
            "Hoeffding's bound with the measured p": list(bounds.values()),
            "if every coordinate had this p": list(equal.values()),
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
            "if all had the same p": [(float(n), percent(share)) for n, share in equal.items()],
        }
        panels.append(Panel(title, series, {"chance": 50.0}))
    note = (
        "Of the coordinates where τ_B is not 0, the share whose majority sign is τ_B's; ties count as wrong. p is the "
        "share measured with one sample. The bound 1 − exp(−2N(p − ½)²) and the binomial probability below it suppose "
        "independent samples and one p for every coordinate; where the measured share stays below the binomial one, "
        "coordinates differ in p, and more votes don't help those whose p is ½."
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


def majority_of_equals(samples: int, p: float) -> float:
    """Compute how often the majority of independent votes is right.

    Args:
        samples: N, odd.
        p: How often one vote is right.

    Returns:
        The probability of more than N/2 successes of a binomial.
    """
    from scipy.stats import binom  # type: ignore[import-untyped]

    return float(binom.sf(samples // 2, samples, p))


def merging(records: Records) -> Report:
    """Show the study of this name.

    Args:
        records: Of its whole cells.

    Returns:
        Its part of the page.
    """
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
        groups[f"{what.replace(', ', chr(10), 1)}, {budget} a class"] = intervals(found, order, labels)
    note = (
        "One model is judged on all tasks. One α for all of them, chosen by cross-fitting on the support sets: the "
        "smallest held-out loss summed over the tasks. TIES keeps the top 20 % of each task vector."
    )
    return Report(tables, Dots(groups, "accuracy, %") if groups else None, note)
