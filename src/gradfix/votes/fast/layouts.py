"""Where the samples are in a tensor inside a model.

Index letters: ``n`` sample of N, ``t`` position within a sample, ``D`` the last dimension.

The batch that enters a model has the sample first, but layers see it turned and flattened: torch's attention
works on (T, N, D), GPT-2's on (N·T, D). Shapes alone don't tell (T may equal N), so a layout is a guess until
:mod:`gradfix.votes.fast.verification` has compared its gradients with the plain loop's.
"""

from enum import Enum

from torch import Tensor


class Layout(Enum):
    """An arrangement of samples in the leading dimensions."""

    FIRST = "(N, …) or (N·t, …), a sample's positions together"
    SECOND = "(t, N, …)"
    INNER = "(t·N, …), a position's samples together"


def possible(shape: tuple[int, ...], samples: int) -> list[Layout]:
    """List the layouts that a shape allows, the most likely one first.

    Args:
        shape: Of a tensor whose last dimension is no sample.
        samples: N.

    Returns:
        None, one or several layouts.
    """
    leading = shape[:-1]
    found = []
    if leading and leading[0] % samples == 0:
        found.append(Layout.FIRST)
    if len(leading) >= 2 and leading[1] == samples:
        found.insert(0 if leading[0] != samples else 1, Layout.SECOND)
    if len(leading) == 1 and leading[0] % samples == 0 and leading[0] > samples:
        found.append(Layout.INNER)
    return found


def by_sample(tensor: Tensor, layout: Layout, samples: int) -> Tensor:
    """Bring a tensor into the order of samples.

    Args:
        tensor: Shape (…, D).
        layout: Where the samples are.
        samples: N.

    Returns:
        Shape (N, T, D), a view where that is possible.
    """
    last = tensor.shape[-1]
    if layout is Layout.FIRST:
        return tensor.reshape(samples, -1, last)
    if layout is Layout.SECOND:
        return tensor.transpose(0, 1).reshape(samples, -1, last)
    return tensor.reshape(-1, samples, last).transpose(0, 1)
