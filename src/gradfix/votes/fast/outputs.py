"""What products of a recorded pass gave, for another pass on the same inputs, which need not compute them again."""

from collections import defaultdict
from collections.abc import Callable

from torch import Tensor

Keep = Callable[[Tensor], Callable[[], Tensor] | None]
"""Puts a tensor away and gives what brings it back, or None where there is no room."""


class Outputs:
    """The outputs of one pass's products, by the names of their weights and in the order of their calls.

    Attributes:
        unread: Weights of products that nobody will ask for.
    """

    def __init__(self, keep: Keep) -> None:
        """Begin without any.

        Args:
            keep: Where outputs go.
        """
        self.unread: frozenset[str] = frozenset()
        self._keep = keep
        self._kept: dict[str, list[Callable[[], Tensor] | None]] = defaultdict(list)

    def put(self, name: str, output: Tensor) -> None:
        """Keep what a product gave.

        Args:
            name: Its weight.
            output: It.
        """
        self._kept[name].append(None if name in self.unread else self._keep(output))

    def get(self, name: str, call: int) -> Tensor | None:
        """Bring back what a product gave.

        Args:
            name: Its weight.
            call: Which of the calls with this weight, from 0.

        Returns:
            It; None where it was not kept.
        """
        bring = self._kept[name][call] if call < len(self._kept.get(name, ())) else None
        return None if bring is None else bring()
