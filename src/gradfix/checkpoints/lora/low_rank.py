"""The dense change of one weight that a low-rank adapter stands for, computed by rows.

Legend: r rank, o outputs, i inputs; W is [o, i], or [i, o] where a layer stores its input first (Conv1D,
embeddings: i tokens, o features); B is [o, r], A is [r, i]. Convolutions count their kernel among the inputs.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gradfix.checkpoints.tensors import TensorSource, TensorSpec

ReadRows = Callable[[slice | None], Tensor]


@dataclass
class LowRankUpdate:
    """W → W + s B A in float32, then DoRA's rescaling if there are magnitudes.

    Attributes:
        adapter: Where A, B and the magnitudes are read from.
        down: Name of A.
        up: Name of B.
        scaling: s.
        input_first: Whether the weight is stored [i, o].
        magnitude: Name of DoRA's magnitudes, [o]; None without.
    """

    adapter: TensorSource
    down: str
    up: str
    scaling: float
    input_first: bool
    magnitude: str | None = None
    _norms: Tensor | None = field(default=None, init=False, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    @property
    def specs(self) -> tuple[TensorSpec, TensorSpec]:
        """What the file says of B and A."""
        return self.adapter.specs[self.up], self.adapter.specs[self.down]

    def factors(self) -> tuple[Tensor, Tensor]:
        """Read the two factors, the scaling in the first.

        Returns:
            s B of shape [o, r] and A of shape [r, i], float32; a convolution's kernel is flattened into i.
        """
        up = self.adapter.read(self.up).float().flatten(1)
        return up * self.scaling, self.adapter.read(self.down).float().flatten(1)

    def product(self, rows: slice | None) -> Tensor:
        """The rows of s B A, or of its transpose for a weight stored input first.

        The order of operations is that of peft's ``get_delta_weight``; always in float32.

        Args:
            rows: Range of the weight's first dimension; None for all.

        Returns:
            Shape [rows, the rest flattened].
        """
        if self.input_first:
            down = self.adapter.read(self.down).float()
            down = down if rows is None else down[:, rows]
            transposed: Tensor = (self.adapter.read(self.up).float() @ down).T * self.scaling
            return transposed
        up = self.adapter.read(self.up, rows).float().flatten(1)
        product: Tensor = up @ self.adapter.read(self.down).float().flatten(1) * self.scaling
        return product

    def apply(self, weight: ReadRows, spec: TensorSpec, rows: slice | None) -> Tensor:
        """Adapt a range of rows of the weight.

        Args:
            weight: Reads rows of the base's weight.
            spec: What the base's weight is.
            rows: Range of the first dimension; None for all.

        Returns:
            The adapted rows, in float32 (float64 if the base is).
        """
        adapted: Tensor = self._sum(weight, rows)
        if self.magnitude is None:
            return adapted
        # DoRA: W' = m · (W + s B A) / ‖W + s B A‖, the norm taken over everything but the outputs
        magnitude = self.adapter.read(self.magnitude).float().flatten()
        if self.input_first:
            return adapted * (magnitude / self._column_norms(weight, spec))
        norms: Tensor = torch.linalg.vector_norm(adapted.flatten(1), dim=1)
        magnitude = magnitude if rows is None else magnitude[rows]
        return adapted * (magnitude / norms).view(-1, *[1] * (adapted.ndim - 1))

    def _sum(self, weight: ReadRows, rows: slice | None) -> Tensor:
        part = weight(rows)
        part = part.to(torch.promote_types(part.dtype, torch.float32))
        return part.add_(self.product(rows).view(part.shape))

    def _column_norms(self, weight: ReadRows, spec: TensorSpec) -> Tensor:
        """‖W + s B A‖ of each output of a weight stored input first: one pass over its rows, done once."""
        with self._lock:
            if self._norms is None:
                squares = torch.zeros(spec.shape[1], dtype=torch.float64)
                for rows in spec.row_blocks():
                    squares += self._sum(weight, rows).double().square().sum(dim=0)
                self._norms = squares.sqrt().float()
            return self._norms
