import json
import math

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import nn

from gradfix.errors import GradfixError
from gradfix.evaluation.evaluate import (
    encode_rows,
    evaluate,
    mean_interval,
    paired_difference,
    paired_samples,
    score_interval,
)
from gradfix.report import facts
from gradfix.tasks import CustomTask, get_task
from tests import tiny


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    task = get_task("text-classification")
    return task, task.load_model(tiny.save_tiny_bert_classifier(tmp_path_factory.mktemp("bert")))


def test_values_come_in_the_order_of_the_rows(loaded):
    task, model = loaded
    rows = tiny.texts(23)
    result = evaluate(model, task, rows, batch_size=4)
    for index, row in enumerate(rows):
        measured = task.measure(model, task.encode([row]))
        assert result.losses[index] == pytest.approx(measured.losses.item(), abs=1e-6)
        assert result.scores[index] == measured.scores.item()
        assert result.predictions[index] == measured.predictions[0]
    assert result.loss == pytest.approx(np.mean(result.losses))
    assert result.score == pytest.approx(np.mean(result.scores))
    assert 0 < result.score < 1
    assert len(set(result.predictions)) > 1
    assert (result.n, result.metric, result.truncated) == (23, "accuracy", 0)
    assert result.interval.method == "wilson"


def test_samples_of_like_length_share_a_batch(loaded):
    task, _ = loaded
    rows = [{"text": "good " * n, "label": 0} for n in (1, 30, 2, 29)]
    encoded = encode_rows(task, rows, batch_size=2)
    assert encoded.positions == [[1, 3], [2, 0]]
    assert [batch["input_ids"].shape[1] for batch in encoded.batches] == [32, 4]


def test_encoded_rows_measure_the_same_again(loaded):
    task, model = loaded
    rows = tiny.texts(11)
    encoded = encode_rows(task, rows, batch_size=3)
    fresh = evaluate(model, task, rows, batch_size=3)
    for _ in range(2):
        again = evaluate(model, task, encoded)
        assert (again.losses, again.predictions) == (fresh.losses, fresh.predictions)


def test_more_than_may_be_kept_is_encoded_again_for_each_pass(loaded, monkeypatch):
    task, model = loaded
    rows = tiny.texts(11)
    fresh = evaluate(model, task, rows, batch_size=3)
    sizes = [batch["input_ids"].nbytes for batch in encode_rows(task, rows, batch_size=3).batches]
    asked: list[int] = []
    encode = type(task).encode
    monkeypatch.setattr(
        type(task), "encode", lambda self, part, **kw: asked.append(len(part)) or encode(self, part, **kw)
    )
    for most, kept in ((1, False), (100 * sum(sizes), True)):
        monkeypatch.setattr("gradfix.evaluation.evaluate.MOST_KEPT", most)
        asked.clear()
        encoded = encode_rows(task, rows, batch_size=3)
        for _ in range(2):
            again = evaluate(model, task, encoded)
            assert (again.losses, again.predictions) == (fresh.losses, fresh.predictions)
        # The first batch, which tells how large they are, is encoded in any case.
        assert len(asked) == (len(sizes) if kept else 1 + 2 * len(sizes))


def test_the_model_is_left_as_it_was(loaded):
    task, model = loaded
    model.train()
    model.bert.embeddings.eval()
    modes = [module.training for module in model.modules()]
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    evaluate(model, task, tiny.texts(3))
    assert modes == [module.training for module in model.modules()]

    def broken(rows):
        raise RuntimeError("data")

    failing = CustomTask(broken, task.loss, lambda model, batch: ([], torch.tensor([])))
    with pytest.raises(RuntimeError, match="data"):
        evaluate(model, failing, [1])
    assert modes == [module.training for module in model.modules()]
    assert hooks == [
        len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()
    ]
    assert torch.is_grad_enabled()
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    model.eval()


