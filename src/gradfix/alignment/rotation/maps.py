"""Orthogonal maps between the coordinates of two models, and how they are found from activations.

Rows are what both models made of the same inputs, and vectors are rows: X_A R ≈ X_B once both are centred.

Letters: n rows, a and b coordinates of A and B, h heads of width d.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]
from torch import Tensor

_RANK = 1e-6
"""Singular values below this share of the largest are rounding errors, and say nothing about a direction."""


class Map(Protocol):
    """A linear map from A's coordinates to B's along the last axis."""

    def apply(self, values: Tensor) -> Tensor:
        """Map the last axis: ``x R``.

        Args:
            values: ``[..., a]``.

        Returns:
            ``[..., b]``.
        """
        ...

    def gains(self, values: Tensor) -> Tensor:
        """Map factors of coordinates, as a norm has them: the diagonal of Rᵀ diag(g) R.

        Args:
            values: g, ``[..., a]``.

        Returns:
            ``[..., b]``.
        """
        ...


@dataclass(frozen=True)
class Rotation:
    """A dense orthogonal matrix: ``matrix`` is R, ``[a, b]``."""

    matrix: Tensor

    def apply(self, values: Tensor) -> Tensor:
        """Map the last axis: ``x R``."""
        return values @ self.matrix

    def gains(self, values: Tensor) -> Tensor:
        """Map factors of coordinates: Σ_i g_i R_ij²."""
        return values @ self.matrix.square()


@dataclass(frozen=True)
class Permutation:
    """Another order of the coordinates: B's coordinate j is A's coordinate ``order[j]``."""

    order: Tensor

    def apply(self, values: Tensor) -> Tensor:
        """Reorder the last axis."""
        return values[..., self.order]

    def gains(self, values: Tensor) -> Tensor:
        """Reorder the last axis: a permutation takes factors as it takes values."""
        return self.apply(values)


@dataclass(frozen=True)
class HeadMap:
    """Another order of attention heads, and a map within each: B's head j is A's head ``order[j]`` times ``within[j]``.

    Attributes:
        order: int64 ``[h]``.
        within: ``[h, d, d]``.
    """

    order: Tensor
    within: Tensor

    def apply(self, values: Tensor) -> Tensor:
        """Map the last axis, ``[..., h d]``."""
        heads = values.reshape(*values.shape[:-1], len(self.order), -1)[..., self.order, :]
        return torch.einsum("...hd,hde->...he", heads, self.within).flatten(-2)

    def gains(self, values: Tensor) -> Tensor:
        """Map factors of coordinates, head by head."""
        return HeadMap(self.order, self.within.square()).apply(values)


Finder = Callable[[Tensor], Tensor]
"""From a cross-covariance ``[a, b]`` to the matrix R, ``[a, b]``, that explains it best."""


def cross_covariance(source: Tensor, target: Tensor) -> Tensor:
    """Compute X_AᵀX_B of centred activations, divided by both their norms so that several may be added.

    Args:
        source: X_A, ``[n, a]``.
        target: X_B, ``[n, b]``, of the same inputs.

    Returns:
        ``[a, b]``, float64 below a width of 2048; zeros where either side is constant.
    """
    dtype = torch.float64 if max(source.shape[1], target.shape[1]) < DOUBLE_BELOW else torch.float32
    source, target = _centred(source, dtype), _centred(target, dtype)
    size = source.norm() * target.norm()
    covariance = source.T @ target
    return covariance / size if size > 0 else torch.zeros_like(covariance)


def procrustes_matrix(covariance: Tensor) -> Tensor:
    """Find the orthogonal R that maximises trace(Rᵀ C): U Vᵀ of the SVD of C (Schönemann, 1966).

    Directions that the activations say nothing about (fewer rows than coordinates, the mean over coordinates that
    LayerNorm removes) have many best rotations: of these the one nearest to the identity is taken.

    Args:
        covariance: C = X_AᵀX_B, ``[a, b]``.

    Returns:
        R, ``[a, b]``, float32; its columns, or if a < b its rows, are orthonormal.
    """
    u, sigma, v = torch.linalg.svd(covariance, full_matrices=False)
    rank = int((sigma > _RANK * sigma[0]).sum()) if len(sigma) and sigma[0] > 0 else 0
    if rank == len(sigma) or covariance.shape[0] != covariance.shape[1]:
        rotation: Tensor = u @ v
        return rotation.float()
    free_source, free_target = u[:, rank:], v[rank:]
    inner, _, outer = torch.linalg.svd(free_source.T @ free_target.T)
    rotation = u[:, :rank] @ v[:rank] + free_source @ inner @ outer @ free_target
    return rotation.float()


def assignment(score: Tensor) -> Tensor:
    """Match the rows of a matrix to its columns, so that the matched entries have the largest sum.

    Args:
        score: ``[k, k]``.

    Returns:
        int64 ``[k]``: the row matched to each column; the same number wherever that costs nothing.
    """
    score = score.double()
    # Ties are many where units are dead: then a unit keeps its place.
    nudge = 1e-9 * float(score.abs().max()) if score.numel() else 0.0
    rows, columns = linear_sum_assignment((score + nudge * torch.eye(len(score))).numpy(), maximize=True)
    order = torch.empty(len(score), dtype=torch.int64)
    order[torch.from_numpy(columns)] = torch.from_numpy(rows)
    return order


def permutation_matrix(covariance: Tensor) -> Tensor:
    """Find the permutation P that maximises trace(Pᵀ C) (matching of activations: Ainsworth et al., 2023).

    Args:
        covariance: C = X_AᵀX_B, square.

    Returns:
        P as a matrix, float32.
    """
    return torch.eye(len(covariance))[:, assignment(covariance)]


def identity_matrix(covariance: Tensor) -> Tensor:
    """Keep coordinates where they are, whatever the activations say.

    Args:
        covariance: ``[a, a]``.

    Returns:
        The identity, float32.
    """
    return torch.eye(len(covariance))


def unexplained(mapped: Tensor, target: Tensor) -> float:
    """Measure the share of B's variance that A's mapped, optimally scaled activations do not explain.

    Args:
        mapped: X_A R, ``[n, b]``; rows that did not shape R, if the figure is to be honest.
        target: X_B, ``[n, b]``.

    Returns:
        ‖s X_A R − X_B‖² / ‖X_B‖², both centred, with s ≥ 0 of least squares: 0 is a perfect match, 1 none; 0 where
        X_B is constant.
    """
    mapped, target = _centred(mapped, torch.float64), _centred(target, torch.float64)
    total, size = float(target.square().sum()), float(mapped.square().sum())
    if not total:
        return 0.0
    overlap = max(0.0, float((mapped * target).sum()))
    return max(0.0, 1.0 - overlap * overlap / (size * total)) if size else 1.0


def _centred(values: Tensor, dtype: torch.dtype) -> Tensor:
    values = values.to(dtype)
    return values - values.mean(dim=0)


DOUBLE_BELOW = 2048
"""Wider matrices are decomposed in float32: float64 would take most of the time there."""


def procrustes(source: Tensor, target: Tensor) -> Tensor:
    """Find the rotation of centred rows that brings them nearest: R = argmin ‖X_A R − X_B‖ over orthogonal R.

    Args:
        source: X_A, ``[rows, a]``.
        target: X_B, ``[rows, b]``, of the same inputs.

    Returns:
        R, ``[a, b]`` float32; its columns, or if a < b its rows, are orthonormal (see :func:`procrustes_matrix`).
    """
    cross = (source - source.mean(0)).T @ (target - target.mean(0))
    return procrustes_matrix(cross.double() if max(cross.shape) < DOUBLE_BELOW else cross)
