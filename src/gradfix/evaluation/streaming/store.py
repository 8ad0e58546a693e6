"""Counts of votes in files, put there unit by unit as they are complete: they survive a kill."""

import hashlib
import json
import shutil
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from gradfix.checkpoints.expressions import Gathered
from gradfix.checkpoints.reading.safetensors_file import SafetensorsFile
from gradfix.checkpoints.tensors import TensorSource, TensorSpec
from gradfix.checkpoints.writing.single import write_safetensors
from gradfix.errors import GradfixError


class CountStore:
    """A folder with a file for each unit.

    Attributes:
        fingerprints: By parameter, of the weights at which its counts were made.
        reasons: Parameters that the plain loop counted, with the reason.
    """

    def __init__(self, parent: Path | None, identity: Mapping[str, Any]) -> None:
        """Open the folder of a count, with what an earlier run of the same count left there.

        Args:
            parent: Where to keep it; None for a temporary folder, deleted once nothing reads from it any more.
            identity: All that the counts depend on.
        """
        self.fingerprints: dict[str, str] = {}
        self.reasons: dict[str, str] = {}
        self._files: list[Path] = []
        self._found: dict[str, TensorSource] = {}
        self._kept = parent is not None
        if parent is None:
            self._folder = Path(tempfile.mkdtemp(prefix="gradfix-votes-"))
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        else:
            text = json.dumps(identity, sort_keys=True)
            self._folder = parent / hashlib.sha256(text.encode()).hexdigest()[:24]
            self._folder.mkdir(parents=True, exist_ok=True)
            # A file has its name only when it is whole, so whatever is there is complete.
            for path in sorted(self._folder.glob("*.safetensors")):
                self._take(path)

    def __contains__(self, name: object) -> bool:
        """Tell whether a parameter has been counted."""
        return name in self._found

    def put(
        self, counts: Mapping[str, Tensor], fingerprints: Mapping[str, str], reasons: Mapping[str, str]
    ) -> None:
        """Keep complete counts.

        Args:
            counts: Integers by parameter name.
            fingerprints: Of their weights, those of others included.
            reasons: Why some were counted by the plain loop, those of others included.

        Raises:
            GradfixError: if there is no room.
        """
        counts = {name: value for name, value in counts.items() if name not in self._found}
        if not counts:
            return
        path = self._folder / f"{len(self._files):05}.safetensors"
        specs = {name: TensorSpec(value.dtype, tuple(value.shape)) for name, value in counts.items()}
        metadata = {
            "fingerprints": json.dumps({name: fingerprints[name] for name in counts}),
            "reasons": json.dumps({name: reasons[name] for name in counts if name in reasons}),
        }
        try:
            write_safetensors(path, specs, lambda name: [counts[name]], metadata)
        except GradfixError as error:
            kept = f"; what was counted stays in {self._folder}: make room and run the same command again"
            raise GradfixError(f"{error}{kept if self._kept else ''}") from error
        self._take(path)

    def counts(self, order: Sequence[str]) -> Gathered:
        """Give all that was kept.

        Args:
            order: Of the parameters.

        Returns:
            The counts, read lazily.
        """
        counts = _Owned({name: self._found[name] for name in order if name in self._found})
        object.__setattr__(counts, "owner", self)
        return counts

    def discard(self) -> None:
        """Delete what was kept: it is to be counted again."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _take(self, path: Path) -> None:
        file = SafetensorsFile(path)
        self._files.append(path)
        self._found.update(dict.fromkeys(file.specs, file))
        self.fingerprints.update(json.loads(file.metadata["fingerprints"]))
        self.reasons.update(json.loads(file.metadata["reasons"]))


class _Owned(Gathered):
    """Keeps a temporary folder alive."""
