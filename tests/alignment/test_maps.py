"""Maps between coordinates, from covariances: what is best, and what is taken where many are best."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gradfix.alignment.rotation.maps import (
    HeadMap,
    Permutation,
    Rotation,
    assignment,
    cross_covariance,
    permutation_matrix,
    procrustes_matrix,
    unexplained,
)


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def orthogonal(width: int, seed: int = 1) -> torch.Tensor:
    return torch.linalg.qr(drawn(width, width, seed=seed).double())[0].float()


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 99))
def test_no_other_orthogonal_matrix_has_a_larger_trace(a: int, b: int, seed: int) -> None:
    covariance = drawn(a, b, seed=seed).double()
    best = procrustes_matrix(covariance)
    other = drawn(a, b, seed=seed + 1)
    left, _, right = torch.linalg.svd(other, full_matrices=False)
    assert (best * covariance).sum() >= ((left @ right) * covariance).sum() - 1e-6
    small = best.T @ best if a >= b else best @ best.T
    torch.testing.assert_close(small, torch.eye(min(a, b)), rtol=1e-5, atol=1e-5)


def test_directions_without_data_stay_where_they_are() -> None:
    # Two rows vary in one direction alone, which a quarter turn carries over: the other five can't be known.
    source = torch.zeros(4, 6)
    source[:, 0] = torch.tensor([1.0, -1.0, 2.0, -2.0])
    target = source[:, [1, 0, 2, 3, 4, 5]]
    rotation = procrustes_matrix(cross_covariance(source, target))
    torch.testing.assert_close(source @ rotation, target)
    torch.testing.assert_close(rotation[2:, 2:], torch.eye(4), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(rotation.T @ rotation, torch.eye(6), rtol=1e-5, atol=1e-5)
    constant = torch.ones(4, 6)
    torch.testing.assert_close(procrustes_matrix(cross_covariance(constant, constant)), torch.eye(6))


def test_dead_units_keep_their_places() -> None:
    score = torch.zeros(5, 5)
    score[0, 1] = score[1, 0] = 1.0
    assert assignment(score).tolist() == [1, 0, 2, 3, 4]


@given(st.integers(1, 8), st.integers(0, 99))
def test_a_permutation_is_found(width: int, seed: int) -> None:
    order = torch.randperm(width, generator=torch.Generator().manual_seed(seed))
    source = drawn(50, width, seed=seed)
    matrix = permutation_matrix(cross_covariance(source, source[:, order]))
    assert torch.equal(source @ matrix, source[:, order])
    assert torch.equal(Permutation(matrix.argmax(dim=0)).apply(source), source[:, order])


@pytest.mark.parametrize("factor", [1e-3, 1.0, 1e3])
def test_scale_and_offset_explain_themselves(factor: float) -> None:
    values = drawn(40, 5)
    assert unexplained(values, factor * values + 7) == pytest.approx(0, abs=1e-6)
    assert unexplained(values, -values) == 1.0
    assert unexplained(torch.zeros(40, 5), values) == 1.0
    assert unexplained(values, torch.ones(40, 5)) == 0.0
    assert 0.8 < unexplained(values, drawn(40, 5, seed=2)) <= 1.0


def test_large_activations_weigh_no_more_than_small_ones() -> None:
    source, target = drawn(30, 4), drawn(30, 4, seed=1)
    torch.testing.assert_close(cross_covariance(100 * source, target), cross_covariance(source, target))
    assert not cross_covariance(torch.ones(30, 4), target).any()


def test_maps_of_heads_equal_their_matrices() -> None:
    order = torch.tensor([2, 0, 1])
    within = torch.stack([orthogonal(4, seed) for seed in range(3)])
    heads = HeadMap(order, within)
    matrix = heads.apply(torch.eye(12))
    values, gains = drawn(5, 12), drawn(12, seed=4)
    torch.testing.assert_close(heads.apply(values), Rotation(matrix).apply(values), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        heads.gains(gains), (matrix.T @ gains.diag() @ matrix).diagonal(), rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(matrix[8:, :4], within[0])
