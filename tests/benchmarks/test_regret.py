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


def test_training_counts_by_where_it_set_out_from() -> None:
    ahead = {"nothing": 0.2, "auto": 0.5, regret.NAIVE: 0.1}
    drawn: list[dict[str, object]] = [
        {"start": "naive", "scores": {**ahead, "fine-tuned": 0.9}},
        {"start": "answers", "scores": {**ahead, "fine-tuned": 0.4, "naive-fine-tuned": 0.7}},
        {"start": "answers", "scores": {**ahead, "fine-tuned": 0.4}},
    ]
    found = [{"pair": "a", "budget": 2, "draw": draw, "alike": 0.1, **one} for draw, one in enumerate(drawn)]
    assert "training from naive addition | 50.0 / 80.0: **30.0** |" in regret.page(found)
    # Tried in one draw of three, a method says too little.
    assert "training from naive addition" not in regret.page([found[0], found[2], {**found[2], "draw": 3}])