def test_dropout_is_off(loaded):
    task, model = loaded
    model.train()
    rows = tiny.texts(6)
    assert evaluate(model, task, rows).losses == evaluate(model, task, rows).losses
    model.eval()


def test_progress_counts_samples(loaded):
    task, model = loaded
    seen = []
    evaluate(model, task, tiny.texts(7), batch_size=3, progress=lambda *call: seen.append(call))
    assert seen == [("evaluating", done, 7, "samples") for done in (3, 6, 7)]


def test_truncated_samples_are_counted_or_refused(loaded):
    task, model = loaded
    rows = [*tiny.texts(4), {"text": "good " * 90, "label": "positive"}]
    assert evaluate(model, task, rows, batch_size=2).truncated == 1
    with pytest.raises(GradfixError, match="longer than the model's context of 64"):
        evaluate(model, task, rows, strict=True)


def test_the_result_is_json(loaded):
    task, model = loaded
    result = evaluate(model, task, tiny.texts(5))
    short = json.loads(json.dumps(facts.Evaluation.model_validate(result).plain()))
    assert short["interval"]["method"] == "wilson"
    assert "losses" not in short
    assert (
        json.loads(json.dumps(facts.EvaluatedSamples.model_validate(result).plain()))["predictions"]
        == result.predictions
    )


def test_any_model_and_loss_can_be_measured():
    model = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.eye(2))

    def encode(rows):
        return {"x": torch.tensor([row[0] for row in rows]), "y": torch.tensor([row[1] for row in rows])}

    def loss(model, batch):
        return nn.functional.cross_entropy(model(batch["x"]), batch["y"], reduction="none")

    def predict(model, batch):
        best = model(batch["x"]).argmax(dim=1)
        return best.tolist(), best == batch["y"]

    task = CustomTask(encode, loss, predict, name="two")
    rows = [([3.0, 0.0], 0), ([0.0, 2.0], 1), ([1.0, 0.0], 1)]
    result = evaluate(model, task, rows)
    assert result.scores == [1.0, 1.0, 0.0]
    assert result.predictions == [0, 1, 0]
    assert result.losses[2] == pytest.approx(math.log(1 + math.e))
    assert (result.task, result.score) == ("two", pytest.approx(2 / 3))


def test_losses_that_are_not_finite_stop_it(loaded):
    task, model = loaded
    held = model.classifier.bias.detach().clone()
    try:
        model.classifier.bias.data.fill_(torch.nan)
        with pytest.raises(GradfixError, match=r"4 of 4 losses in a batch are not finite \(samples .*\)"):
            evaluate(model, task, tiny.texts(4))
    finally:
        model.classifier.bias.data.copy_(held)
    with pytest.raises(GradfixError, match="there are no rows to evaluate"):
        evaluate(model, task, [])


def test_wilson_is_as_published():
    # Newcombe, Statistics in Medicine 17 (1998), table I: 81 of 263, and 0 of 20.
    interval = score_interval([1.0] * 81 + [0.0] * 182)
    assert (interval.low, interval.high) == (pytest.approx(0.2553, abs=5e-5), pytest.approx(0.3662, abs=5e-5))
    none = score_interval([0.0] * 20)
    assert (none.low, none.high) == (0.0, pytest.approx(0.1611, abs=5e-5))


@given(st.integers(0, 60), st.integers(1, 60))
@example(0, 3)
def test_wilson_holds_its_estimate(right, wrong):
    interval = score_interval([1.0] * right + [0.0] * wrong)
    mirrored = score_interval([0.0] * right + [1.0] * wrong)
    assert 0 <= interval.low <= interval.value <= interval.high <= 1
    assert interval.low == pytest.approx(1 - mirrored.high)
    assert interval.high > interval.low


