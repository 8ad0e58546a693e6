"""Counts of votes in files, put there unit by unit as they are complete: they survive a kill."""

import hashlib
import json
import shutil
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from gradfix.checkpoints.expressions import Gathered
from gradfix.checkpoints.reading.safetensors_file import SafetensorsFile
from gradfix.checkpoints.tensors import TensorSpec
from gradfix.checkpoints.writing.background import Background
from gradfix.checkpoints.writing.single import write_safetensors
from gradfix.errors import GradfixError


class CountStore:
    """A folder with a file for each unit, written by a thread of its own.

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
        self._files: dict[str, Path] = {}
        self._kept = parent is not None
        self._writer = Background(limit=0)  # no more than one unit's counts wait beside those that are made
        if parent is None:
            self._folder = Path(tempfile.mkdtemp(prefix="gradfix-votes-"))
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        else:
            text = json.dumps(identity, sort_keys=True)
            self._folder = parent / hashlib.sha256(text.encode()).hexdigest()[:24]
            self._folder.mkdir(parents=True, exist_ok=True)
            # A file has its name only when it is whole, so whatever is there is complete.
            for path in sorted(self._folder.glob("*.safetensors")):
                file = SafetensorsFile(path)
                told = [json.loads(file.metadata[key]) for key in ("fingerprints", "reasons")]
                self._note(path, list(file.specs), *told)

    def __contains__(self, name: object) -> bool:
        """Tell whether a parameter has been counted."""
        return name in self._files

    def put(
        self, counts: Mapping[str, Tensor], fingerprints: Mapping[str, str], reasons: Mapping[str, str]
    ) -> None:
        """Keep complete counts; they are being written when this returns.

        Args:
            counts: Integers by parameter name, not to be changed any more.
            fingerprints: Of their weights, those of others included.
            reasons: Why some were counted by the plain loop, those of others included.

        Raises:
            GradfixError: if there was no room for those before.
        """
        counts = {name: value for name, value in counts.items() if name not in self._files}
        if not counts:
            return
        path = self._folder / f"{len(set(self._files.values())):05}.safetensors"
        self._note(path, list(counts), fingerprints, reasons)
        metadata = {
            "fingerprints": json.dumps({name: fingerprints[name] for name in counts}),
            "reasons": json.dumps({name: reasons[name] for name in counts if name in reasons}),
        }
        size = sum(value.nbytes for value in counts.values())
        self._writer.submit(partial(self._write, path, counts, metadata), size)

    def wait(self) -> None:
        """Wait until all that was put is written.

        Raises:
            GradfixError: if there was no room.
        """
        self._writer.drain()

    def counts(self, order: Sequence[str]) -> Gathered:
        """Give all that was kept.

        Args:
            order: Of the parameters.

        Returns:
            The counts, read lazily.

        Raises:
            GradfixError: if there was no room.
        """
        self.wait()
        files = {path: SafetensorsFile(path) for path in self._files.values()}
        counts = _Owned({name: files[self._files[name]] for name in order if name in self._files})
        object.__setattr__(counts, "owner", self)
        return counts

    def discard(self) -> None:
        """Delete what was kept: it is to be counted again."""
        self.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _note(
        self, path: Path, names: Sequence[str], fingerprints: Mapping[str, str], reasons: Mapping[str, str]
    ) -> None:
        self._files.update(dict.fromkeys(names, path))
        self.fingerprints.update({name: fingerprints[name] for name in names})
        self.reasons.update({name: reasons[name] for name in names if name in reasons})

    def _write(self, path: Path, counts: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
        specs = {name: TensorSpec(value.dtype, tuple(value.shape)) for name, value in counts.items()}
        try:
            write_safetensors(path, specs, lambda name: [counts[name]], metadata, lasting=self._kept)
        except GradfixError as error:
            kept = f"; what was counted stays in {self._folder}: make room and run the same command again"
            raise GradfixError(f"{error}{kept if self._kept else ''}") from error


class _Owned(Gathered):
    """Keeps a temporary folder alive."""
