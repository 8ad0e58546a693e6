"""A transport beside everything it could be mistaken for: all baselines, several draws, paired intervals."""

from gradfix.transport.comparison.compare import Comparison, compare
from gradfix.transport.comparison.draws import (
    AUTO,
    AUTO_CONTROL,
    BASELINES,
    CONTROL,
    FEW_SHOT,
    FULL,
    LABELS,
    ORACLE,
    ZERO_SHOT,
    Judge,
    Outcome,
    arrived,
    baseline,
    chosen_along,
    draw,
)
from gradfix.transport.comparison.table import (
    Line,
    chosen_ways,
    summarise,
    table_csv,
    table_lines,
    table_markdown,
)
from gradfix.transport.comparison.tasks import TaskTable, compare_tasks

__all__ = [
    "AUTO",
    "AUTO_CONTROL",
    "BASELINES",
    "CONTROL",
    "FEW_SHOT",
    "FULL",
    "LABELS",
    "ORACLE",
    "ZERO_SHOT",
    "Comparison",
    "Judge",
    "Line",
    "Outcome",
    "TaskTable",
    "arrived",
    "baseline",
    "chosen_along",
    "chosen_ways",
    "compare",
    "compare_tasks",
    "draw",
    "summarise",
    "table_csv",
    "table_lines",
    "table_markdown",
]
