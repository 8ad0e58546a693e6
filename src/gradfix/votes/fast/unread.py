"""Which products of a forward pass need not be computed: nothing in the backward pass reads what they gave.

A block that is run again, for its gradients alone, mostly ends with a product that is added to what came in. The
gradient of a sum needs none of its terms, and that of a product needs its factors.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any

from torch import Tensor

_SUMS = {"add", "sub", "__add__", "__radd__", "__iadd__", "__sub__", "add_"}
_SHAPES = {"contiguous", "expand", "flatten", "permute", "reshape", "transpose", "unsqueeze", "view"}
_COPIES = {"clone", "dropout", "new_zeros", "to"}
_FACTS = {"__get__", "__len__", "dim", "is_contiguous", "is_floating_point", "numel", "size", "stride"}

READING_NOTHING = _SUMS | _SHAPES | _COPIES | _FACTS
"""Names of torch's functions that may be called on a value that is not there: no gradient, number or branch comes of
it but what they return, which is then not there either."""

_NODES = {
    f"{name}Backward0"
    for name in ("Add", "Alias", "Clone", "Expand", "Permute", "Sub", "ToCopy", "Transpose", "Unsqueeze")
} | {"UnsafeViewBackward0", "ViewBackward0"}
"""Names of the graph's nodes of these; others say so by ``reads_nothing``."""


def unread(losses: Tensor) -> frozenset[str]:
    """Find the weights of products whose outputs no gradient depends on.

    Args:
        losses: Of a recorded pass, with their graph.

    Returns:
        Names of parameters, each the weight of one product alone.
    """
    nodes = dict.fromkeys([losses.grad_fn] if losses.grad_fn is not None else [])
    left = list(nodes)
    while left:
        new = [before for before in _before(left.pop()) if before not in nodes]
        nodes.update(dict.fromkeys(new))
        left.extend(new)
    read = set[Any]()
    left = [before for node in nodes if not _reads_nothing(node) for before in _before(node)]
    while left:
        node = left.pop()
        if node not in read:
            read.add(node)
            left.extend(_before(node))  # an output that is read was made of these
    uses = Counter(name for node in nodes if (name := _weight(node)) is not None)
    unread_too = {_weight(node) for node in nodes if node not in read}
    return frozenset(name for name, count in uses.items() if count == 1 and name in unread_too)


def _weight(node: Any) -> str | None:
    """The weight of a recorded product."""
    return getattr(node, "weight_name", None)


def _before(node: Any) -> Iterator[Any]:
    return (before for before, _ in node.next_functions if before is not None)


def _reads_nothing(node: Any) -> bool:
    return node.name() in _NODES or getattr(node, "reads_nothing", False)
