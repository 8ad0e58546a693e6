"""Metrics over all samples beside their definitions, and what each sample contributes to them."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import pearsonr, spearmanr

from gradfix.evaluation.intervals import paired_samples, score_interval
from gradfix.tasks.metrics import (
    as_codes,
    correlation_totals,
    entities,
    f1_totals,
    from_codes,
    retrieval_totals,
)


def test_correlations_are_scipys() -> None:
    pairs = np.random.default_rng(0).normal(size=(40, 2))
    pairs[:, 1] += 5 * pairs[:, 0] + 1000
    pearson, spearman = (correlation_totals(pairs, ranked=ranked) for ranked in (False, True))
    assert pearson.contributions.mean() == pytest.approx(pearsonr(*pairs.T).statistic)
    assert spearman.contributions.mean() == pytest.approx(spearmanr(*pairs.T).statistic)
    assert pearson.also["spearman"] == pytest.approx(spearmanr(*pairs.T).statistic)


def test_what_does_not_vary_correlates_with_nothing() -> None:
    constant = np.stack([np.full(5, 3.0), np.arange(5.0)], axis=1)
    assert correlation_totals(constant, ranked=False).contributions.tolist() == [0.0] * 5
    assert np.isfinite(correlation_totals(constant[:1], ranked=False).contributions).all()
    assert np.isfinite(correlation_totals(constant[:2], ranked=True).contributions).all()


@given(st.lists(st.tuples(*[st.integers(0, 4)] * 3), min_size=1, max_size=20))
def test_f1_is_that_of_the_sums(counts: list[tuple[int, int, int]]) -> None:
    rows = np.array(
        [(min(right, predicted, wanted), predicted, wanted) for right, predicted, wanted in counts], float
    )
    right, predicted, wanted = rows.sum(axis=0)
    expected = 2 * right / (predicted + wanted) if predicted + wanted else 1.0
    assert f1_totals(rows).contributions.mean() == pytest.approx(expected)


def test_the_interval_of_a_correlation_covers_as_often_as_it_says() -> None:
    generator = np.random.default_rng(1)
    truth, covered = 0.6, 0
    for _ in range(300):
        x = generator.normal(size=80)
        y = truth * x + np.sqrt(1 - truth**2) * generator.normal(size=80)
        found = score_interval(
            correlation_totals(np.stack([x, y], axis=1), ranked=False).contributions.tolist(),
            bounds=(-1.0, 1.0),
        )
        covered += found.low <= truth <= found.high
    assert 0.9 < covered / 300 < 0.985


def test_two_models_on_the_same_samples_are_compared_pairwise() -> None:
    generator = np.random.default_rng(2)
    target = generator.normal(size=200)
    near, nearer = (target + noise * generator.normal(size=200) for noise in (1.0, 0.3))
    scores = [
        correlation_totals(np.stack([each, target], axis=1), ranked=False).contributions.tolist()
        for each in (nearer, near)
    ]
    found = paired_samples(*scores)
    assert found.excludes_zero
    assert found.value == pytest.approx(np.mean(scores[0]) - np.mean(scores[1]))


def test_entities_in_each_scheme() -> None:
    assert entities(["B-PER", "I-PER", "O", "B-LOC", "B-LOC"]) == {
        ("PER", 0, 1),
        ("LOC", 3, 3),
        ("LOC", 4, 4),
    }
    assert entities(["I-PER", "I-PER", "I-LOC", "O"]) == {("PER", 0, 1), ("LOC", 2, 2)}  # IOB1
    assert entities(["B-PER", "E-PER", "S-PER", "S-LOC"]) == {
        ("PER", 0, 1),
        ("PER", 2, 2),
        ("LOC", 3, 3),
    }  # BIOES
    assert entities(["O", "I-PER"]) == {("PER", 1, 1)}
    assert entities([]) == set()


def test_each_text_finds_its_own_among_all_others() -> None:
    answers = np.eye(4)[[0, 1, 2, 2]]
    queries = np.eye(4)[[0, 2, 2, 2]]
    found = retrieval_totals(np.concatenate([queries, answers], axis=1))
    assert found.contributions.tolist() == [1.0, 0.0, 1.0, 1.0]  # the same text twice is one
    assert found.also["mean_reciprocal_rank"] == pytest.approx((3 + 1 / 3) / 4)


def test_texts_survive_as_numbers() -> None:
    texts = ["", "naïve ☃", "🙂"]
    assert [from_codes(row) for row in as_codes(texts)] == texts
    assert as_codes(texts).dtype == torch.int64
