"""The best low-rank factors of a dense matrix, by a randomised block Krylov method.

Source: Musco and Musco, "Randomized block Krylov methods for stronger and faster approximate singular value
decomposition", NeurIPS 2015 (arXiv 1504.05477), algorithm 2. Spectra of fine-tunes fall slowly, and there a Krylov
space finds in ten passes what subspace iteration does not in thirty. Blocks narrower than the rank find more with as
many columns (Meyer, Musco and Musco, arXiv 2305.02535), as long as each is kept orthogonal to those before it.
Legend: o outputs, i inputs, r rank, k columns of the space.
"""

import math

import torch
from torch import Tensor

OVERSAMPLING = 8
"""Columns beyond the rank."""

TIMES, FEWEST_TIMES = 11, 4
"""How many times so many columns the space has, and how many are worth trying where the matrix is small."""

NARROWEST, NARROW_BLOCKS = 16, 20
"""Columns of a block at least, since products with fewer are slow; and so many blocks of that width at least, where
the matrix has room for them."""

DENSE_SHARE = 0.6
"""Share of the smaller side from which a full decomposition is as fast."""

RANK_TOLERANCE = 1e-6
"""Share of the largest singular value below which one is rounding."""

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
    kept = min(kept, tried, int((sigma > RANK_TOLERANCE * sigma.max()).sum()))
    root = sigma[:kept].sqrt()
    return u[:, :kept] * root, root.unsqueeze(1) * v[:kept]


def _decomposed(matrix: Tensor, rank: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """The leading singular values and vectors: U [o, r], σ [r], Vᵀ [r, i]."""
    least = rank + OVERSAMPLING
    columns = max(TIMES * least, NARROW_BLOCKS * NARROWEST)
    columns = min(columns, int(DENSE_SHARE * min(matrix.shape)))
    if columns < FEWEST_TIMES * least:
        u, sigma, v = torch.linalg.svd(matrix, full_matrices=False)
        return u[:, :rank], sigma[:rank], v[:rank]
    width = max(NARROWEST, -(-rank // 2))
    generator = torch.Generator().manual_seed(seed)
    block = torch.linalg.qr(matrix @ torch.randn(matrix.shape[1], width, generator=generator)).Q
    basis = block
    for _ in range(columns // width - 1):
        block = matrix @ (matrix.T @ block)
        block = torch.linalg.qr(block - basis @ (basis.T @ block)).Q
        basis = torch.cat([basis, block], dim=1)
    basis = torch.linalg.qr(basis).Q  # once more: what is left of a block may be rounding
    inside = basis.T @ matrix
    # The space has few columns: its Gram matrix is decomposed in their place, in float64 for the square's sake.
    squares, turned = torch.linalg.eigh((inside @ inside.T).double())
    turned = turned[:, -rank:].flip(1).to(matrix.dtype)
    sigma = squares[-rank:].flip(0).clamp(min=0).sqrt().to(matrix.dtype)
    v = (turned.T @ inside) / sigma.clamp(min=torch.finfo(matrix.dtype).tiny).unsqueeze(1)
    return basis @ turned, sigma, v
