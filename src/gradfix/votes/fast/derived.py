"""Per-sample gradients of parameters that met the samples as something derived from them.

``1 + weight``, ``exp(scale)``, a slice, a table looked up at positions that are the same for all samples: the
rules give each sample's gradient by the derived tensor, and the small graph from the parameter to it gives the
rest, one sample at a time.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from gradfix.votes.fast.contributions import Contribution
from gradfix.votes.fast.recorder import Use


class SampleGradients:
    """Each sample's whole gradient of one parameter, one sample after the other."""

    def __init__(
        self,
        name: str,
        parameter: nn.Parameter,
        uses: Sequence[Use],
        parts: Sequence[Contribution],
        samples: int,
    ) -> None:
        """Keep what the gradients are made of.

        Args:
            name: The parameter's.
            parameter: The root of the graphs.
            uses: Where it was used.
            parts: What each use contributes, in the shape of what was used.
            samples: N.
        """
        self._parameter, self._uses, self._samples = parameter, uses, samples
        self._parts = [
            part.block(slice(0, _rows(use, part, samples))) for use, part in zip(uses, parts, strict=True)
        ]

    def __iter__(self) -> Iterator[Tensor]:
        """Yield N gradients of the parameter's shape."""
        for n in range(self._samples):
            total = torch.zeros_like(self._parameter)
            for use, block in zip(self._uses, self._parts, strict=True):
                source = use.source.tensor
                if use.per_sample_rows:
                    per_sample = len(source) // self._samples
                    by_source = torch.zeros_like(source)
                    by_source[n * per_sample : (n + 1) * per_sample] = block[n].reshape(
                        per_sample, *source.shape[1:]
                    )
                else:
                    by_source = block[n].reshape(source.shape).to(source.dtype)
                if use.source.whole:
                    total += by_source
                    continue
                (gradient,) = torch.autograd.grad(
                    source, self._parameter, by_source, retain_graph=True, allow_unused=True
                )
                if gradient is not None:
                    total += gradient
            yield total


def _rows(use: Use, part: Contribution, samples: int) -> int:
    source = use.source.tensor
    if use.per_sample_rows:
        return len(source) // samples
    return len(source) if source.ndim else 1
