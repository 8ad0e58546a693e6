"""The running counts: integers just wide enough, one tensor a parameter."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from gradfix.votes.record import counts_dtype


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
