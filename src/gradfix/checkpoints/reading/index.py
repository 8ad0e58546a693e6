"""Weights cut into shards, and the index that says which tensor is in which."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Protocol

from torch import Tensor

from gradfix.checkpoints.reading.json_files import read_json_object
from gradfix.checkpoints.tensors import TensorSpec, pick
from gradfix.errors import GradfixError


class WeightFile(Protocol):
    """One or several files with tensors, as a checkpoint reads them."""

    @property
    def specs(self) -> Mapping[str, TensorSpec]:
        """What is stored, by name."""
        ...

    @property
    def files(self) -> tuple[Path, ...]:
        """All files, where they are or will be once fetched."""
        ...

    @property
    def shared(self) -> Mapping[str, str]:
        """Names that share the memory of another: each to the first of its group."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the report should know about how the files were understood."""
        ...

    def fetch(self) -> None:
        """Bring here what is still on the Hub, and make sure that it is what its header said."""
        ...

    def peek(self, name: str) -> bytes | None:
        """Give a few bytes from the middle of a tensor that is still on the Hub; None for one that is here."""
        ...

    def read(self, name: str, rows: slice | None = None, *, out: Tensor | None = None) -> Tensor:
        """Read a tensor, or a contiguous range of its rows, into ``out`` if given."""
        ...


def expect(weights: WeightFile, name: str) -> bool:
    """Have the system read a tensor into its cache, without waiting for it.

    Args:
        weights: Some kinds of files can't.
        name: A key of ``specs``.

    Returns:
        Whether it will; if not, whoever wants that reads the tensor.
    """
    ask = getattr(weights, "expect", None)
    return ask is not None and bool(ask(name))


class ShardedWeights:
    """The shards of an index, as one.

    The index decides: what a shard stores beyond the tensors that the index places in it is not read (and
    noted). Names of shards are judged as text, before anything is opened: relative, and without "..".
    Symbolic links are followed, because a snapshot in the Hub's cache is made of links to ``../../blobs``.

    Attributes:
        specs: Dtype and shape of each tensor of the index, in its order.
        files: The index, then the shards.
        shared: Names that share memory with another, within a shard.
        notes: How the files were understood.
    """

    def __init__(
        self,
        path: Path,
        open_shard: Callable[[Path], WeightFile],
        exists: Callable[[Path], bool] = Path.exists,
    ) -> None:
        """Read an index and open its shards.

        Args:
            path: The index.
            open_shard: Opens one shard.
            exists: Whether there is a shard; of a model on the Hub it may be there only.

        Raises:
            GradfixError: If the index is malformed, names a file that is absent or outside its directory, or
                a tensor that its shard doesn't hold.
        """
        placement = read_weight_map(path)
        shards = {
            name: open_shard(_shard_path(path, name, exists)) for name in dict.fromkeys(placement.values())
        }
        self._shards = tuple(shards.values())
        self._shard_of = {tensor: shards[name] for tensor, name in placement.items()}
        missing = [tensor for tensor, shard in self._shard_of.items() if tensor not in shard.specs]
        if missing:
            raise GradfixError(
                f"{path}: tensor {missing[0]!r} is not in the shard {placement[missing[0]]!r} that the index names "
                f"({len(missing)} such): index and shards are of different versions; download them again"
            )
        self.specs: Mapping[str, TensorSpec] = MappingProxyType(
            {tensor: shard.specs[tensor] for tensor, shard in self._shard_of.items()}
        )
        self.files: tuple[Path, ...] = (path, *(file for shard in shards.values() for file in shard.files))
        self.shared: Mapping[str, str] = {
            alias: name
            for shard in shards.values()
            for alias, name in shard.shared.items()
            if self._shard_of.get(alias) is shard and self._shard_of.get(name) is shard
        }
        self.notes: tuple[str, ...] = tuple(note for shard in shards.values() for note in shard.notes)
        extra = sorted(
            tensor
            for shard in shards.values()
            for tensor in shard.specs
            if self._shard_of.get(tensor) is not shard
        )
        if extra:
            self.notes += (
                f"{path}: {len(extra)} stored tensors are not placed by the index and not read: {extra[0]}",
            )

    def fetch(self) -> None:
        """Bring here the shards that are still on the Hub."""
        for shard in self._shards:
            shard.fetch()

    def peek(self, name: str) -> bytes | None:
        """Give a few bytes of a tensor that is still on the Hub.

        Args:
            name: A key of ``specs``.

        Returns:
            Bytes from its middle; None if it is here.
        """
        return self._shard_of[name].peek(name)

    def expect(self, name: str) -> bool:
        """Have the system read a tensor ahead; see :func:`expect`."""
        return expect(self._shard_of[name], name)

    def read(self, name: str, rows: slice | None = None, *, out: Tensor | None = None) -> Tensor:
        """Read a tensor, or a contiguous range of its rows, from its shard.

        Args:
            name: A key of ``specs``.
            rows: Range of the first dimension; None for all of it.
            out: Memory to reuse, as in :meth:`SafetensorsFile.read`.

        Returns:
            The tensor in its stored dtype, the first dimension cut to ``rows``.
        """
        return self._shard_of[name].read(name, rows, out=out)

    def pick(self, name: str, positions: Sequence[int]) -> Tensor | None:
        """Read single numbers of a tensor; see :func:`gradfix.checkpoints.tensors.pick`."""
        return pick(self._shard_of[name], name, positions)


def read_weight_map(path: Path) -> dict[str, str]:
    """Read which tensor is in which shard.

    Args:
        path: The index.

    Returns:
        Each tensor's shard, a path relative to the index and inside its directory.

    Raises:
        GradfixError: If the index is malformed, or names a file outside its directory.
    """
    weight_map = read_json_object(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise GradfixError(
            f"{path}: weight_map: expected an object of tensor name to file, found "
            f"{type(weight_map).__name__ if weight_map != {} else 'an empty one'}: download or write it again"
        )
    for tensor, name in weight_map.items():
        if not isinstance(name, str) or not name:
            raise GradfixError(f"{path}: tensor {tensor!r}: expected the name of a file, found {name!r:.80}")
        parts = PurePosixPath(name).parts
        if name.startswith("/") or ".." in parts or "\0" in name or "\\" in name or os.path.isabs(name):
            raise GradfixError(
                f"{path}: tensor {tensor!r}: names the file {name!r:.200} outside its directory: expected a file "
                "beside the index; don't use an index from a source you don't trust"
            )
    return weight_map


def _shard_path(index: Path, name: str, exists: Callable[[Path], bool]) -> Path:
    path = index.parent / name
    if not exists(path):
        raise GradfixError(
            f"{index}: names the shard {name!r}, which is missing: expected {path}: download or copy it again"
        )
    return path
