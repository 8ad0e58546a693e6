"""Merging against a plain twin on whole vectors in float64; its policies, and what differs from the authors' code."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import gradfix as gf
from gradfix.checkpoints import BLOCK, Checkpoint
from gradfix.checkpoints.architecture import checkpoint_names
from gradfix.checkpoints.expressions import Given
from gradfix.errors import GradfixError
from gradfix.recipes import MergeMethod, MergeRecipe, load_recipe
from gradfix.vectors.apply import apply
from gradfix.vectors.masks import mask
from gradfix.vectors.merge_methods import MERGE_METHODS, Trimmed, kth_magnitude, uniform
from gradfix.vectors.merging import AVERAGES, merge
from gradfix.vectors.placement import place
from gradfix.vectors.task_vector import TaskVector
from gradfix.votes import Votes
from tests.builders import gradfix, save_model, votes
from tests.models import tiny_bert, tiny_bert_masked_lm
from tests.triples import Triple, perturbed, random_votes, save_triple


class InMemory(Given):
    """Tensors given by name, as a source."""

    def __init__(self, **tensors: torch.Tensor) -> None:
        super().__init__(tensors)


def vector(**tensors: torch.Tensor) -> TaskVector:
    return TaskVector(InMemory(**tensors))


SHAPES = {"a": (3, 2), "b": (), "c": (0, 4), "d": (5,)}
SIZE = 12  # coordinates of all these tensors
# Few distinct values, so that magnitudes and sums are often tied; both zeros; numbers whose float32 product is 0.
VALUES = st.sampled_from([-3.0, -1.0, -0.5, -1e-30, -0.0, 0.0, 1e-45, 1e-30, 0.5, 1.0, 3.0, 3e38, -3e38])
Flat = np.ndarray


def cut(flat: Flat, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Lay a flat vector out as tensors of several shapes, a scalar and an empty one among them."""
    tensors, start = {}, 0
    for name, shape in SHAPES.items():
        count = int(np.prod(shape))
        tensors[name] = torch.from_numpy(flat[start : start + count].copy()).to(dtype).reshape(shape)
        start += count
    return tensors


def flattened(tau: TaskVector) -> Flat:
    """Read a vector back, each tensor one row at a time where it has rows."""
    parts = []
    for name, spec in tau.specs.items():
        rows = [slice(i, i + 1) for i in range(spec.shape[0])] if spec.shape else [None]
        parts += [tau.read(name, part).flatten() for part in rows]
    return torch.cat(parts).double().numpy()


def plain_mean(taus: list[Flat], density: float) -> Flat:
    return np.sum(taus, axis=0) / len(taus)


def plain_ties(taus: list[Flat], density: float) -> Flat:
    merged = np.zeros(SIZE)
    k = max(1, round(density * SIZE))
    kept = [np.where(np.abs(t) >= sorted(np.abs(t), reverse=True)[k - 1], t, 0.0) for t in taus]
    for i in range(SIZE):
        elected = np.sign(sum(t[i] for t in kept))
        agreeing = [t[i] for t in kept if elected != 0 and np.sign(t[i]) == elected]
        merged[i] = sum(agreeing) / len(agreeing) if agreeing else 0.0
    return merged


def plain_sum(taus: list[Flat], density: float) -> Flat:
    return np.sum(taus, axis=0)


def plain_magnitude(taus: list[Flat], density: float) -> Flat:
    k = max(1, round(density * SIZE))
    return np.sum([np.where(np.abs(t) >= np.sort(np.abs(t))[-k], t, 0.0) for t in taus], axis=0)


def plain_dare(taus: list[Flat], density: float) -> Flat:
    sizes = {name: int(np.prod(shape)) for name, shape in SHAPES.items()}
    kept = [
        np.concatenate([uniform(name, at, 0, count) < density for name, count in sizes.items()])
        for at in range(len(taus))
    ]
    terms = [float32(np.where(keep, tau / density, 0.0)) for keep, tau in zip(kept, taus, strict=True)]
    return np.sum(terms, axis=0)


PLAIN: dict[str, Callable[[list[Flat], float], Flat]] = {
    "mean": plain_mean,
    "sum": plain_sum,
    "ties": plain_ties,
    "magnitude": plain_magnitude,
    "dare": plain_dare,
}
MASKS: dict[str, Callable[[Flat, Flat, int], Flat]] = {
    "agreement": lambda t, v, n: np.where((np.sign(t) == np.sign(v)) & (t != 0), t, 0.0),
    "force": lambda t, v, n: np.abs(t) * np.sign(v),
    "soft": lambda t, v, n: np.where((np.sign(t) == np.sign(v)) & (t != 0), t * float32(np.abs(v) / n), 0.0),
}