def test_students_interval_over_draws():
    values = [0.1, 0.2, 0.3, 0.4, 0.5]
    half = 2.7764451051977987 * math.sqrt(0.025 / 5)
    found = mean_interval(values)
    assert (found.value, found.low, found.high) == (
        pytest.approx(0.3),
        pytest.approx(0.3 - half),
        pytest.approx(0.3 + half),
    )
    assert mean_interval([0.9, 1.0, 0.9, 1.0, 0.95, 1.0]).high <= 1.0  # no mean score leaves [0, 1]
    with pytest.raises(GradfixError, match="at least one value"):
        mean_interval([])
    assert score_interval([0.5, 1.0, 0.0, 0.2, 0.9]).method == "student-t"


@pytest.mark.parametrize(
    "values", [[0.7], [0.7, 0.8], [0.7, 0.8, 0.6, 0.7], [0.7] * 6, [0.1 + 0.2, *[0.3] * 5]]
)
def test_too_few_or_equal_draws_have_no_interval(values):
    found = mean_interval(values)
    assert (found.low, found.high, found.method, found.excludes_zero) == (None, None, "too-few", False)
    assert found.value == pytest.approx(sum(values) / len(values))


def test_a_paired_difference_is_about_the_pairs():
    base = [0.1, 0.5, 0.9, 0.3, 0.2]
    gains = [0.1, 0.11, 0.09, 0.1, 0.1]
    difference = paired_difference([value + gain for value, gain in zip(base, gains, strict=True)], base)
    assert difference.excludes_zero
    assert difference.value == pytest.approx(0.1)
    assert difference.high - difference.low < 0.02
    with pytest.raises(GradfixError, match="as many values on both sides, found 1 and 2"):
        paired_difference([1.0], [1.0, 2.0])


def answers(both, ours, theirs, none):
    """Scores of two models that agree, or of which one is right alone, so many times."""
    first = [1.0] * (both + ours) + [0.0] * (theirs + none)
    second = [1.0] * both + [0.0] * ours + [1.0] * theirs + [0.0] * none
    return first, second


def test_paired_proportions_are_as_published():
    # Newcombe, Statistics in Medicine 17 (1998), 2635-2650, table II, method 10.
    found = paired_samples(*answers(36, 12, 2, 0))
    assert (found.low, found.high) == (pytest.approx(0.0569, abs=1e-4), pytest.approx(0.3404, abs=1e-4))


@given(st.integers(0, 20), st.integers(0, 20), st.integers(0, 20), st.integers(1, 20))
def test_an_interval_of_pairs_has_a_width_and_stays_in_bounds(both, ours, theirs, none):
    found = paired_samples(*answers(both, ours, theirs, none))
    assert -1 <= found.low <= found.value <= found.high <= 1
    assert found.high - found.low > 1 / (both + ours + theirs + none)
    mirrored = paired_samples(*answers(both, theirs, ours, none))
    assert (mirrored.low, mirrored.high) == (pytest.approx(-found.high), pytest.approx(-found.low))


def test_an_interval_of_pairs_covers_on_few_samples_too():
    generator = np.random.default_rng(0)
    for n, share in ((20, 0.05), (50, 0.02), (150, 0.2)):
        held = 0
        for _ in range(200):
            kind = generator.random(n)
            first, second = (kind < share).astype(float), np.zeros(n)
            same = (kind >= share) & (generator.random(n) < 0.7)
            first[same] = second[same] = 1.0
            found = paired_samples(first.tolist(), second.tolist())
            held += found.low <= share <= found.high
        assert held >= 184


def test_paired_samples_find_a_difference():
    better = paired_samples([1.0] * 60 + [0.0] * 40, [1.0] * 40 + [0.0] * 60)
    assert better.value == pytest.approx(0.2)
    assert better.excludes_zero
    assert better == paired_samples([1.0] * 60 + [0.0] * 40, [1.0] * 40 + [0.0] * 60)
    # Normal approximation of the same: standard error of a mean of 100 values, 20 of them 1.
    assert better.high - better.low == pytest.approx(2 * 1.96 * 0.4 / 10, rel=0.1)
    with pytest.raises(GradfixError, match="the same samples on both sides, found 0 and 0"):
        paired_samples([], [])
