"""The outcomes of several draws as a table: means, paired intervals, and its forms for people and programs."""

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gradfix.evaluation.evaluate import Interval, mean_interval, paired_difference
from gradfix.recipes.fields import BEST_ON_TEST, BY_VALIDATION
from gradfix.report.record import Line as RecordedLine
from gradfix.transport.comparison.draws import (
    AUTO,
    AUTO_CONTROL,
    CONTROL,
    FULL,
    ZERO_SHOT,
    Outcome,
    label_of,
)


@dataclass(frozen=True)
class Line:
    """A row of the table: one method at one budget.

    Attributes:
        budget: Samples a class.
        method: Its name.
        score: Mean over draws with a 95 % interval.
        gain: Difference to the new base as it is, paired by draw.
        over_control: Difference to the shuffled control, of ``auto`` to its own, paired by draw; None for what no
            control fits.
        retained: Mean retention score, where it was measured.
        outcomes: Of each draw.
    """

    budget: int
    method: str
    score: Interval
    gain: Interval
    over_control: Interval | None
    retained: Interval | None
    outcomes: tuple[Outcome, ...]

    @property
    def label(self) -> str:
        """What tables call the method."""
        return label_of(self.method)


def summarise(draws: Sequence[Mapping[str, Outcome]], budget: int) -> list[Line]:
    """Turn the outcomes of several draws into rows with intervals.

    Args:
        draws: Outcomes by method, for each draw.
        budget: Samples a class they were drawn with.

    Returns:
        A row a method.
    """
    lines = []
    for method in draws[0]:
        outcomes = tuple(outcome[method] for outcome in draws)
        scores = [outcome.score for outcome in outcomes]
        bounds = (-1.0 if min(scores) < 0 else 0.0, 1.0)  # a correlation may be negative
        suffix = next((end for end in (BY_VALIDATION, BEST_ON_TEST) if method.endswith(end)), "")
        shuffled_way = (AUTO_CONTROL if method == AUTO else CONTROL) + suffix
        alone = method.removesuffix(suffix) in {ZERO_SHOT, CONTROL, AUTO_CONTROL, FULL}
        compared = shuffled_way in draws[0] and not alone
        kept = [outcome.retained for outcome in outcomes if outcome.retained is not None]
        lines.append(
            Line(
                budget=budget,
                method=method,
                score=mean_interval(scores, bounds=bounds),
                gain=paired_difference(scores, [outcome[ZERO_SHOT].score for outcome in draws]),
                over_control=(
                    paired_difference(scores, [outcome[shuffled_way].score for outcome in draws])
                    if compared
                    else None
                ),
                retained=mean_interval(kept, bounds=bounds) if kept else None,
                outcomes=outcomes,
            )
        )
    return lines


def chosen_ways(lines: Sequence[Line]) -> str:
    """Say what ``auto`` chose.

    Args:
        lines: The table's rows.

    Returns:
        A clause for a caption, such as ``auto chose naive addition in 2 of 3 draws, GradFix in 1``; empty where the
        method was not chosen.
    """
    told = []
    auto = [line for line in lines if line.method == AUTO]
    for line in auto:
        ways = Counter(outcome.way for outcome in line.outcomes)
        counts = [f"{way} in {count}" for way, count in ways.most_common()]
        counts[0] += f" of {len(line.outcomes)} draws"
        at = f"with {line.budget} a class " if len(auto) > 1 else ""
        told.append(f"{at}auto chose {', '.join(counts)}")
    return "; ".join(told)


def table_lines(lines: Sequence[Line]) -> list[RecordedLine]:
    """Give the table as a record holds it.

    Args:
        lines: Its rows.

    Returns:
        Every value, each draw's included.
    """
    return [RecordedLine.model_validate(line) for line in lines]


def table_csv(lines: Sequence[Line]) -> str:
    """Give the table as CSV, a row a method, budget and draw, for other tools.

    Args:
        lines: Its rows.

    Returns:
        The text, with a header.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["samples_per_class", "method", "draw", "score", "loss", "retained", "way", "setting", "seconds"]
    )
    for line in lines:
        for number, outcome in enumerate(line.outcomes):
            setting = " ".join(f"{key}={value:g}" for key, value in outcome.setting.items())
            writer.writerow(
                [
                    line.budget,
                    line.method,
                    number,
                    outcome.score,
                    outcome.loss,
                    outcome.retained,
                    outcome.way,
                    setting,
                    outcome.seconds,
                ]
            )
    return text.getvalue()


def table_cells(lines: Sequence[Line]) -> tuple[list[str], list[list[str]]]:
    """Give the table as texts: methods down, budgets across.

    Args:
        lines: Its rows.

    Returns:
        The header, and the rows: mean scores in per cent and half the width of their intervals.
    """
    budgets = sorted({line.budget for line in lines})
    found = {(line.method, line.budget): line.score for line in lines}
    rows = [
        [label_of(method), *(score_cell(found.get((method, budget))) for budget in budgets)]
        for method in dict.fromkeys(line.method for line in lines)
    ]
    return ["method", *(f"{budget} a class" for budget in budgets)], rows


def score_cell(score: Interval | None) -> str:
    """Write a score in per cent.

    Args:
        score: With its interval; None for none.

    Returns:
        As ``78.4 ± 3.1``.
    """
    if score is None:
        return ""
    value = f"{score.value * 100:.1f}"
    return value if score.low is None else f"{value} ± {(score.value - score.low) * 100:.1f}"


def table_markdown(lines: Sequence[Line], caption: str) -> str:
    """Give the table as Markdown: methods down, budgets across, mean and half-width of the interval.

    Args:
        lines: Its rows.
        caption: What stands below.

    Returns:
        The text.
    """
    budgets = sorted({line.budget for line in lines})
    methods = list(dict.fromkeys(line.method for line in lines))
    found = {(line.method, line.budget): line for line in lines}
    rows = ["| samples a class | " + " | ".join(map(str, budgets)) + " |", "|---" * (len(budgets) + 1) + "|"]
    for method in methods:
        cells = [_cell(found.get((method, budget))) for budget in budgets]
        rows.append(f"| {label_of(method)} | " + " | ".join(cells) + " |")
    return "\n".join([*rows, "", caption, ""])


def _cell(line: Line | None) -> str:
    if line is None:
        return ""
    score = line.score
    return f"{score.value:.3f}" if score.low is None else f"{score.value:.3f} ± {score.value - score.low:.3f}"
