"""Reports of the studies that compare whole transports: main results, pairs, sampling, retention."""

from gradfix.demo.bench import CLOSE, INDEPENDENT
from gradfix.evaluation.intervals import Interval
from gradfix.transport.comparison import CONTROL, LABELS, ZERO_SHOT
from studies.cells import Cell, Table, budgets, by_draw, grouped, mean_of, method_table, paired, where
from studies.experiments import SAMPLINGS
from studies.figures import Dots, Panel
from studies.report import CHOSEN, FEW_SHOT_NOTE, Records, Report, curves, level, panel, percent, three
from studies.units import Record


def main(records: Records) -> Report:
    """Show the study of this name.

    Args:
        records: Of its whole cells.

    Returns:
        Its part of the page.
    """
    tables: list[Table] = []
    panels = []
    for task, found in _by_task(records).items():
        tables += three(f"{task}, A → B", found)
        panels.append(panel(task, found))
    note = f"{CHOSEN} {FEW_SHOT_NOTE} Full fine-tuning and the oracle see the whole training set of the task."
    return Report(tables, curves(panels), note)


def _by_task(records: Records) -> dict[str, list[Record]]:
    order = list(dict.fromkeys(record["task"] for record in records))
    found = grouped(records, lambda record: record["task"])
    return {task: found[task] for task in sorted(order, key=lambda task: (task != "digits", task))}


def pairs(records: Records) -> Report:
    """Show the study of this name.

    Args:
        records: Of its whole cells.

    Returns:
        Its part of the page.
    """
    titles = {
        INDEPENDENT: "A → B, pre-trained independently",
        CLOSE: "B → B-next, the next release",
    }
    tables: list[Table] = []
    panels = []
    for pair, title in titles.items():
        found = where(records, pair=pair)
        if found:
            tables += three(f"digits, {title}", found)
            panels.append(panel(title, found))
    return Report(tables, curves(panels), f"{CHOSEN} {FEW_SHOT_NOTE}")


def sampling(records: Records) -> Report:
    """Show the study of this name.

    Args:
        records: Of its whole cells.

    Returns:
        Its part of the page.
    """
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
        level(records, ZERO_SHOT),
    )
    note = f"{CHOSEN} Each draw chooses from a random half of the pool, the same for all four."
    return Report(tables if columns else [], curves([panel]) if columns else None, note)


def retention(records: Records) -> Report:
    """Show the study of this name.

    Args:
        records: Of its whole cells.

    Returns:
        Its part of the page.
    """
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
    figure = Dots(groups, "accuracy on the other tasks, %") if groups else None
    return Report(tables if columns else [], figure, CHOSEN)
