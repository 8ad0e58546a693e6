"""Several task vectors into one, masked before or after: expressions that read a block of each vector at a time.

===== ===================================================================================================
index is
===== ===================================================================================================
t     one of the T task vectors τ_t
i     a coordinate of the whole vector, over all its tensors
v_t   the target's votes for the task of τ_t
===== ===================================================================================================

Policies, all tested by name:

- **sum** adds, **mean** divides by T; α makes them the same.
- **drop** (``dare``): each coordinate of τ_t stays with probability ``density``, is divided by it, and what is left is
  added.
- **magnitude** adds what is left after trimming, without an election.
- **trim** (``ties``, ``magnitude``): τ_t keeps its k largest magnitudes of the WHOLE vector, k = ``density`` times the
  number of coordinates (zeros counted), rounded, at least 1. Ties at the threshold are all kept, wherever they stand,
  so the result does not depend on the order of tensors; it may keep more than k.
- **election** (``ties``): the sign of Σ_t τ_t,i after trimming, summed in float64; a sum of 0 elects nobody, and
  the coordinate is 0.
- **zeros**: ``mean`` divides by T wherever it is; ``ties`` by the number of those that agree with the elected sign.
- **votes of several tasks** (``merge-then-mask``): Σ_t sign(v_t), so that a task with more samples has no more say;
  a sum of 0 is a tie and agrees with nothing. A task without votes for a parameter abstains there.
- **new parameters** (heads) are not merged: all are kept, and two of one name are refused.

Sources: Ilharco et al., "Editing models with task arithmetic", ICLR 2023 (``mean``); Yadav et al., "TIES-Merging:
Resolving Interference When Merging Models", NeurIPS 2023 (``ties``); Yu et al., "Language Models are Super Mario:
Absorbing Abilities from Homologous Models as a Free Lunch", ICML 2024 (``dare``); Rinaldi et al., "Gradient-Sign
Masking for Task Vector Transport Across Pre-Trained Models", ICLR 2026 (arXiv 2510.09658; both orders). The last one's
code trims each tensor by itself, elects the sign by count and resolves ties to plus; here the definitions of the papers
stand.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, get_args

import torch

from gradfix.checkpoints import TensorSource, match_names
from gradfix.checkpoints.expressions import Checked
from gradfix.checkpoints.vocabulary import vocabulary_rows
from gradfix.errors import GradfixError, listed
from gradfix.plugins import Kind, is_plugin, named
from gradfix.progress import Progress, silent
from gradfix.recipes import MergeOrder
from gradfix.vectors.mask_strategies import STRATEGIES, MaskFunction, find_strategy
from gradfix.vectors.masks import mask
from gradfix.vectors.merge_methods import (
    MERGE_METHODS,
    Dropped,
    Merged,
    MergeFunction,
    SignSum,
    Trimmed,
    find_method,
)
from gradfix.vectors.task_vector import Placement, TaskVector, combine
from gradfix.votes import Votes


def merge(
    task_vectors: Sequence[TaskVector],
    votes: Sequence[Votes | TaskVector] | None = None,
    *,
    method: str | MergeFunction = "mean",
    weights: Sequence[float] | None = None,
    density: float = 0.2,
    order: MergeOrder = "merge-then-mask",
    strategy: str | MaskFunction | None = None,
    seed: int = 0,
    progress: Progress = silent,
    **options: Any,
) -> TaskVector:
    """Merge task vectors into one, lazily; with votes, mask the merged vector or each vector before.

    ``merge-then-mask`` is best for several tasks: the vote is the sum of each task's binarised signs.
    ``mask-then-merge`` is best for several sources: each τ_t is masked by its own votes.

    Args:
        task_vectors: τ_t, with the same keys and shapes; those of sources with other names or vocabularies are
            first laid onto the target: ``place(tau, target).vector``.
        votes: One a task vector, in the same order: the target's votes for its task, or a task vector whose signs
            count (an oracle). None merges without masking, except for a ``random`` strategy.
        method: ``"mean"``, ``"sum"``, ``"ties"``, ``"dare"`` or ``"magnitude"``; or a function of your own: itself, or
            by its name (:mod:`gradfix.plugins`).
        weights: A coefficient a task vector, by which it is multiplied first; 1 by default.
        density: For ``ties``, ``dare`` and ``magnitude``: the share of its coordinates that each τ_t keeps, in (0, 1].
        order: ``"merge-then-mask"`` or ``"mask-then-merge"``.
        strategy: Of the mask, as in :func:`gradfix.vectors.masks.mask`; None is ``agreement`` with votes, ``none``
            without.
        seed: For ``dare`` and ``random``; in ``mask-then-merge`` each τ_t draws coins of its own.
        progress: Told the coordinates ranked, when ``ties`` needs its thresholds: at the first read.
        **options: The mask's own. ``confident`` counts samples and so masks before merging only: ``merge-then-mask``
            keeps one ballot a task.

    Returns:
        The merged task vector, with the new parameters of all. Where there are any, its configuration is that of
        the first vector that brings one.

    Raises:
        GradfixError: if the vectors or votes don't fit each other, two vectors bring a parameter of one name, or an
            option is not one of those above.
    """
    # Checked below any mask: one that drops what is not a number would hide it.
    vectors = [_finite(vector, f"task vector {t}") for t, vector in enumerate(task_vectors, start=1)]
    strategy = named("mask", strategy or ("agreement" if votes is not None else "none"))
    method = named("merge", method)
    _check_options(len(vectors), method, density, order, strategy)
    if weights is not None:
        vectors = _weighted(vectors, weights)
    if find_strategy(strategy).needs == "nothing":
        votes = None
    elif votes is None or len(votes) != len(vectors):
        raise GradfixError(
            f"merge: mask {strategy!r} expects votes for each of the {len(vectors)} task vectors, in the same order, "
            f"found {0 if votes is None else len(votes)}; the same votes may be given more than once"
        )
    _check_one_target(votes or [])
    _check_rows(vectors)
    if strategy == "none":
        return _merged(vectors, method, density, seed, progress)
    signals: list[Votes | TaskVector | None] = list(votes) if votes else [None] * len(vectors)
    singly = [
        # One stream of coins for each pair of seed and vector.
        mask(vector, signal, strategy=strategy, seed=seed * len(vectors) + t, **options)
        for t, (vector, signal) in enumerate(zip(vectors, signals, strict=True))
    ]
    if order == "mask-then-merge":
        return _merged(singly, method, density, seed, progress)
    merged = _merged(vectors, method, density, seed, progress)
    if votes is None:
        return mask(merged, strategy=strategy, seed=seed)
    ballots = SignSum(
        votes,
        [match_names(merged.specs, each.specs).names for each in votes],
        {"operation": "sum of signs", "of": [one.origin["signal"] for one in singly]},
    )
    return mask(merged, ballots, strategy=strategy, voters=len(votes))


def _finite(vector: TaskVector, owner: str) -> TaskVector:
    """Give the same vector with its blocks checked, under the same origin."""
    return TaskVector(
        Checked(vector, owner),
        additions=vector.additions,
        config=vector.config,
        directory=vector.directory,
        placement=vector.placement,
        ties=vector.ties,
        origin=lambda: vector.origin,
    )


AVERAGES = frozenset({"mean", "ties"})
"""Methods whose result is no larger than what goes in: others may leave the numbers of float32, which is refused."""


def _weighted(vectors: Sequence[TaskVector], weights: Sequence[float]) -> list[TaskVector]:
    if len(weights) != len(vectors) or not all(math.isfinite(weight) for weight in weights):
        raise GradfixError(
            f"merge: weights: expected a finite number for each of the {len(vectors)} task vectors, "
            f"found {listed(map(str, weights))}"
        )
    return [vector * weight for vector, weight in zip(vectors, weights, strict=True)]


def _thinned(
    vector: TaskVector, t: int, count: int, method: str, density: float, seed: int, progress: Progress
) -> TensorSource:
    """Leave out of a vector what its method does not merge."""
    thins = find_method(method).thins
    if thins == "smallest":
        return Trimmed(vector, density, f"ranking the magnitudes of task vector {t}", progress)
    # One stream of random numbers for each pair of seed and vector.
    return Dropped(vector, density, seed * count + t - 1) if thins == "random" else vector


def _merged(
    vectors: Sequence[TaskVector], method: str, density: float, seed: int, progress: Progress
) -> TaskVector:
    """Merge vectors that are masked already or not at all."""
    chosen = find_method(method)
    terms = [
        _thinned(vector, t, len(vectors), method, density, seed, progress)
        for t, vector in enumerate(vectors, start=1)
    ]
    total = combine([(1.0, vector) for vector in vectors])  # checks the tensors and unites the new parameters
    headed = next((vector for vector in vectors if vector.additions.specs), vectors[0])
    joined: TensorSource = Merged(terms, chosen.function)
    if method not in AVERAGES:
        joined = Checked(joined, f"the {method} of the task vectors")
    merged = TaskVector(
        joined,
        additions=total.additions,
        config=headed.config,
        directory=headed.directory,
        ties=headed.ties,
        origin=lambda: {
            "operation": "merge",
            "method": method,
            **({"density": density} if chosen.thins else {}),
            **({"seed": seed} if chosen.thins == "random" else {}),
            "vectors": [vector.origin for vector in vectors],
        },
    )
    merged.placement = _joint_placement(vectors, merged)
    return merged


def _joint_placement(vectors: Sequence[TaskVector], merged: TaskVector) -> Placement | None:
    """Lay the merged vector where all its parts lie, with the new parameters of all of them."""
    placements = [vector.placement for vector in vectors]
    placed = [placement for placement in placements if placement is not None]
    if not placed:
        return None
    targets = sorted({placement.target for placement in placed})
    if len(targets) > 1 or len(placed) < len(placements):
        raise GradfixError(
            f"merge: {len(placed)} of {len(placements)} task vectors are placed, on {listed(targets)}; "
            "place all of them on one target, or none"
        )
    # Where a model brings a head, the output has that model's names; all that bring one must agree on them.
    headed = [p for vector, p in zip(vectors, placed, strict=True) if vector.additions.specs] or placed
    names = [{theirs: ours for ours, theirs in p.outputs.items() if theirs is not None} for p in headed]
    differing = [
        theirs for theirs in names[0] if any(other.get(theirs) != names[0][theirs] for other in names)
    ]
    if differing:
        raise GradfixError(
            f"merge: the tuned models name the target's parameters differently: {listed(differing, 3)}; "
            "merge models of one architecture"
        )
    outputs = {ours: theirs for p in headed for ours, theirs in p.outputs.items()}
    unplaced = list(dict.fromkeys(name for p in placed for name in p.unplaced))
    return replace(headed[0], vector=merged, outputs=outputs, unplaced=unplaced)


def _check_options(count: int, method: str, density: float, order: str, strategy: str) -> None:
    kinds: dict[str, Kind] = {"method": "merge", "strategy": "mask"}
    for what, given, known in (
        ("method", method, tuple(MERGE_METHODS)),
        ("order", order, get_args(MergeOrder)),
        ("strategy", strategy, tuple(name for name, s in STRATEGIES.items() if s.needs != "magnitudes")),
    ):
        if given not in known and not (what in kinds and is_plugin(kinds[what], given)):
            raise GradfixError(
                f"merge: unknown {what} {given!r}; choose from {', '.join(sorted(known))}"
                + ("; mask each vector by sizes before merging" if given == "magnitude" else "")
            )
    if find_strategy(strategy).needs == "magnitudes":
        raise GradfixError(f"merge: mask {strategy!r} compares sizes: mask each vector before merging")
    if find_strategy(strategy).needs == "votes" and order == "merge-then-mask":
        raise GradfixError(
            f"merge: mask {strategy!r} counts samples, and merge-then-mask keeps one ballot a task; "
            "merge with the order mask-then-merge"
        )
    if not 0 < density <= 1:
        raise GradfixError(f"merge: density: expected a share in (0, 1], found {density}")
    if not count:
        raise GradfixError("merge: expected at least one task vector, found none")


def _check_one_target(votes: Sequence[Votes | TaskVector]) -> None:
    """Refuse votes that were counted at different weights: their sum would be of no model."""
    seen: dict[str, str] = {}
    for t, one in enumerate(votes, start=1):
        marks = one.fingerprints if isinstance(one, Votes) else {}
        differing = [name for name, mark in marks.items() if seen.setdefault(name, mark) != mark]
        if differing:
            raise GradfixError(
                f"merge: votes {t} were counted at other weights than those before: {listed(differing, 3)} differ; "
                "count all votes at the same target"
            )


def _check_rows(vectors: Sequence[TaskVector]) -> None:
    """Refuse embeddings of one size whose rows belong to different tokens, unless placement ordered them."""
    first = vectors[0]
    for t, other in enumerate(vectors[1:], start=2):
        if first.placement is not None or other.placement is not None or first.specs != other.specs:
            continue
        maps = vocabulary_rows(first, other, {name: name for name in first.specs})
        moved = [
            name for name, rows in maps.items() if ((rows >= 0) & (rows != torch.arange(len(rows)))).any()
        ]
        if moved:
            raise GradfixError(
                f"merge: task vectors 1 and {t} have other tokens in the rows of {listed(moved)}; "
                "place both on the target first"
            )
