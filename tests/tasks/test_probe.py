import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy, one_hot

from gradfix.errors import GradfixError
from gradfix.tasks import Labels, label_names
from gradfix.tasks.probe import RIDGES, fit_probe


def blobs(per_class, classes=3, d=6, spread=0.5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, d, generator=generator)
    labels = torch.arange(classes).repeat_interleave(per_class)
    features = centres[labels] + spread * torch.randn(len(labels), d, generator=generator)
    return features * torch.logspace(-2, 2, d) + 7.0, labels.tolist()


def slow_leave_one_out(features, labels, classes, ridge):
    """Each sample left out in turn, by solving the normal equations anew; features stay standardised as a whole."""
    inputs = features.double()
    standard = (inputs - inputs.mean(0)) / inputs.var(0, unbiased=False).sqrt()
    unit = standard.square().sum() / min(len(inputs) - 1, inputs.shape[1])
    onehot = one_hot(torch.tensor(labels), classes).double()
    scores = torch.empty_like(onehot)
    for left_out in range(len(inputs)):
        keep = torch.arange(len(inputs)) != left_out
        design = torch.cat([standard, torch.ones(len(inputs), 1, dtype=torch.double)], dim=1)
        penalty = ridge * unit * torch.eye(design.shape[1], dtype=torch.double)
        penalty[-1, -1] = 0.0
        solved = torch.linalg.solve(design[keep].T @ design[keep] + penalty, design[keep].T @ onehot[keep])
        scores[left_out] = design[left_out] @ solved
    return scores


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.integers(2, 6), st.sampled_from([2, 6, 30]))
def test_the_ridge_is_the_best_left_out_one_at_a_time(seed, per_class, d):
    features, labels = blobs(per_class, d=d, spread=2.0, seed=seed)
    probe = fit_probe(features, labels, 3)
    onehot = one_hot(torch.tensor(labels), 3).double()
    errors = {
        ridge: (onehot - slow_leave_one_out(features, labels, 3, ridge)).square().sum().item()
        for ridge in RIDGES
    }
    assert errors[probe.ridge] == pytest.approx(min(errors.values()), rel=1e-6)
    held_out = slow_leave_one_out(features, labels, 3, probe.ridge)
    assert probe.accuracy == pytest.approx(
        (held_out.argmax(1) == torch.tensor(labels)).double().mean().item()
    )


def test_a_probe_separates_what_can_be_separated():
    features, labels = blobs(10)
    probe = fit_probe(features, labels, 3)
    more, answers = blobs(10)
    logits = more @ probe.weight.T + probe.bias
    assert (logits.argmax(1) == torch.tensor(answers)).float().mean() > 0.95
    # As sure as ten samples a class allow, not surer: (10 + 1) / (10 + 3) for the true class.
    assert logits.softmax(1).max(1).values.mean() == pytest.approx(11 / 13, abs=0.12)


def test_logits_are_no_surer_than_left_out_samples_allow():
    generator = torch.Generator().manual_seed(0)
    features, labels = torch.randn(60, 5, generator=generator), [0, 1] * 30
    probe = fit_probe(features, labels, 2)  # nothing to learn
    logits = features @ probe.weight.T + probe.bias
    assert cross_entropy(logits, torch.tensor(labels)) == pytest.approx(math.log(2), abs=0.05)


def test_one_sample_a_class_is_enough_to_place_them():
    features, labels = blobs(1, classes=4, d=20)
    probe = fit_probe(features, labels, 4)
    logits = features @ probe.weight.T + probe.bias
    own = logits.softmax(1).diagonal()
    assert (logits.argmax(1) == torch.tensor(labels)).all()
    assert 0.8 < own.mean() < 0.97


def test_without_an_intercept_there_is_none():
    features, labels = blobs(8)
    probe = fit_probe(features, labels, 3, intercept=False)
    assert torch.equal(probe.bias, torch.zeros(3))


def test_features_that_never_change_say_nothing():
    features, labels = blobs(8)
    constant = torch.cat([features, torch.full((24, 1), 3.3)], dim=1)
    probe = fit_probe(constant, labels, 3)
    assert torch.equal(probe.weight[:, -1], torch.zeros(3))
    assert torch.allclose(probe.weight[:, :-1], fit_probe(features, labels, 3).weight, rtol=1e-4)


def test_what_cannot_be_fitted_is_refused():
    with pytest.raises(GradfixError, match=r"expected features of 2 samples, found shape \(3, 2\)"):
        fit_probe(torch.ones(3, 2), [0, 1], 2)
    with pytest.raises(GradfixError, match="needs samples of at least two classes"):
        fit_probe(torch.ones(2, 2), [1, 1], 2)
    with pytest.raises(GradfixError, match="not finite"):
        fit_probe(torch.tensor([[1.0], [torch.inf]]), [0, 1], 2)


def test_labels_by_name_and_id():
    stars = Labels({"0": "1", "1": "2", "2": "3"})
    assert [stars.id_of(value, "row 0") for value in ("3", 3, 1.0)] == [2, 2, 0]
    with pytest.raises(GradfixError, match="row 0: unknown label 0"):  # numbers are names here, from 1
        stars.id_of(0, "row 0")
    assert stars.label2id == {"1": 0, "2": 1, "3": 2}
    with pytest.raises(GradfixError, match=r"row 0: unknown label 1.5"):
        stars.id_of(1.5, "row 0")
    with pytest.raises(GradfixError, match=r"expected the ids 0 to 1, found \[0, 2\]"):
        Labels({0: "a", 2: "b"})
    with pytest.raises(GradfixError, match=r"at least two classes, found 1 \(LABEL_0\)"):
        Labels({0: "LABEL_0"})
    with pytest.raises(GradfixError, match="found twice: a"):
        Labels(["a", "b", "a"])


def test_labels_of_data_are_in_a_fixed_order():
    rows = [{"label": name} for name in ("tree", "house", "tree", "car")]
    assert label_names(rows) == ["car", "house", "tree"]
    with pytest.raises(GradfixError, match="row 1: column 'label': expected the name of a class, found 3"):
        label_names([{"label": "a"}, {"label": 3}])
