"""Names that wrappers of training loops leave in a file: DDP, FSDP, torch.compile, activation checkpointing."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

from torch import Tensor

from gradfix.checkpoints.reading.index import WeightFile
from gradfix.checkpoints.tensors import TensorSpec

WRAPPERS = frozenset(
    {
        "module",  # DataParallel, DistributedDataParallel
        "_orig_mod",  # torch.compile
        "_fsdp_wrapped_module",
        "_fpw_module",  # FSDP before torch 2.0
        "_checkpoint_wrapped_module",
        "_forward_module",  # Lightning Fabric
        "_module",  # opacus
    }
)
"""Attributes under which a wrapper holds the module; they stand at the front of a name or inside it."""


def unwrapped_names(names: Iterable[str]) -> dict[str, str]:
    """Spell names without the wrappers in them.

    Args:
        names: As a file has them.

    Returns:
        Each name to its spelling without wrappers; all to themselves where two would become one.
    """
    stored = list(names)
    plain = {
        name: ".".join(part for part in name.split(".") if part not in WRAPPERS) or name for name in stored
    }
    return plain if len(set(plain.values())) == len(plain) else {name: name for name in stored}


def unwrap(weights: WeightFile) -> WeightFile:
    """Give weights the names that the model has without its wrappers.

    Args:
        weights: The opened files.

    Returns:
        The same where no name has a wrapper in it.
    """
    plain = unwrapped_names(weights.specs)
    return weights if all(name == new for name, new in plain.items()) else _Unwrapped(weights, plain)


class _Unwrapped:
    """Weights under other names than their file has."""

    def __init__(self, weights: WeightFile, plain: Mapping[str, str]) -> None:
        self._weights = weights
        self._stored = {new: name for name, new in plain.items()}
        self.specs: Mapping[str, TensorSpec] = MappingProxyType(
            {new: weights.specs[name] for new, name in self._stored.items()}
        )
        self.files: tuple[Path, ...] = weights.files
        self.shared: Mapping[str, str] = {plain[a]: plain[b] for a, b in weights.shared.items()}
        example = next(name for name, new in plain.items() if name != new)
        self.notes: tuple[str, ...] = (
            *weights.notes,
            f"{weights.files[-1]}: wrappers of the training loop are left out of the names: {example!r} is read as "
            f"{plain[example]!r}",
        )

    def fetch(self) -> None:
        self._weights.fetch()

    def peek(self, name: str) -> bytes | None:
        return self._weights.peek(self._stored[name])

    def read(self, name: str, rows: slice | None = None, *, out: Tensor | None = None) -> Tensor:
        return self._weights.read(self._stored[name], rows, out=out)
