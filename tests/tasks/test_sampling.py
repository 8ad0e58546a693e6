from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradfix.errors import GradfixError
from gradfix.tasks.sampling import SAMPLINGS, choose


def cloud(n, d=3, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("method", SAMPLINGS)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_every_class_gets_k_different_samples_of_its_own(method, data):
    k = data.draw(st.integers(1, 4))
    counts = data.draw(st.lists(st.integers(k, 9), min_size=1, max_size=4))
    classes = data.draw(st.permutations([label for label, count in enumerate(counts) for _ in range(count)]))
    features = cloud(len(classes), seed=data.draw(st.integers(0, 99)))
    if data.draw(st.booleans()):
        features = features.round()  # ties and duplicates
    seed = data.draw(st.integers(0, 5))
    chosen = choose(classes, k, method, seed=seed, features=features)
    assert len(set(chosen)) == len(chosen)
    assert [classes[place] for place in chosen] == [label for label in range(len(counts)) for _ in range(k)]
    assert chosen == choose(classes, k, method, seed=seed, features=features)


def test_a_seed_changes_the_random_choice_and_classes_draw_apart():
    classes = [0] * 30 + [1] * 30
    first = choose(classes, 5, seed=0)
    assert first != choose(classes, 5, seed=1)
    assert {place - 30 for place in first[5:]} != set(first[:5])
    assert choose(classes[:30], 5, seed=0) == first[:5]


def test_random_choice_is_uniform():
    drawn = [choose([0] * 5, 2, seed=seed) for seed in range(2000)]
    counts = np.bincount(np.ravel(drawn), minlength=5)
    assert (abs(counts - 800) < 4 * np.sqrt(2000 * 0.4 * 0.6)).all()


@pytest.mark.parametrize("method", ["random", "herding", "coreset"])
def test_a_smaller_budget_is_the_beginning_of_a_larger_one(method):
    features = cloud(20)
    assert choose([0] * 20, 7, method, features=features)[:3] == choose(
        [0] * 20, 3, method, features=features
    )


def test_herding_keeps_the_mean_of_the_chosen_near_the_mean_of_all():
    features = torch.tensor([[0.0], [9.0], [1.99], [2.0], [6.0]])
    # The mean is 3.798 and 2 is nearest to it. 1.99 is the next nearest, but 6 brings the pair's mean nearest.
    assert choose([0] * 5, 2, "herding", features=features) == [3, 4]


def test_no_swap_improves_on_k_medoids():
    at_best = 0
    for seed in range(10):
        features = cloud(11, seed=seed)
        distances = torch.cdist(features, features)
        costs = {
            places: float(distances[list(places)].min(dim=0).values.sum())
            for places in combinations(range(11), 3)
        }
        chosen = set(choose([0] * 11, 3, "k-medoids", features=features))
        swaps = [places for places in costs if len(chosen & set(places)) == 2]
        assert len(swaps) == 3 * 8
        found = costs[tuple(sorted(chosen))]
        assert found <= min(costs[places] for places in swaps) + 1e-5
        at_best += found <= min(costs.values()) + 1e-5
    assert at_best > 5  # a local optimum, but more often than not the best of all 165 sets
    one = features - features[4]
    assert choose([0] * 11, 1, "k-medoids", features=one) == [int(torch.cdist(one, one).sum(dim=1).argmin())]


def test_a_coreset_spreads_to_the_farthest():
    features = torch.tensor([[0.0], [1.0], [2.0], [50.0], [100.0]])
    for seed in range(10):
        chosen = choose([0] * 5, 3, "coreset", seed=seed, features=features)
        # Whatever the start, both far samples are taken, and one of the three near ones.
        assert {3, 4} < set(chosen)
    assert len({choose([0] * 5, 1, "coreset", seed=seed, features=features)[0] for seed in range(30)}) == 5


def test_duplicates_are_all_usable():
    for method in SAMPLINGS:
        assert sorted(choose([0] * 4, 4, method, features=torch.ones(4, 2))) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0, 0, 1], 2), "class 1 has 1 samples, fewer than the 2 a class asked for"),
        (([0, 0], 0), "samples_per_class: expected at least 1, found 0"),
        (([], 1), "there are no samples to choose from"),
        (([0], 1, "best"), "unknown sampling 'best'; expected one of random, herding, k-medoids, coreset"),
        (([0], 1, "herding"), "sampling herding needs features"),
    ],
)
def test_what_cannot_be_chosen_is_refused(arguments, message):
    with pytest.raises(GradfixError, match=message):
        choose(*arguments)


def test_unusable_features_are_refused():
    with pytest.raises(GradfixError, match=r"expected features \[2, d\], found shape \[3, 3\]"):
        choose([0, 1], 1, "coreset", features=cloud(3))
    with pytest.raises(GradfixError, match="features of 1 samples are not finite"):
        choose([0, 1], 1, "coreset", features=torch.tensor([[1.0], [torch.nan]]))
    with pytest.raises(GradfixError, match="class 'red' has 1 samples"):
        choose([0, 0, 1], 2, names=["blue", "red"])
