"""The best low-rank factors of a dense matrix, by randomised subspace iteration.

Source: Halko, Martinsson and Tropp, "Finding structure with randomness", SIAM Review 53 (2011), algorithms 4.4 and 5.1.
Legend: o outputs, i inputs, r rank, k columns of the sketch.
"""

import math

import torch
from torch import Tensor

OVERSAMPLING = 24
"""Columns of the sketch beyond the rank."""

ITERATIONS = 3
"""Passes that turn the sketch towards the leading directions: spectra of fine-tunes fall slowly."""

DENSE_SHARE = 0.5
"""Share of the smaller side from which a full decomposition is as fast as a sketch."""

FIRST_RANK = 16
"""What is tried first where a share of the norm is asked for."""


def truncate(
    matrix: Tensor, *, rank: int | None = None, energy: float | None = None, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Approximate a matrix by two thin factors, split evenly: B = U√Σ, A = √Σ Vᵀ.

    Args:
        matrix: Float32 of shape [o, i].
        rank: r at most; None for no bound.
        energy: Share of the squared norm to reach, in (0, 1], with as small a rank as does; None for rank alone.
        seed: Of the sketch.

    Returns:
        B of shape [o, r] and A of shape [r, i]; r is 0 for a matrix of zeros.
    """
    most = min(*matrix.shape, rank or min(matrix.shape))
    square = float(matrix.double().square().sum()) if energy is not None else 0.0
    tried = most if energy is None else min(most, FIRST_RANK)
    while True:
        u, sigma, v = _decomposed(matrix, tried, seed)
        reached = sigma.double().square().cumsum(0)
        enough = square * energy * (1 - 1e-6) if energy is not None else math.inf
        if tried == most or float(reached[-1]) >= enough:
            break
        tried = min(most, 2 * tried)
    kept = int((reached < enough).sum()) + 1 if energy is not None else tried
    kept = min(kept, tried, int((sigma > 0).sum()))
    root = sigma[:kept].sqrt()
    return u[:, :kept] * root, root.unsqueeze(1) * v[:kept]


def _decomposed(matrix: Tensor, rank: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """The leading singular values and vectors: U [o, r], σ [r], Vᵀ [r, i]."""
    columns = rank + OVERSAMPLING
    if columns >= DENSE_SHARE * min(matrix.shape):
        u, sigma, v = torch.linalg.svd(matrix, full_matrices=False)
        return u[:, :rank], sigma[:rank], v[:rank]
    generator = torch.Generator().manual_seed(seed)
    sketch = torch.randn(matrix.shape[1], columns, generator=generator)
    basis = torch.linalg.qr(matrix @ sketch).Q
    for _ in range(ITERATIONS):
        basis = torch.linalg.qr(matrix @ torch.linalg.qr(matrix.T @ basis).Q).Q
    u, sigma, v = torch.linalg.svd(basis.T @ matrix, full_matrices=False)
    return (basis @ u)[:, :rank], sigma[:rank], v[:rank]
