"""All that depends on where a streamed model computes: free memory, native formats, and weights brought there ahead."""

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gradfix.ranks import ranks

Fetch = Callable[[str, Any], Tensor]
"""Gives a parameter's value at a point, in the host's memory and the format of the computation: ``fetch(name, point)``.
"""

Touch = Callable[[str], None]
"""Reads a stored parameter, so that the system has it in its cache: ``touch(name)``."""


class Copier:
    """Copies from pinned memory of the host to a CUDA device, on a stream of its own."""

    def __init__(self, device: torch.device) -> None:
        """Make the stream.

        Args:
            device: A CUDA device.
        """
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def send(self, value: Tensor) -> tuple[Tensor, Any]:
        """Begin a copy.

        Args:
            value: In pinned memory, which may be let go: it is not used again before the copy has ended.

        Returns:
            The copy, and an event that tells when it is complete.
        """
        with torch.cuda.stream(self._stream):
            return value.to(self._device, non_blocking=True), self._stream.record_event()

    def receive(self, sent: tuple[Tensor, Any]) -> Tensor:
        """Let what computes from now on wait for a copy.

        Args:
            sent: What :meth:`send` gave.

        Returns:
            The copy.
        """
        value, complete = sent
        computing = torch.cuda.current_stream(self._device)
        computing.wait_event(complete)
        value.record_stream(computing)
        return value


class Supply:
    """Brings weights to the device: those of the next unit while this one computes.

    On CUDA a thread computes them into pinned memory and begins to copy them; two units are there then. Elsewhere two
    units' weights would take twice the memory, so the thread only reads what is stored, which stays in the system's
    cache.
    """

    def __init__(
        self, device: torch.device, fetch: Fetch, touch: Touch, copier: Callable[[], Copier] | None = None
    ) -> None:
        """Prepare.

        Args:
            device: Of the computation.
            fetch: Computes a value.
            touch: Reads what is stored.
            copier: Makes what copies; by default one for CUDA devices, and none for others.
        """
        self.device, self.fetch, self.touch = device, fetch, touch
        if copier is None and device.type == "cuda":
            copier = lambda: Copier(device)  # noqa: E731
        self._make = copier
        self._copier: Copier | None = None
        self._pool: ThreadPoolExecutor | None = None
        self._ahead: dict[str, Future[Any]] = {}
        self._point: Any = None

    def expect(self, names: Sequence[str], point: Any) -> None:
        """Begin to bring weights; whatever was expected before and not taken is let go.

        Args:
            names: The parameters that are needed next.
            point: Where the model will stand.
        """
        self._drop()
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, "gradfix-supply")
            self._copier = self._make() if self._make is not None else None
        self._point = point
        self._ahead = {name: self._pool.submit(self._bring, name, point) for name in names}

    def take(self, name: str, point: Any) -> Tensor:
        """Give a value, whether it was expected or not.

        Args:
            name: The parameter.
            point: Where the model stands.

        Returns:
            Its value, on the device.
        """
        begun = self._ahead.pop(name, None)
        if begun is not None and self._copier is not None and point is self._point:
            return self._copier.receive(begun.result())
        if begun is not None:
            begun.cancel()
        return self.fetch(name, point).to(self.device)

    def close(self) -> None:
        """Let go of what was expected, and end the thread."""
        self._drop()
        if self._pool is not None:
            self._pool.shutdown()
            self._pool, self._copier = None, None

    def _drop(self) -> None:
        left, self._ahead = list(self._ahead.values()), {}
        for begun in left:
            if not begun.cancel():
                begun.exception()  # waits: what is being read may be what changes next

    def _bring(self, name: str, point: Any) -> Any:
        if self._copier is None:
            return self.touch(name)
        with torch.inference_mode(False), torch.no_grad():
            return self._copier.send(self.fetch(name, point))


def host_memory(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Make memory for a weight.

    Args:
        shape: Its shape.
        dtype: Its number format.
        device: Where it will go.

    Returns:
        Memory of the host that can be copied there without the processor.
    """
    return torch.empty(tuple(shape), dtype=dtype, pin_memory=device.type == "cuda")


def forked(device: torch.device) -> list[torch.device]:
    """List the devices beside the CPU whose random generators a computation changes."""
    return [device] if device.type == "cuda" else []


def copies_of_weights(device: torch.device) -> int:
    """Tell how many units' weights are there at a time."""
    return 2 if device.type == "cuda" else 1


def copies_of_votes(device: torch.device) -> int:
    """Tell how many units' votes are there at a time: in the host's memory, those of the unit before are written."""
    return 2 if device.type == "cpu" else 1


def room_for_products(device: torch.device, folder: Path | None = None) -> int:
    """Tell how much of what products of a model gave is worth keeping in a file until it is needed again.

    Args:
        device: Of the computation. Another device than a processor computes faster than a file is read.
        folder: Where the file would be; None for the system's temporary folder.

    Returns:
        Bytes: as many as the system's cache surely has room for, so that the disk's speed does not matter.
    """
    if device.type != "cpu":
        return 0
    place = Path(folder or tempfile.gettempdir())
    while not place.exists():
        place = place.parent
    return max(0, min(free_memory(device), shutil.disk_usage(place).free) // (2 * ranks().on_host))


def computes_natively(device: torch.device, dtype: torch.dtype) -> bool:
    """Tell whether a device computes in a half precision as fast as in float32 at least."""
    if dtype == torch.float16:
        return device.type != "cpu"
    if dtype != torch.bfloat16 or device.type != "cpu":
        return dtype == torch.bfloat16
    try:
        flags = Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        return False
    return re.search(r"\b(avx512_bf16|amx_bf16|svebf16|bf16)\b", flags) is not None


def free_memory(device: torch.device) -> int:
    """Tell how much memory this process may still have on a device.

    Args:
        device: The device; those that share the host's memory count as the host.

    Returns:
        Bytes.
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = _available_memory()
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        try:
            free = min(free, int(Path(limit).read_text()) - int(Path(used).read_text()))
        except (OSError, ValueError):
            continue  # no such limit here
    return free


def _available_memory() -> int:
    """Tell how much memory this machine could still give; where that is not told, all there is."""
    try:
        entries = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        return int(entries["MemAvailable"].removesuffix("kB")) * 1024
    except (OSError, KeyError, ValueError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
