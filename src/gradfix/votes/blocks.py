"""From contributions to votes, a block of per-sample gradients at a time.

Index letters: ``n`` sample of N, ``r`` row of the parameter of R, ``c`` the rest of it, flattened, of C.

A block is formed, its signs are taken in place and summed over samples, and it is dropped: small enough to stay
in cache, and all blocks share one piece of memory. Forming all per-sample gradients at once would cost N models.
"""

from collections.abc import Iterator, Sequence
from functools import reduce

import torch
from torch import Tensor

from gradfix.votes.contributions import Contribution, Product, Rows, Summed

BLOCK_BYTES = 4 * 2**20
"""Size of a block. Larger ones leave the cache, smaller ones make the products inefficient."""


class Blocks:
    """Walks the per-sample gradients of one parameter after the other in one piece of memory."""

    def __init__(self) -> None:
        self._memory = torch.empty(0)

    def walk(
        self, contributions: Sequence[Contribution], shape: tuple[int, int, int], device: torch.device
    ) -> Iterator[tuple[slice, Tensor]]:
        """Sum contributions, a block of rows at a time.

        Args:
            contributions: At least one.
            shape: (N, R, C).
            device: Where they are.

        Yields:
            Rows, and their gradients of shape (N, r, C), to be overwritten at will and valid until the next.
        """
        N, R, C = shape
        dtype = reduce(torch.promote_types, (each.dtype for each in contributions))
        step = max(1, BLOCK_BYTES // max(1, N * C * dtype.itemsize))
        step = min(max(R, 1), step - step % 16 if step > 16 else step)
        size = N * step * C
        if self._memory.numel() < size or self._memory.dtype != dtype or self._memory.device != device:
            self._memory = torch.empty(size, dtype=dtype, device=device)
        for start in range(0, R, step):
            rows = slice(start, min(start + step, R))
            count = rows.stop - rows.start
            block = contributions[0].block(rows, self._memory[: N * count * C].view(N, count, C))
            for other in contributions[1:]:
                if isinstance(other, Rows):
                    other.add_to(block, rows)
                else:
                    block += other.block(rows)
            yield rows, block

    def add_votes(self, counts: Tensor, contributions: Sequence[Contribution], samples: int) -> None:
        """Add every sample's vote for the direction of descent.

        Args:
            counts: The running votes, integers of shape (R, C), changed in place.
            contributions: All that the parameter's per-sample gradients are made of.
            samples: N.
        """
        R, C = counts.shape
        first = contributions[0]
        if len(contributions) == 1 and isinstance(first, Rows):
            counts.index_add_(0, first.row, first.sums.sign_().neg_().to(counts.dtype))
        elif len(contributions) == 1 and isinstance(first, Summed):
            counts.sub_(first.values.sign().sum(0, dtype=torch.float32).to(counts.dtype))
        elif len(contributions) == 1 and isinstance(first, Product) and first.left.shape[1] == 1:
            self._add_outer(counts, first)
        else:
            if len(contributions) == 1 and isinstance(first, Product) and C > R:
                # the longer side makes the rows: blocks of many short rows are cheaper products than of few long
                contributions, counts = [Product(first.right, first.left)], counts.t()
                R, C = counts.shape
            ones = torch.ones(1, samples, device=counts.device)
            for rows, block in self.walk(contributions, (samples, R, C), counts.device):
                flat = torch.sign(block, out=block).view(samples, -1)
                # a sum of signs is exact in float32 up to 2²⁴ samples, but not in a lower precision
                net = ones @ flat if flat.dtype == torch.float32 else flat.sum(0, dtype=torch.float32)
                counts[rows].sub_(net.to(counts.dtype).view(-1, C))

    def _add_outer(self, counts: Tensor, product: Product) -> None:
        """Use that one position a sample gives sign(g_r x_c) = sign(g_r) sign(x_c): one product of signs."""
        left, right = (part.squeeze(1).sign().float() for part in (product.left, product.right))
        step = max(1, BLOCK_BYTES // max(1, 4 * counts.shape[1]))
        for start in range(0, len(counts), step):
            here = slice(start, start + step)
            counts[here].sub_((left[:, here].t() @ right).to(counts.dtype))
