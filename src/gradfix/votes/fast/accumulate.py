"""Counts of votes, and how each sample's gradient is added to them a block of rows at a time."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial, reduce
from itertools import groupby

import torch
from torch import Tensor, nn

from gradfix.arithmetic import COMPILED_FROM, sign_adder
from gradfix.votes.fast.contributions import Contribution, Product, Rows, Summed
from gradfix.votes.fast.threads import Job
from gradfix.votes.metadata import counts_dtype


class Tally:
    """Adds up votes, in the narrowest integers that can't overflow.

    Attributes:
        samples: N, how many samples were announced so far.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self.samples = 0
        self._parameters = parameters
        self._counts: dict[str, Tensor] = {}

    def expect(self, samples: int) -> None:
        """Announce samples before they vote, so that the counts are wide enough for them.

        Args:
            samples: How many more.
        """
        self.samples += samples
        dtype = counts_dtype(self.samples)
        for name, counts in self._counts.items():
            if counts.dtype != dtype:
                self._counts[name] = counts.to(dtype)

    def of(self, name: str) -> Tensor:
        """Give a parameter's running counts, to be added to in place.

        Args:
            name: The parameter; from now on it has votes.

        Returns:
            Integers of the parameter's shape, contiguous, on its device.
        """
        if name not in self._counts:
            parameter = self._parameters[name]
            self._counts[name] = torch.zeros(
                parameter.shape, dtype=counts_dtype(self.samples), device=parameter.device
            )
        return self._counts[name]

    def vote(self, name: str, gradient: Tensor) -> None:
        """Add one sample's vote for the direction of descent.

        Args:
            name: The parameter.
            gradient: The sample's gradient, of the parameter's shape.
        """
        counts = self.of(name)
        counts.sub_(gradient.sign().to(counts.dtype))

    def counts(self) -> dict[str, Tensor]:
        """Give the counts of every parameter that got a gradient, on the CPU and in the parameters' order."""
        return {name: self._counts[name].cpu() for name in self._parameters if name in self._counts}


BLOCK_BYTES = 2 * 2**20
"""Size of a block. Larger ones leave the cache, smaller ones make the products inefficient."""

SAMPLE_BYTES = 2**20
"""The same in float32, where it is one sample's."""

TALL, TILE = 2**10, 2**19
"""Rows and numbers of one sample's block in bfloat16. A product there first brings both of its factors into another
order, which takes as long as it does itself unless the block is both tall and wide."""

FEW = 2**20
"""Numbers of a factor that are worth a copy in the order in which products read them."""