def float32(values: Flat) -> Flat:
    return values.astype(np.float32).astype(np.float64)


def within_range(method: str, taus: list[Flat]) -> list[Flat]:
    """Make numbers so small that what adds them, a hundredfold at most, stays within float32."""
    return taus if method in AVERAGES else [float32(tau / 1e3) for tau in taus]


@st.composite
def task_vectors(draw: st.DrawFn) -> list[Flat]:
    count = draw(st.integers(1, 4))
    return [float32(np.array(draw(st.lists(VALUES, min_size=SIZE, max_size=SIZE)))) for _ in range(count)]


@settings(deadline=None)  # a busy machine is no failure
@given(
    values=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1), data=st.data()
)
def test_the_kth_magnitude_is_that_of_a_sort(values: list[float], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(values)))
    split = data.draw(st.integers(0, len(values)))
    x = torch.tensor(values)
    found = kth_magnitude(InMemory(first=x[:split], second=x[split:]), k)
    assert found == sorted(map(abs, values), reverse=True)[k - 1]


def test_the_kth_magnitude_is_found_over_many_blocks_and_told() -> None:
    x = torch.randn(5 * BLOCK // 2, generator=torch.Generator().manual_seed(0)).mul_(1e-3).view(-1, 4)
    told: list[tuple[str, int, int, str]] = []
    for k in (1, 7, x.numel() // 5, x.numel()):
        found = kth_magnitude(InMemory(w=x), k, progress=lambda *report: told.append(report))
        assert found == float(x.flatten().abs().kthvalue(x.numel() - k + 1).values)
    assert {(stage, total, unit) for stage, _, total, unit in told} == {
        ("ranking magnitudes", 2 * x.numel(), "coordinates")
    }
    assert [done for _, done, _, _ in told[:6]] == [
        BLOCK,
        2 * BLOCK,
        x.numel(),
        x.numel() + BLOCK,
        x.numel() + 2 * BLOCK,
        2 * x.numel(),
    ]
    with pytest.raises(ValueError, match="expected 1 to 3, the number of coordinates, found 4"):
        kth_magnitude(vector(w=torch.ones(3)), 4)


@pytest.mark.parametrize("method", MERGE_METHODS)
@settings(deadline=None)  # a busy machine is no failure
@given(taus=task_vectors(), density=st.sampled_from([0.01, 0.2, 0.5, 0.99, 1.0]))
def test_a_merge_equals_the_plain_one_on_whole_vectors(
    method: MergeMethod, taus: list[Flat], density: float
) -> None:
    taus = within_range(method, taus)
    merged = merge([vector(**cut(t)) for t in taus], method=method, density=density)
    assert np.array_equal(flattened(merged), float32(PLAIN[method](taus, density)))


@pytest.mark.parametrize("strategy", MASKS)
@pytest.mark.parametrize("method", MERGE_METHODS)
@settings(deadline=None, max_examples=40)
@given(taus=task_vectors(), data=st.data())
def test_both_orders_equal_their_definition(
    method: MergeMethod, strategy: str, taus: list[Flat], data: st.DataObject
) -> None:
    drawn = st.lists(st.integers(-4, 4), min_size=SIZE, max_size=SIZE)
    counts = [np.array(data.draw(drawn)) for _ in taus]
    votes_without = [votes(**cut(v, torch.int8)) for v in counts]
    taus = within_range(method, taus)
    vectors, plain, masked = [vector(**cut(t)) for t in taus], PLAIN[method], MASKS[strategy]

    after = merge(vectors, votes_without, method=method, density=0.5, strategy=strategy)
    signs = np.sum([np.sign(v) for v in counts], axis=0)
    assert np.array_equal(flattened(after), float32(masked(float32(plain(taus, 0.5)), signs, len(taus))))

    before = merge(
        vectors, votes_without, method=method, density=0.5, strategy=strategy, order="mask-then-merge"
    )
    single = [float32(masked(t, v, 4)) for t, v in zip(taus, counts, strict=True)]
    assert np.array_equal(flattened(before), float32(plain(single, 0.5)))


def test_trimming_is_over_the_whole_vector_where_the_authors_code_trims_each_tensor() -> None:
    tensors = {"large": torch.tensor([4.0, -3.0, 5.0]), "small": torch.tensor([0.2, -0.1, 0.1, -0.3, 0.2])}
    merged = merge([vector(**tensors)], method="ties", density=0.5)  # k = 4 of 8
    assert merged["large"].tolist() == [4.0, -3.0, 5.0]
    assert merged["small"].count_nonzero() == 1
    # The authors' code: the upper half of each tensor.
    alone = {name: Trimmed(InMemory(**{name: t}), 0.5).read(name) for name, t in tensors.items()}
    assert alone["large"].tolist() == [4.0, 0.0, 5.0]
    assert alone["small"].count_nonzero() == 3


def test_the_sign_is_elected_by_the_sum_where_the_authors_code_counts() -> None:
    taus = [torch.tensor([3.0]), torch.tensor([-1.0]), torch.tensor([-1.0])]
    assert merge([vector(w=t) for t in taus], method="ties", density=1.0)["w"].tolist() == [3.0]
    counted = torch.stack(taus).sign().sum(0).sign()
    assert counted.tolist() == [-1.0]  # the authors' code: −1


def test_a_sum_of_zero_elects_nobody_where_the_authors_code_resolves_ties_to_plus() -> None:
    pair = [vector(w=torch.tensor([2.0])), vector(w=torch.tensor([-2.0]))]
    assert merge(pair, method="ties", density=1.0)["w"].tolist() == [0.0]  # the authors' code: +2
    both = [votes(w=torch.tensor([1], dtype=torch.int8)), votes(w=torch.tensor([-4], dtype=torch.int8))]
    for sign in (1.0, -1.0):  # tied votes agree with neither direction, also not with plus
        twice = [vector(w=torch.tensor([sign]))] * 2
        assert merge(twice, both)["w"].tolist() == [0.0]


def test_all_ties_at_the_threshold_are_kept_wherever_they_stand() -> None:
    tensors = {"a": torch.tensor([1.0, -2.0, 1.0]), "b": torch.tensor([-1.0, 0.5])}
    for names in (("a", "b"), ("b", "a")):
        trimmed = Trimmed(InMemory(**{name: tensors[name] for name in names}), 0.4)  # k = 2
        assert trimmed.read("a").tolist() == [1.0, -2.0, 1.0]
        assert trimmed.read("b").tolist() == [-1.0, 0.0]


def test_a_density_that_rounds_to_nothing_keeps_the_largest() -> None:
    assert Trimmed(InMemory(w=torch.tensor([1.0, -2.0])), 0.01).read("w").tolist() == [0.0, -2.0]
    assert Trimmed(InMemory(w=torch.zeros(0)), 0.5).read("w").tolist() == []


def test_sums_are_exact_enough_to_elect_the_right_sign_in_any_order() -> None:
    taus = [torch.tensor([1.0]), torch.tensor([1e-9]), torch.tensor([-1.0])]
    assert torch.stack(taus).sum(0).item() == 0.0  # in float32, whose rounding loses the one that decides
    for order in ([0, 1, 2], [2, 1, 0]):
        merged = merge([vector(w=taus[t]) for t in order], method="ties", density=1.0)
        assert merged["w"].item() == pytest.approx(0.5)


def test_a_task_with_more_samples_has_no_more_say() -> None:
    votes_without = [
        votes(samples=n, w=torch.tensor([v], dtype=torch.int16)) for n, v in ((300, 300), (1, -1), (1, -1))
    ]
    down, up = (vector(w=torch.tensor([sign])) for sign in (-1.0, 1.0))
    assert merge([down] * 3, votes_without)["w"].tolist() == [-1.0]
    assert merge([up] * 3, votes_without)["w"].tolist() == [0.0]


def test_two_hundred_tasks_do_not_overflow_the_sum_of_signs() -> None:
    ballot = votes(w=torch.tensor([4], dtype=torch.int8))
    assert merge([vector(w=torch.ones(1))] * 200, [ballot] * 200)["w"].tolist() == [1.0]


def test_a_task_without_votes_abstains_and_what_nobody_voted_on_keeps_the_targets_value() -> None:
    tau = vector(w=torch.ones(2), v=torch.ones(1), u=torch.ones(1))
    first = votes(w=torch.tensor([1, -1], dtype=torch.int8))
    second = votes(w=torch.tensor([1, 1], dtype=torch.int8), v=torch.tensor([2], dtype=torch.int8))
    merged = merge([tau, tau], [first, second])
    assert {name: merged[name].tolist() for name in merged} == {"w": [1.0, 0.0], "v": [1.0], "u": [0.0]}
    assert merged.origin["uncovered"] == ["u"]


def test_votes_may_carry_a_known_prefix_or_be_an_oracles_signs() -> None:
    tau = vector(**{"bert.w.weight": torch.tensor([1.0, -1.0])})
    ballot = votes(**{"w.weight": torch.tensor([1, 1], dtype=torch.int8)})
    oracle = vector(**{"bert.w.weight": torch.tensor([1e-40, 1e-40])})
    assert merge([tau, tau], [ballot, oracle])["bert.w.weight"].tolist() == [1.0, 0.0]


def test_the_confident_mask_counts_the_samples_of_each_vector_and_not_one_ballot_a_task() -> None:
    taus = [vector(w=torch.tensor([2.0, 4.0, 6.0])), vector(w=torch.tensor([8.0, 8.0, 8.0]))]
    votes_without = [
        votes(4, w=torch.tensor([-4, -2, 0], dtype=torch.int8)),
        votes(20, w=torch.tensor([-4, -8, 8], dtype=torch.int8)),
    ]
    merged = merge(taus, votes_without, strategy="confident", order="mask-then-merge", level=0.1)
    # Significant at 0.1: all 4 of 4, and 8 net votes of 20.
    assert merged["w"].tolist() == [4.0, 2.0, 7.0]
    with pytest.raises(GradfixError, match=r"counts samples.*with the order mask-then-merge"):
        merge(taus, votes_without, strategy="confident")


def test_random_masks_draw_coins_of_their_own_for_each_vector() -> None:
    ones = vector(w=torch.ones(40_000))
    before = merge([ones, ones], strategy="random", order="mask-then-merge", seed=3)["w"]
    shares = [float((before == value).float().mean()) for value in (0.0, 0.5, 1.0)]
    assert shares == pytest.approx([0.25, 0.5, 0.25], abs=0.02)
    after = merge([ones, ones], strategy="random", seed=3)["w"]
    assert set(after.unique().tolist()) == {0.0, 1.0}


class Recorded(InMemory):
    """Tensors that note how much of them was read at once."""

    def __init__(self, **tensors: torch.Tensor) -> None:
        super().__init__(**tensors)
        self.largest = 0

    def read(self, name: str, rows: slice | None = None) -> torch.Tensor:
        block = super().read(name, rows)
        self.largest = max(self.largest, block.numel())
        return block


@pytest.mark.parametrize("order", ["merge-then-mask", "mask-then-merge"])
def test_nothing_is_read_before_it_is_asked_for_and_never_more_than_a_block(order: str) -> None:
    rows = 3 * BLOCK // 1024
    sources = [Recorded(w=torch.full((rows, 1024), float(t))) for t in (1, 2)]
    ballot = votes(w=torch.ones((rows, 1024), dtype=torch.int8))
    merged = merge([TaskVector(source) for source in sources], [ballot, ballot], method="ties", order=order)
    assert [source.largest for source in sources] == [0, 0]
    total = sum(float(block.sum()) for block in merged.blocks("w"))
    assert total == 1.5 * rows * 1024
    assert [source.largest for source in sources] == [BLOCK, BLOCK]


@pytest.mark.parametrize("method", MERGE_METHODS)
def test_what_masks_kept_is_counted_once_though_ranking_reads_twice_more(method: MergeMethod) -> None:
    taus = [vector(w=torch.tensor([3.0, -4.0])), vector(w=torch.tensor([1.0, 2.0]))]
    ballot = votes(w=torch.tensor([1, 1], dtype=torch.int8))
    merged = merge(taus, [ballot, ballot], method=method, order="mask-then-merge")
    list(merged.blocks("w"))
    tally = merged.tally("w")
    assert tally is not None
    assert (tally.coordinates, tally.kept, tally.square, tally.kept_square) == (4, 3, 30.0, 14.0)
    assert merge(taus, method=method).tally("w") is None


def test_a_merge_tells_what_it_was_made_from(tmp_path: Path) -> None:
    taus = [vector(w=torch.tensor([1.0])), -vector(w=torch.tensor([3.0]))]
    votes_without = [votes(w=torch.tensor([v], dtype=torch.int8)) for v in (1, -1)]
    made = {
        order: merge(taus, votes_without, method="ties", density=1.0, order=order)
        for order in ("merge-then-mask", "mask-then-merge")
    }
    after, before = made["merge-then-mask"].origin, made["mask-then-merge"].origin
    assert (after["operation"], after["of"]["operation"], len(after["signal"]["of"])) == ("mask", "merge", 2)
    assert (before["operation"], before["density"]) == ("merge", 1.0)
    assert [part["operation"] for part in before["vectors"]] == ["mask", "mask"]
    assert before["vectors"][1]["of"]["operation"] == "scale"
    made["mask-then-merge"].save(tmp_path / "tau.safetensors")
    assert TaskVector.load(tmp_path / "tau.safetensors").origin == before
    assert "density" not in merge(taus).origin


def headed(value: float, head: str | None, **config: object) -> TaskVector:
    additions = None if head is None else InMemory(**{head: torch.full((2,), value)})
    return TaskVector(InMemory(w=torch.tensor([value])), additions=additions, config=config)


def test_heads_of_different_names_are_all_kept_and_two_of_one_name_refused() -> None:
    merged = merge([headed(1, None, n=1), headed(2, "score", n=2), headed(6, "spans", n=3)])
    assert merged["w"].tolist() == [3.0]
    assert {name: merged.additions.read(name).tolist() for name in merged.additions.specs} == {
        "score": [2.0, 2.0],
        "spans": [6.0, 6.0],
    }
    assert merged.config == {"n": 2}
    with pytest.raises(GradfixError, match=r"a parameter of the same name: score"):
        merge([headed(1, "score"), headed(2, "score")])


def test_refusals_say_what_to_do() -> None:
    tau, ballot = vector(w=torch.ones(2)), votes(w=torch.ones(2, dtype=torch.int8))
    with pytest.raises(
        GradfixError, match="unknown method 'median'; choose from dare, magnitude, mean, sum, ties"
    ):
        merge([tau], method="median")  # type: ignore[arg-type]
    with pytest.raises(GradfixError, match="unknown order 'both'; choose from mask-then-merge"):
        merge([tau], order="both")  # type: ignore[arg-type]
    with pytest.raises(GradfixError, match="unknown strategy 'agree'; choose from agreement"):
        merge([tau], strategy="agree")
    with pytest.raises(GradfixError, match="mask each vector by sizes before merging"):
        merge([tau], [tau], strategy="magnitude")
    for density in (0.0, 1.5, float("nan")):
        with pytest.raises(GradfixError, match=r"density: expected a share in \(0, 1\]"):
            merge([tau], method="ties", density=density)
    with pytest.raises(GradfixError, match="at least one task vector"):
        merge([])
    for given_votes in (None, [], [ballot]):
        with pytest.raises(GradfixError, match="votes for each of the 2 task vectors"):
            merge([tau, tau], given_votes, strategy="agreement")
    with pytest.raises(GradfixError, match="keys or shapes differ: v"):
        merge([tau, vector(w=torch.ones(2), v=torch.ones(1))])


def test_votes_of_two_targets_are_refused() -> None:
    tau = vector(w=torch.ones(1))
    first, second = (votes(w=torch.ones(1, dtype=torch.int8)) for _ in range(2))
    marked = [
        Votes(each, replace(each.record, fingerprints={"w": mark}))
        for each, mark in ((first, "x"), (second, "y"))
    ]
    with pytest.raises(
        GradfixError, match=r"votes 2 were counted at other weights.*: w differ; .*same target"
    ):
        merge([tau, tau], marked)
    assert merge([tau, tau], [marked[0], marked[0]])["w"].tolist() == [1.0]


@pytest.mark.parametrize("method", MERGE_METHODS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_number_that_is_not_finite_is_traced_to_its_vector(method: MergeMethod, bad: float) -> None:
    merged = merge([vector(w=torch.ones(2)), vector(w=torch.tensor([1.0, bad]))], method=method)
    with pytest.raises(
        GradfixError, match="task vector 2: w: expected finite numbers, found 1 NaN or infinite"
    ):
        merged["w"]


def test_a_mask_does_not_hide_a_number_that_is_not_finite() -> None:
    pair = [vector(w=torch.ones(2)), vector(w=torch.tensor([1.0, float("nan")]))]
    ballot = votes(w=torch.tensor([1, -1], dtype=torch.int8))
    with pytest.raises(
        GradfixError, match="task vector 2: w: expected finite numbers, found 1 NaN or infinite"
    ):
        merge(pair, [ballot, ballot], order="mask-then-merge")["w"]


def test_rows_of_other_tokens_are_refused_until_both_are_placed(tmp_path: Path) -> None:
    vectors = []
    for name, tokens, value in (("one", ["[UNK]", "cat"], 1.0), ("two", ["cat", "[UNK]"], 3.0)):
        (tmp_path / name).mkdir()
        base = save_model(tmp_path / name / "a", tokens, 2, lm_head__weight=torch.zeros(2, 1))
        tuned = save_model(
            tmp_path / name / "b", tokens, 2, lm_head__weight=torch.tensor([[value], [value + 1]])
        )
        vectors.append(TaskVector.between(base, tuned))
    with pytest.raises(
        GradfixError, match=r"1 and 2 have other tokens in the rows of lm_head\.weight; place"
    ):
        merge(vectors)
    target = Checkpoint.open(
        save_model(tmp_path / "c", ["cat", "[UNK]"], 2, lm_head__weight=torch.zeros(2, 1))
    )
    placed = [place(tau, target).vector for tau in vectors]
    assert merge(placed)["lm_head.weight"].flatten().tolist() == [2.5, 2.5]
    with pytest.raises(GradfixError, match="1 of 2 task vectors are placed"):
        merge([placed[0], vectors[1]])
    other = Checkpoint.open(
        save_model(tmp_path / "d", ["cat", "[UNK]"], 2, lm_head__weight=torch.zeros(2, 1))
    )
    with pytest.raises(
        GradfixError, match=r"2 of 2 task vectors are placed, on .*c, .*d; place all of them on one"
    ):
        merge([placed[0], place(vectors[1], other).vector])


def test_tokens_that_only_one_model_has_move_no_rows(tmp_path: Path) -> None:
    vectors = []
    for name, tokens in (("one", ["[UNK]", "cat"]), ("two", ["[UNK]", "cat", "<new>"])):  # of 4 padded rows
        (tmp_path / name).mkdir()
        base, tuned = (
            save_model(tmp_path / name / part, tokens, 4, lm_head__weight=torch.full((4, 1), value))
            for part, value in (("a", 0.0), ("b", 1.0))
        )
        vectors.append(TaskVector.between(base, tuned))
    assert merge(vectors)["lm_head.weight"].flatten().tolist() == [1.0, 1.0, 1.0, 1.0]


def test_heads_under_other_names_of_the_same_parameters_are_refused(tmp_path: Path) -> None:
    target = Checkpoint.open(save_model(tmp_path / "c", None, 9, layer__weight=torch.zeros(2)))
    placed = []
    for prefix, head in (("bert__", "score"), ("", "spans")):
        base = save_model(tmp_path / f"base_{head}", None, 9, **{f"{prefix}layer__weight": torch.zeros(2)})
        tuned = save_model(
            tmp_path / f"tuned_{head}",
            None,
            9,
            **{f"{prefix}layer__weight": torch.ones(2), f"{head}__weight": torch.ones(1)},
        )
        placed.append(place(TaskVector.between(base, tuned), target).vector)
    with pytest.raises(GradfixError, match=r"name the target's parameters differently: layer\.weight"):
        merge(placed)


def test_two_heads_on_a_target_are_both_written_under_the_tuned_models_names(tmp_path: Path) -> None:
    base, target = tiny_bert_masked_lm(seed=0), tiny_bert_masked_lm(seed=2)
    base.save_pretrained(tmp_path / "base")
    target.save_pretrained(tmp_path / "target")
    taus = []
    for seed in (5, 6):
        tuned = tiny_bert(seed=seed)
        tuned.bert.load_state_dict(base.bert.state_dict(), strict=False)
        perturbed(tuned, 1e-2, seed=seed).save_pretrained(tmp_path / f"tuned{seed}")
        tensors = load_file(tmp_path / f"tuned{seed}" / "model.safetensors")
        renamed = {name.replace("classifier", f"head{seed}").replace("pooler", f"pooler{seed}"): t
                   for name, t in tensors.items()}  # fmt: skip
        save_file(renamed, tmp_path / f"tuned{seed}" / "model.safetensors", metadata={"format": "pt"})
        config = json.loads((tmp_path / f"tuned{seed}" / "config.json").read_text())
        config["architectures"] = [
            "BertWithTwoHeads"
        ]  # of the user's own: nobody here can ask whether it loads
        (tmp_path / f"tuned{seed}" / "config.json").write_text(json.dumps(config))
        taus.append(TaskVector.between(tmp_path / "base", tmp_path / f"tuned{seed}"))
    opened = Checkpoint.open(tmp_path / "target")
    first, second = (place(tau, opened).vector for tau in taus)
    apply(merge([first, second]), opened, output=tmp_path / "output")
    written = load_file(tmp_path / "output" / "model.safetensors")
    assert {"head5.weight", "head6.weight", "bert.pooler5.dense.bias", "bert.pooler6.dense.bias"} <= set(
        written
    )
    assert any(
        name.startswith("cls.") for name in written
    )  # nothing of the target goes that nobody asked to go
    name = "bert.encoder.layer.0.output.dense.weight"
    expected = opened[name] + ((taus[0][name].double() + taus[1][name].double()) / 2).float()
    assert torch.equal(written[name], expected)


@pytest.fixture
def files(tmp_path: Path) -> tuple[Triple, list[Path], list[Path]]:
    """Two fine-tunes of one base as task vector files, and votes of two tasks at the target."""
    triple = save_triple("bert", tmp_path)
    perturbed(triple.load(triple.base), 1e-2, seed=8).save_pretrained(tmp_path / "tuned2")
    model = triple.load(triple.target)
    taus, votes_without = [], []
    for t, tuned in enumerate((triple.tuned, tmp_path / "tuned2")):
        taus.append(tmp_path / f"tau{t}.safetensors")
        TaskVector.between(triple.base, tuned).save(taus[-1])
        votes_without.append(tmp_path / f"votes{t}.safetensors")
        random_votes(model, seed=t).renamed(checkpoint_names(model)).save(votes_without[-1])
    return triple, taus, votes_without


def repeated(option: str, paths: list[Path]) -> list[str]:
    return [part for path in paths for part in (option, str(path))]


Files = tuple[Triple, list[Path], list[Path]]


@pytest.mark.parametrize("order", ["merge-then-mask", "mask-then-merge"])
def test_the_command_writes_the_model_that_the_library_makes(
    files: Files, order: str, tmp_path: Path
) -> None:
    triple, taus, votes_without = files
    result = gradfix(
        "merge", *repeated("--task-vector", taus), *repeated("--votes", votes_without), "--method", "ties",
        "--density", 0.3, "--order", order, "--target-base", triple.target, "--alpha", 0.5,
        "--output", tmp_path / "model", "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    opened = [TaskVector.load(path) for path in taus]
    counted = [Votes.load(path) for path in votes_without]
    expected = gf.merge(opened, counted, method="ties", density=0.3, order=order)
    start, written = triple.load(triple.target).state_dict(), triple.load(tmp_path / "model").state_dict()
    for name in expected:
        assert torch.equal(written[name], start[name] + 0.5 * expected[name]), name
    report = json.loads(result.stdout)
    assert report["alpha"] == 0.5
    singly = [mask(tau, each) for tau, each in zip(opened, counted, strict=True)]
    before = sum(int(tau[name].count_nonzero()) for tau in opened for name in tau)
    kept = sum(int(one[name].count_nonzero()) for one in singly for name in one)
    if order == "mask-then-merge":
        assert report["kept_share"] == pytest.approx(kept / before)
    assert 0 < report["kept_share"] < 1
    assert "of the task vector kept" in result.stderr


def test_the_command_writes_a_file_that_apply_takes(files: Files, tmp_path: Path) -> None:
    triple, taus, votes_without = files
    masked = [*repeated("--task-vector", taus), *repeated("--votes", votes_without)]
    result = gradfix("merge", *masked, "--output", tmp_path / "tau.safetensors", "--json")
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    merged = TaskVector.load(tmp_path / "tau.safetensors")
    assert report["norm"] == merged.norm()
    assert report["origin"] == merged.origin
    one = gradfix("merge", *masked, "--target-base", triple.target, "--output", tmp_path / "one")
    two = gradfix(
        "apply", "--task-vector", tmp_path / "tau.safetensors", "--target-base", triple.target,
        "--output", tmp_path / "two",
    )  # fmt: skip
    assert (one.exit_code, two.exit_code) == (0, 0), one.stderr + two.stderr
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    again = gradfix("merge", *masked, "--output", tmp_path / "tau.safetensors")
    assert (again.exit_code, "--overwrite" in again.stderr) == (1, True)
    narrow = gradfix(
        "merge", *repeated("--task-vector", taus), "--dtype", "bfloat16", "--overwrite",
        "--output", tmp_path / "tau.safetensors",
    )  # fmt: skip
    assert narrow.exit_code == 0, narrow.stderr
    assert {t.dtype for t in load_file(tmp_path / "tau.safetensors").values()} == {torch.bfloat16}


@pytest.mark.slow
def test_the_command_takes_a_mask_and_a_seed(files: Files, tmp_path: Path) -> None:
    _, taus, votes_without = files
    arguments = ["merge", *repeated("--task-vector", taus), *repeated("--votes", votes_without)]
    opened = [TaskVector.load(path) for path in taus]
    for strategy, seed in (("none", 0), ("random", 1), ("random", 2)):
        output = tmp_path / f"{strategy}{seed}.safetensors"
        result = gradfix(*arguments, "--mask", strategy, "--seed", seed, "--output", output)
        assert result.exit_code == 0, result.stderr
        expected, found = merge(opened, strategy=strategy, seed=seed), TaskVector.load(output)
        assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("strangers", [[1], [0, 1]])
def test_votes_of_another_model_are_refused_and_nothing_is_written(
    files: Files, strangers: list[int], tmp_path: Path
) -> None:
    triple, taus, votes_without = files
    for t in strangers:
        votes_without[t].unlink()
        random_votes(tiny_bert(seed=9), seed=t).save(votes_without[t])
    arguments = ["merge", *repeated("--task-vector", taus), *repeated("--votes", votes_without)]
    arguments += ["--output", str(tmp_path / "output")]
    refused = [gradfix(*arguments, "--target-base", triple.target)]
    assert "not those the votes were counted at" in refused[0].stderr
    if len(strangers) == 1:  # without a target, votes can only be compared with each other
        refused.append(gradfix(*arguments))
        assert "votes 2 were counted at other weights" in refused[1].stderr
    for result in refused:
        assert result.exit_code == 1
        assert len(result.stderr.strip().splitlines()) == 1
        assert not (tmp_path / "output").exists()


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--task-vector", "b", "--votes", "v"], "give --votes for each of the 2 task vectors, or none"),
        (["--task-vector", "b", "--mask", "force"], "--mask force needs --votes"),
        (["--task-vector", "b", "--alpha", "0.5", "--resume"], "--alpha, --resume: only with --target-base"),
        (["--task-vector", "b", "--density", "0"], "density: Input should be greater than 0"),
        (["--task-vector", "b", "--order", "both"], "both"),
        ([], "--task-vector: List should have at least 2 items"),
    ],
)
def test_wrong_usage_is_said_before_anything_is_read(extra: list[str], message: str) -> None:
    result = gradfix("merge", "--task-vector", "a", "--output", "o", *extra)
    assert result.exit_code == 2
    assert message in result.stderr


def test_a_merge_can_be_told_by_a_recipe(tmp_path: Path) -> None:
    recipe = MergeRecipe(task_vector=[Path("a"), Path("b")], output=Path("o"), method="ties", density=0.1)
    (tmp_path / "recipe.yaml").write_text(recipe.dump())
    assert load_recipe(tmp_path / "recipe.yaml") == recipe
    assert set(get_args(MergeMethod)) == set(MERGE_METHODS)


@pytest.mark.parametrize("method", ["sum", "dare", "magnitude"])
def test_a_sum_beyond_the_numbers_of_float32_is_refused(method: str) -> None:
    large = vector(w=torch.full((8,), 3e38))
    merged = merge([large, large], method=method, density=0.99)
    with pytest.raises(GradfixError, match=f"the {method} of the task vectors"):
        merged.read("w")


def test_weights_multiply_each_vector_first() -> None:
    flats = [np.random.default_rng(seed).normal(size=SIZE) for seed in range(2)]
    merged = merge([vector(**cut(flat)) for flat in flats], method="sum", weights=[1.0, -2.0])
    assert np.allclose(flattened(merged), float32(flats[0]) - 2 * float32(flats[1]), rtol=1e-6)


def test_what_dare_drops_does_not_depend_on_blocks_and_has_the_vector_as_its_mean() -> None:
    whole = uniform("w", 3, 0, 1000)
    parts = [uniform("w", 3, start, 100) for start in range(0, 1000, 100)]
    odd = [uniform("w", 3, 0, 7), uniform("w", 3, 7, 993)]
    assert np.array_equal(whole, np.concatenate(parts))
    assert np.array_equal(whole, np.concatenate(odd))
    assert not np.array_equal(whole, uniform("w", 4, 0, 1000))
    assert abs(whole.mean() - 0.5) < 0.03
    tau = vector(w=torch.ones(50_000))
    dropped = merge([tau], method="dare", density=0.1)["w"]
    assert set(dropped.unique().tolist()) == {0.0, 10.0}
    assert abs(float(dropped.mean()) - 1) < 0.05


def test_weights_are_one_a_vector() -> None:
    with pytest.raises(
        GradfixError, match="weights: expected a finite number for each of the 1 task vectors"
    ):
        merge([vector(w=torch.ones(2))], weights=[1.0, 2.0])
