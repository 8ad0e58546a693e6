"""The pages of the documentation that hold Python are run as a reader would."""

import re
from pathlib import Path
from typing import Any

from gradfix.tasks.base import TASKS
from gradfix.vectors.mask_strategies import STRATEGIES
from gradfix.votes.fast.rules.registry import RULES

DOCS = Path(__file__).parents[1] / "docs"


def test_the_examples_of_extending_run() -> None:
    before = [set(registry) for registry in (TASKS, STRATEGIES, RULES)]
    space: dict[str, Any] = {}
    try:
        page = (DOCS / "extending.md").read_text(encoding="utf-8")
        for block in re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL):
            exec(compile(block, "extending.md", "exec"), space)
        added = [
            set(registry) - old for registry, old in zip((TASKS, STRATEGIES, RULES), before, strict=True)
        ]
        assert added == [{"smoothed-text-classification"}, {"largest"}, {"prelu"}]
    finally:  # what the page registers stays in the page
        for registry, old in zip((TASKS, STRATEGIES, RULES), before, strict=True):
            for name in set(registry) - old:
                del registry[name]