class Blocks:
    """Forms the per-sample gradients of one parameter after the other, each thread in one piece of memory."""

    def __init__(self) -> None:
        self._memory = threading.local()

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
        for rows in _ranges(contributions, shape):
            yield rows, self._form(contributions, shape, device, rows)

    def jobs(self, counts: Tensor, contributions: Sequence[Contribution], samples: int) -> list[Job]:
        """Cut the adding of every sample's vote for the direction of descent into jobs.

        Args:
            counts: The running votes, integers of shape (R, C), changed in place.
            contributions: All that the parameter's per-sample gradients are made of.
            samples: N.

        Returns:
            Jobs that write to different places; their order makes no difference.
        """
        R, C = counts.shape
        first = contributions[0]
        if len(contributions) == 1 and isinstance(first, Rows):
            return [partial(_add_rows, counts, first)]
        if len(contributions) == 1 and isinstance(first, Summed):
            return [partial(_add_summed, counts, first)]
        if len(contributions) == 1 and isinstance(first, Product):
            if first.left.shape[1] == 1:
                return [partial(_add_outer, counts, first)]
            on_cpu = counts.device.type == "cpu"
            if on_cpu and first.dtype == torch.bfloat16:
                # its signs are added as integers, in a fifth of the time
                rows_of = _cut(R, max(TALL, TILE // C))
                return [partial(self._add_bfloat16_samples, counts, first, rows) for rows in rows_of]
            if C > R:
                # the longer side makes the rows: blocks of many short rows are cheaper products than of few long
                contributions, counts = [first := Product(first.right, first.left)], counts.t()
            if on_cpu and first.dtype == torch.float32 and counts.numel() >= COMPILED_FROM:
                rows_of = _ranges(contributions, (1, *counts.shape), SAMPLE_BYTES)
                return [partial(self._add_samples, counts, first, rows) for rows in rows_of]
        shape = (samples, *counts.shape)
        return [
            partial(self._add_block, counts, contributions, shape, rows)
            for rows in _ranges(contributions, shape)
        ]

    def _form(
        self,
        contributions: Sequence[Contribution],
        shape: tuple[int, int, int],
        device: torch.device,
        rows: slice,
    ) -> Tensor:
        """Sum contributions to some rows."""
        N, _, C = shape
        dtype = _dtype(contributions)
        count = rows.stop - rows.start
        room = self._room(N * count * C, dtype, device)
        block = contributions[0].block(rows, room.view(N, count, C))
        for other in contributions[1:]:
            if isinstance(other, Rows):
                other.add_to(block, rows)
            else:
                block += other.block(rows)
        return block

    def _add_samples(self, counts: Tensor, product: Product, rows: slice) -> None:
        """Form some rows of one sample after the other, and add their signs.

        A processor computes many rows of one sample faster than few of several, and both blocks stay in its cache; of
        a small matrix, calling it for each sample takes longer than that.
        """
        N, _, C = product.right.shape
        count = rows.stop - rows.start
        block = self._room(count * C, product.dtype, counts.device).view(count, C)
        net = torch.empty(block.shape, dtype=counts_dtype(N))
        add_signs = sign_adder(net, block)
        across = product.left[:, :, rows].transpose(1, 2)
        _count_signs(across, product.right, block, add_signs)
        counts[rows].sub_(net)

    def _add_bfloat16_samples(self, counts: Tensor, product: Product, rows: slice) -> None:
        """Do as :meth:`_add_samples` in bfloat16, whose bits, read as an integer, have the sign of the number.

        Only -0 is an integer below 0, and no product of matrices comes out as that: sums begin at 0. (It could where a
        sum below 0 is nearer to it than the format tells apart, below 10⁻³⁸; float16 ends at 10⁻⁸, so this is no way
        for it.)
        """
        N, _, C = product.right.shape
        across = product.left[:, :, rows].transpose(1, 2)
        if across.numel() <= FEW:
            across = across.contiguous()
        R = across.shape[1]
        width = max(1, TILE // R)
        for size, parts in groupby(_cut(C, width), key=lambda columns: columns.stop - columns.start):
            block = self._room(R * size, product.dtype, counts.device).view(R, size)
            net = torch.empty(block.shape, dtype=counts_dtype(N))
            add_signs = sign_adder(net, block.view(torch.int16))
            for columns in parts:
                _count_signs(across, product.right[:, :, columns], block, add_signs)
                counts[rows, columns].sub_(net)

    def _room(self, size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Give this thread's memory for so many numbers."""
        memory = getattr(self._memory, "values", None)
        if memory is None or memory.numel() < size or memory.dtype != dtype or memory.device != device:
            memory = self._memory.values = torch.empty(size, dtype=dtype, device=device)
        return memory[:size]

    def _add_block(
        self, counts: Tensor, contributions: Sequence[Contribution], shape: tuple[int, int, int], rows: slice
    ) -> None:
        """Form some rows and add their signs."""
        N, _, C = shape
        block = self._form(contributions, shape, counts.device, rows)
        flat = torch.sign(block, out=block).view(N, -1)
        # a sum of signs is exact in float32 up to 2²⁴ samples, but not in a lower precision
        single = flat.dtype == torch.float32
        net = flat.new_ones(1, N) @ flat if single else flat.sum(0, dtype=torch.float32)
        counts[rows].sub_(net.to(counts.dtype).view(-1, C))


def _count_signs(left: Tensor, right: Tensor, block: Tensor, add_signs: Callable[[bool], None]) -> None:
    """Form each sample's product, (N, r, T) by (N, T, c), in one block (r, c), and add its signs; the first begins."""
    for n, factors in enumerate(zip(left.unbind(), right.unbind(), strict=True)):
        torch.mm(*factors, out=block)
        add_signs(n > 0)


def _ranges(
    contributions: Sequence[Contribution], shape: tuple[int, int, int], size: int = BLOCK_BYTES
) -> Iterator[slice]:
    """Cut the rows into blocks of so many bytes."""
    N, R, C = shape
    step = max(1, size // max(1, N * C * _dtype(contributions).itemsize))
    return _cut(R, step - step % 16 if step > 16 else step)


def _cut(length: int, step: int) -> Iterator[slice]:
    return (slice(start, min(start + step, length)) for start in range(0, length, step))


def _dtype(contributions: Sequence[Contribution]) -> torch.dtype:
    return reduce(torch.promote_types, (each.dtype for each in contributions))


def _add_rows(counts: Tensor, rows: Rows) -> None:
    """Add the signs of the rows that samples touch."""
    counts.index_add_(0, rows.row, rows.sums.sign_().neg_().to(counts.dtype))


def _add_summed(counts: Tensor, summed: Summed) -> None:
    """Add the signs of gradients that are whole."""
    counts.sub_(summed.values.sign().sum(0, dtype=torch.float32).to(counts.dtype))


def _add_outer(counts: Tensor, product: Product) -> None:
    """Use that one position a sample gives sign(g_r x_c) = sign(g_r) sign(x_c): one product of signs."""
    left, right = (part.squeeze(1).sign().float() for part in (product.left, product.right))
    step = max(1, BLOCK_BYTES // max(1, 4 * counts.shape[1]))
    for start in range(0, len(counts), step):
        here = slice(start, start + step)
        counts[here].sub_((left[:, here].t() @ right).to(counts.dtype))
