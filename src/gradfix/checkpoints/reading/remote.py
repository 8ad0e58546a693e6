"""Weights that are still on the Hub: known by their headers, fetched when the first tensor is read."""

import glob
import threading
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import MappingProxyType

from torch import Tensor

from gradfix.checkpoints.files import free_bytes
from gradfix.checkpoints.reading.header import Entry, Header
from gradfix.checkpoints.reading.index import WeightFile, read_weight_map
from gradfix.checkpoints.reading.locate import INDEX_SUFFIX, open_weights
from gradfix.checkpoints.reading.remote_header import glance, in_short, read_remote_header
from gradfix.checkpoints.reading.safetensors_file import SafetensorsFile
from gradfix.checkpoints.tensors import TensorSpec
from gradfix.errors import GradfixError, network_errors

_REQUESTS = 8
"""Headers read at a time: a large model has many shards, each a round trip away."""


def open_remote(name: str, weights: Path, directory: Path, files: Collection[str]) -> WeightFile:
    """Open safetensors weights of which some or all are still on the Hub.

    Args:
        name: Id of the model.
        weights: Where its weights or their index will be.
        directory: Its snapshot in the Hub's cache, named by the commit; what describes it is there.
        files: Paths of all files that the model has on the Hub.

    Returns:
        The weights; files that the cache has are opened there, only headers of the others have been read.

    Raises:
        GradfixError: If anything is missing, malformed or can't be read.
    """
    names = [weights.relative_to(directory).as_posix()]
    if weights.name.endswith(INDEX_SUFFIX):
        names = list(dict.fromkeys(read_weight_map(weights).values()))
    absent = [file for file in names if file in files and not (directory / file).exists()]
    with ThreadPoolExecutor(_REQUESTS) as pool:
        headers = list(pool.map(lambda file: read_remote_header(name, directory.name, file), absent))
    download = Download(
        name, directory, {file: size for file, (_, size) in zip(absent, headers, strict=True)}
    )
    remote = {
        directory / file: RemoteFile(
            directory / file, header, download.run, partial(glance, name, directory.name, file)
        )
        for file, (header, _) in zip(absent, headers, strict=True)
    }
    return open_weights(
        weights,
        lambda path: remote.get(path) or SafetensorsFile(path),
        lambda path: path in remote or path.exists(),
    )


class Download:
    """The weights of one model that are still on the Hub, fetched together and once."""

    def __init__(self, name: str, directory: Path, sizes: Mapping[str, int]) -> None:
        """Plan the download.

        Args:
            name: Id of the model.
            directory: Its snapshot in the Hub's cache, named by the commit.
            sizes: Bytes of each file to fetch, by its path inside the model.
        """
        self._name, self._directory, self._sizes = name, directory, sizes
        self._lock = threading.Lock()
        self._done = False

    def run(self) -> None:
        """Fetch the files, unless that was done.

        Raises:
            GradfixError: If there is no room for them, or the Hub doesn't give them.
        """
        import huggingface_hub

        with self._lock:
            if self._done:
                return
            self._check_room()
            shown = f"{self._name}@{self._directory.name}"
            try:
                huggingface_hub.snapshot_download(
                    self._name,
                    revision=self._directory.name,
                    allow_patterns=[glob.escape(file) for file in self._sizes],
                )
            except network_errors() as error:
                raise GradfixError(
                    f"{shown}: its weights can't be downloaded ({in_short(error)}): check the connection and "
                    "start again; files that arrived whole are kept"
                ) from None
            self._done = True

    def _check_room(self) -> None:
        needed = sum(size for file, size in self._sizes.items() if not (self._directory / file).exists())
        free = free_bytes(self._directory)
        if needed > free:
            raise GradfixError(
                f"{self._directory}: {needed} bytes needed for the weights of {self._name}, {free} free: free "
                f"{needed - free} bytes, or set HF_HOME to a directory on another disk"
            )


class RemoteFile:
    """A safetensors file on the Hub, until it is read; then the file in the Hub's cache.

    Attributes:
        path: Where the file will be.
        files: The same, for readers of several.
        specs: Dtype and shape of each tensor, in the order of the header.
        shared: Nothing: the format has no shared memory.
        notes: Nothing.
    """

    def __init__(
        self,
        path: Path,
        header: Header,
        download: Callable[[], None],
        look: Callable[[Entry], bytes | None],
    ) -> None:
        """Describe a file that is not here yet.

        Args:
            path: Where it will be.
            header: Its header, read on the Hub and checked.
            download: Brings it there.
            look: Gives a few bytes of a tensor from the Hub.
        """
        self.path = path
        self.files: tuple[Path, ...] = (path,)
        self.shared: Mapping[str, str] = MappingProxyType({})
        self.notes: tuple[str, ...] = ()
        self.specs: Mapping[str, TensorSpec] = MappingProxyType(
            {name: entry.spec for name, entry in header.entries.items()}
        )
        self._entries, self._download, self._look = header.entries, download, look
        self._lock = threading.Lock()
        self._local: SafetensorsFile | None = None

    def fetch(self) -> None:
        """Bring the file here, and make sure that it is what its header said."""
        self._opened()

    def peek(self, name: str) -> bytes | None:
        """Give a few bytes of a tensor that is still on the Hub.

        Args:
            name: A key of ``specs``.

        Returns:
            Bytes from its middle; None if it is here, or can't be looked at apart.
        """
        return None if self.path.exists() else self._look(self._entries[name])

    def read(self, name: str, rows: slice | None = None, *, out: Tensor | None = None) -> Tensor:
        """Read a tensor, or a contiguous range of its rows; the first time, all weights are fetched before.

        Args:
            name: A key of ``specs``.
            rows: Range of the first dimension; None for all of it.
            out: Memory to reuse, as in :meth:`SafetensorsFile.read`.

        Returns:
            The tensor in its stored dtype, the first dimension cut to ``rows``.
        """
        return self._opened().read(name, rows, out=out)

    def _opened(self) -> SafetensorsFile:
        with self._lock:
            if self._local is None:
                self._download()
                local = SafetensorsFile(self.path)
                self._check(local.specs)
                self._local = local
            return self._local

    def _check(self, found: Mapping[str, TensorSpec]) -> None:
        """Refuse a file that was judged by another header than its own."""
        if dict(found) == dict(self.specs):
            return
        names = [*self.specs, *found]
        name = next(name for name in names if self.specs.get(name) != found.get(name))
        raise GradfixError(
            f"{self.path}: is not the file whose header was read on the Hub: tensor {name!r}: expected "
            f"{_shown(self.specs.get(name))}, found {_shown(found.get(name))}: it changed there meanwhile; "
            "start again"
        )


def _shown(spec: TensorSpec | None) -> str:
    return "none" if spec is None else f"{spec.dtype} {list(spec.shape)}"
