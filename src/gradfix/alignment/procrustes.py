"""The rotation that carries one model's activations onto another's."""

import torch
from torch import Tensor

DOUBLE_BELOW = 2048
"""Wider matrices are decomposed in float32: float64 would take most of the time there."""


def procrustes(source: Tensor, target: Tensor) -> Tensor:
    """Find the rotation of centred rows that brings them nearest.

    R = argmin ‖X_A R − X_B‖ over orthogonal R; it is U Vᵀ, where X_Aᵀ X_B = U S Vᵀ.
    Source: Schönemann, "A generalized solution of the orthogonal Procrustes problem", 1966.

    Args:
        source: X_A, ``[rows, width]``.
        target: X_B, of the same shape.

    Returns:
        R, ``[width, width]`` float32.
    """
    cross = (source - source.mean(0)).T @ (target - target.mean(0))
    if cross.shape[0] < DOUBLE_BELOW:
        cross = cross.double()
    left, _, right = torch.linalg.svd(cross)
    rotation: Tensor = left @ right
    return rotation.float()
