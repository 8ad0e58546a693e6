"""The regret table: what a draw did not try is not a score of zero."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import regret


def test_a_method_is_compared_on_the_draws_that_tried_it() -> None:
    scores = ({"nothing": 0.2, "auto": 0.5}, {"nothing": 0.2, "naive": 0.9, "auto": 0.8})
    found = [
        {"pair": "a", "budget": 2, "draw": draw, "alike": 0.9, "scores": {regret.NAIVE: 0.1, **one}}
        for draw, one in enumerate(scores)
    ]
    table = regret.page(found)
    assert "| a | 0.90 | naive addition | 65.0 / 75.0: **10.0** |" in table
    assert "Mean regret 10.0, largest 10.0, over 1 cells" in table
