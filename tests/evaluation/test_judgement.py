"""The judgement: what was measured already on the same rows stands for a measurement."""

from pathlib import Path
from typing import Any

import pytest
import torch

from gradfix.evaluation.judgement import judge
from gradfix.vectors.control import shuffled
from gradfix.vectors.masks import mask
from tests.builders import Job, job, loaded


@pytest.fixture
def work(tmp_path: Path) -> Job:
    return job("text-classification", tmp_path)


@pytest.mark.parametrize(
    ("alpha", "tried", "spared"), [(0.5, (0.0, 0.5), 2), (0.5, (0.5,), 1), (0.0, (0.0, 0.5), 3), (0.5, (), 0)]
)
def test_what_choosing_alpha_has_measured_is_not_measured_again(
    alpha: float, tried: tuple[float, ...], spared: int, work: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = loaded(work)
    votes = model.votes(work.rows)
    transported = mask(model.vector, votes)
    options: dict[str, Any] = {
        "transported": transported,
        "control": mask(shuffled(model.vector, 0), votes),
        "alpha": alpha,
        "data": "validation",
    }
    known = {}
    for candidate in tried:
        model.move(transported, candidate)
        known[candidate] = model.evaluate(work.held_out)
    model.restore()
    before = {name: tensor.clone() for name, tensor in model.model.state_dict().items()}
    evaluated: list[int] = []
    evaluate = model.evaluate
    monkeypatch.setattr(model, "evaluate", lambda *a, **k: (evaluated.append(1), evaluate(*a, **k))[1])
    found = judge(model, work.held_out, known=known, **options)
    assert len(evaluated) == 4 - spared
    anew = judge(model, work.held_out, **options)
    assert len(evaluated) == 4 - spared + 4
    for kind in ("base", "naive", "transported", "control"):
        one, two = getattr(found, kind), getattr(anew, kind)
        assert (one.scores, one.losses) == (two.scores, two.losses)
    assert (found.gain, found.over_control, found.over_naive) == (
        anew.gain,
        anew.over_control,
        anew.over_naive,
    )
    assert all(torch.equal(before[name], tensor) for name, tensor in model.model.state_dict().items())
