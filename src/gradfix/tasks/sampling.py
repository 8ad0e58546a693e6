"""Which samples of a data set make the support set: k of each class, chosen at random or by features.

Letters: n samples of one class, d features, k to choose. Every choice depends on the data's order and the seed only.
"""

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradfix.errors import GradfixError

Method = Literal["random", "herding", "k-medoids", "coreset"]
SAMPLINGS: tuple[str, ...] = get_args(Method)

Array = NDArray[np.float64]


def choose(
    classes: Sequence[int],
    samples_per_class: int,
    method: Method = "random",
    *,
    seed: int = 0,
    features: Tensor | None = None,
    names: Sequence[str] | None = None,
) -> list[int]:
    """Choose a balanced support set.

    ``random`` draws without replacement. ``herding`` adds, one by one, the sample that brings the mean of the chosen
    closest to the class's mean (Welling, ICML 2009). ``k-medoids`` takes the k samples with the smallest sum of
    distances to all of their class (PAM: Kaufman and Rousseeuw, 1990). ``coreset`` starts at a random sample and
    adds, one by one, the one farthest from all chosen (k-centre greedy: Sener and Savarese, ICLR 2018). Distances
    are Euclidean. Herding and k-medoids do not depend on the seed; equal candidates go to the earlier sample.

    Args:
        classes: The class id of each sample.
        samples_per_class: k.
        method: One of `SAMPLINGS`.
        seed: Of what is random; each class draws from a stream of its own, so that another class changes nothing.
        features: ``[len(classes), d]``, the target model's own; needed by all methods but ``random``.
        names: The classes' names, for messages.

    Returns:
        Places in ``classes``, class by class in ascending order of id, each in the order of choice: the first places
        of a class are themselves the choice for a smaller k, except with ``k-medoids``.

    Raises:
        GradfixError: If a class has fewer than k samples, or features are missing, misshapen or not finite.
    """
    if method not in SAMPLINGS:
        raise GradfixError(f"unknown sampling {method!r}; expected one of {', '.join(SAMPLINGS)}")
    if samples_per_class < 1:
        raise GradfixError(f"samples_per_class: expected at least 1, found {samples_per_class}")
    if not len(classes):
        raise GradfixError("there are no samples to choose from")
    values = None if method == "random" else _checked(features, len(classes), method)
    groups: dict[int, list[int]] = {}
    for place, label in enumerate(classes):
        groups.setdefault(int(label), []).append(place)
    for label in sorted(groups):
        if len(groups[label]) < samples_per_class:
            name = repr(names[label]) if names is not None else str(label)
            raise GradfixError(
                f"class {name} has {len(groups[label])} samples, fewer than the {samples_per_class} a class asked for"
            )
    chosen: list[int] = []
    for label in sorted(groups):
        places = groups[label]
        generator = np.random.default_rng([seed, label])
        if values is None:
            picked = generator.permutation(len(places))[:samples_per_class].tolist()
        else:
            picked = RULES[method](values[places], samples_per_class, generator)
        chosen.extend(places[index] for index in picked)
    return chosen


def _checked(features: Tensor | None, n: int, method: str) -> Array:
    """The features as float64, or why they won't do."""
    if features is None:
        raise GradfixError(f"sampling {method} needs features of every sample")
    if features.dim() != 2 or len(features) != n:
        raise GradfixError(
            f"sampling {method}: expected features [{n}, d], found shape {list(features.shape)}"
        )
    bad = int((~torch.isfinite(features)).any(dim=1).sum())
    if bad:
        raise GradfixError(f"sampling {method}: the features of {bad} samples are not finite")
    return features.detach().cpu().double().numpy()


def _herding(values: Array, k: int, generator: np.random.Generator) -> list[int]:
    mean = values.mean(axis=0)
    picked: list[int] = []
    total = np.zeros_like(mean)
    for step in range(1, k + 1):
        distances = np.linalg.norm(mean - (total + values) / step, axis=1)
        distances[picked] = np.inf
        picked.append(int(distances.argmin()))
        total += values[picked[-1]]
    return picked


def _coreset(values: Array, k: int, generator: np.random.Generator) -> list[int]:
    picked = [int(generator.integers(len(values)))]
    nearest = np.linalg.norm(values - values[picked[0]], axis=1)
    while len(picked) < k:
        nearest[picked] = -1.0  # duplicates of a chosen sample come before it is chosen twice
        picked.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, np.linalg.norm(values - values[picked[-1]], axis=1))
    return picked


def _k_medoids(values: Array, k: int, generator: np.random.Generator) -> list[int]:
    """Build greedily, then swap while a swap lowers the sum of distances: O(k n²) a pass, memory O(n²)."""
    from sklearn.metrics import pairwise_distances

    distances: Array = pairwise_distances(values)
    picked: list[int] = []
    nearest = np.full(len(values), np.inf)
    for _ in range(k):
        costs = np.minimum(distances, nearest).sum(axis=1)
        costs[picked] = np.inf
        picked.append(int(costs.argmin()))
        nearest = np.minimum(nearest, distances[picked[-1]])
    cost = float(nearest.sum())
    while True:
        best, swap = cost, None
        for slot in range(k):
            others = picked[:slot] + picked[slot + 1 :]
            rest = distances[others].min(axis=0) if others else np.full(len(values), np.inf)
            costs = np.minimum(distances, rest).sum(axis=1)
            costs[others] = np.inf
            candidate = int(costs.argmin())
            # Smaller by more than rounding: an endless cycle of equal swaps would be possible otherwise.
            if costs[candidate] < best - 1e-9 * max(cost, 1.0):
                best, swap = float(costs[candidate]), (slot, candidate)
        if swap is None:
            return sorted(picked)
        picked[swap[0]] = swap[1]
        cost = best


RULES: dict[str, Callable[[Array, int, np.random.Generator], list[int]]] = {
    "herding": _herding,
    "k-medoids": _k_medoids,
    "coreset": _coreset,
}


def spread(classes: Sequence[int], count: int, seed: int) -> list[int]:
    """Draw rows at random, as evenly over classes as it goes: the first rows of a sorted file are of one class.

    Args:
        classes: A class id a row.
        count: How many; all rows where there are no more.
        seed: Of the draw.

    Returns:
        Positions, ascending.
    """
    order = np.random.default_rng(seed).permutation(len(classes)).tolist()
    taken: dict[int, int] = {}
    ranks = {}
    for place in order:
        ranks[place] = taken[classes[place]] = taken.get(classes[place], -1) + 1
    return sorted(
        sorted(order, key=lambda place: ranks[place])[:count]
    )  # stable: in the drawn order within a rank
