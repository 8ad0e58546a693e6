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


def test_the_judges_are_compared() -> None:
    def seen(judged: float, taught: float | None) -> dict[str, object]:
        return {"judged": [judged, judged], **({} if taught is None else {"taught": {"judged": [taught]}})}

    one = {
        "scores": {"naive": 0.8, "answers": 0.7, "gradfix": 0.9},
        "held out": {"naive": seen(1.0, 0.5), "answers": seen(0.9, 0.6), "gradfix": seen(0.1, None)},
    }
    told = regret.by_teacher([one, {"scores": {}, "held out": {"naive": seen(1.0, 0.5)}}])[-1]
    assert "In 1 draws" in told
    assert "by the answers alone 0.0 points on average and 0.0 at most" in told
    assert "by the labels alone 10.0 points on average and 10.0 at most" in told
