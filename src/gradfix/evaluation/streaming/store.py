"""Counts of votes in files, put there unit by unit as they are complete."""

import shutil
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from gradfix.checkpoints.expressions import Gathered
from gradfix.checkpoints.reading.safetensors_file import SafetensorsFile
from gradfix.checkpoints.tensors import TensorSource, TensorSpec
from gradfix.checkpoints.writing.single import write_safetensors


class CountStore:
    """A folder with a file for each unit. It is deleted once nothing reads from it any more."""

    def __init__(self, folder: Path) -> None:
        """Take over a folder.

        Args:
            folder: It exists, for this alone.
        """
        self._folder = folder
        self._files: list[Path] = []
        self._delete = weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)

    def put(self, counts: Mapping[str, Tensor]) -> None:
        """Keep complete counts.

        Args:
            counts: Integers by parameter name.
        """
        path = self._folder / f"{len(self._files)}.safetensors"
        specs = {name: TensorSpec(value.dtype, tuple(value.shape)) for name, value in counts.items()}
        write_safetensors(path, specs, lambda name: [counts[name]], {})
        self._files.append(path)

    def counts(self, order: Sequence[str]) -> Gathered:
        """Give all that was kept.

        Args:
            order: Of the parameters.

        Returns:
            The counts, read lazily.
        """
        found: dict[str, TensorSource] = {}
        for path in self._files:
            file = SafetensorsFile(path)
            found.update(dict.fromkeys(file.specs, file))
        counts = _Owned({name: found[name] for name in order if name in found})
        object.__setattr__(counts, "owner", self)
        return counts


class _Owned(Gathered):
    """Keeps the folder alive."""
