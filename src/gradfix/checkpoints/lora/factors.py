"""The two thin factors of a low-rank change, in the form that does not depend on how training happened to split it.

Legend: r rank, o outputs, i inputs (a convolution counts its kernel among them); B is [o, r], A is [r, i].
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from gradfix.checkpoints.tensors import TensorSpec


class Change(Protocol):
    """A low-rank change of one weight in its source."""

    @property
    def input_first(self) -> bool:
        """Whether the weight is stored [i, o]."""
        ...

    @property
    def specs(self) -> tuple[TensorSpec, TensorSpec]:
        """Shapes of B and A."""
        ...

    def factors(self) -> tuple[Tensor, Tensor]:
        """Give B [o, r], with the scaling, and A [r, i]."""
        ...


@dataclass(frozen=True)
class AdapterParts:
    """What a LoRA adapter changes of its base, by the adapted model's names.

    Attributes:
        updates: The low-rank changes.
        whole: Tensors that the adapter stores whole.
        obstacle: Why low rank is not all there is to it; None for a plain LoRA.
        dtype: Element type of the factors in the adapter's file.
        task_type: What peft calls its task; None if its configuration doesn't say.
        unplaced: Layers of the file that the base doesn't have.
    """

    updates: Mapping[str, Change]
    whole: frozenset[str]
    obstacle: str | None
    dtype: torch.dtype
    task_type: str | None
    unplaced: tuple[str, ...] = ()


@dataclass(frozen=True)
class LowRank:
    """A change of one weight, W ← W + B A.

    Attributes:
        up: B, float32 [o, r].
        down: A, float32 [r, i].
        input_first: Whether the weight is stored [i, o].
    """

    up: Tensor
    down: Tensor
    input_first: bool

    @property
    def rank(self) -> int:
        """R."""
        return self.up.shape[1]


def canonical(up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    """Split a product evenly: B = U√Σ, A = √Σ Vᵀ of its thin SVD, found without forming the product.

    Args:
        up: [o, r].
        down: [r, i].

    Returns:
        Float32 factors of the same shapes and the same product; columns beyond its rank are 0.
    """
    left, left_core = torch.linalg.qr(up.double())
    right, right_core = torch.linalg.qr(down.double().T)
    u, sigma, v = torch.linalg.svd(left_core @ right_core.T, full_matrices=False)
    root, rank = sigma.sqrt(), up.shape[1]
    split_up, split_down = (
        torch.zeros_like(up, dtype=torch.float32),
        torch.zeros_like(down, dtype=torch.float32),
    )
    split_up[:, : len(root)] = (left @ u) * root
    split_down[: len(root)] = root.unsqueeze(1) * (v @ right.T)
    assert len(root) <= rank
    return split_up, split_down


def placed(update: Change, rows: Tensor | None = None) -> LowRank:
    """Read a low-rank change in its canonical form, on a target's rows.

    Args:
        update: The change in its source.
        rows: For each row of the target's weight the source's, −1 where it has none; None where they are the same.

    Returns:
        The factors; rows without a counterpart change nothing.
    """
    up, down = update.factors()
    if rows is not None:
        known = (rows >= 0).float()
        if update.input_first:
            down = down[:, rows.clamp(min=0)] * known
        else:
            up = up[rows.clamp(min=0)] * known.unsqueeze(1)
    return LowRank(*canonical(up, down), update.input_first)
