"""The header of a safetensors file on the Hub, read by HTTP ranges: the first kilobytes of many gigabytes.

huggingface_hub has ``parse_safetensors_file_metadata`` for this, but it compares neither a shape with its byte
range nor the header with the length of the file, and reads a server that ignores ranges to the end. What is
refused of a local file is refused here by the same checks.
"""

from pathlib import Path

from gradfix.checkpoints.reading.header import Entry, Header, header_length, parse_header
from gradfix.errors import GradfixError, network_errors

GLANCE = 4096
"""Bytes of a tensor that are looked at before it is fetched."""

FIRST_BYTES = 100_000
"""Asked for at first: nearly all headers are shorter, so that one request suffices."""


def in_short(error: Exception) -> str:
    """Shorten an error of the Hub's library, which may span many lines.

    Args:
        error: What was raised.

    Returns:
        The start of its message on one line; its type where it has none.
    """
    return " ".join(str(error).split())[:120] or type(error).__name__


def read_remote_header(name: str, commit: str, file: str) -> tuple[Header, int]:
    """Read and check the header of a safetensors file on the Hub; no tensor is transferred beyond it.

    Args:
        name: Id of the model.
        commit: Its revision.
        file: Path inside the model.

    Returns:
        The header, and the size of the whole file in bytes.

    Raises:
        GradfixError: If it can't be read, or the file is no well-formed safetensors file.
    """
    shown = Path(f"{name}@{commit}/{file}")
    try:
        start, size = _read_range(name, commit, file, 0, FIRST_BYTES)
        end = 8 + header_length(shown, start[:64], size)
        if end > len(start):
            start, size = _read_range(name, commit, file, 0, end)
    except network_errors() as error:
        raise GradfixError(
            f"{shown}: its header can't be read from the Hub ({in_short(error)}): check the connection and "
            "start again"
        ) from None
    if end > len(start):
        raise GradfixError(
            f"{shown}: the Hub sent {len(start)} bytes of a header of {end}: check the connection and start again"
        )
    return parse_header(shown, start[8:end], size), size


def glance(name: str, commit: str, file: str, entry: Entry) -> bytes | None:
    """Read a few bytes from the middle of a tensor on the Hub.

    Args:
        name: Id of the model.
        commit: Its revision.
        file: Path inside the model.
        entry: Where the tensor lies in the file.

    Returns:
        At most :data:`GLANCE` bytes, from the same place in tensors of the same size; None if the tensor can't
        be looked at apart from the rest.
    """
    length = min(GLANCE, entry.spec.nbytes)
    start = entry.start + (entry.spec.nbytes - length) // 2
    try:
        data, _ = _read_range(name, commit, file, start, length)
    except network_errors():
        return None
    return data if len(data) == length else None


def _read_range(name: str, commit: str, file: str, start: int, length: int) -> tuple[bytes, int]:
    """Some bytes of a file, fewer where it ends, and its size."""
    from huggingface_hub import constants, hf_hub_url, hf_raise_for_status
    from huggingface_hub.utils import (  # type: ignore[attr-defined]  # exported for those who look at runtime
        build_hf_headers,
        http_stream_backoff,
    )

    url = hf_hub_url(name, file, revision=commit)
    headers = {
        **build_hf_headers(),
        "Range": f"bytes={start}-{start + length - 1}",
        "Accept-Encoding": "identity",
    }
    data = bytearray()
    with http_stream_backoff(
        "GET", url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT, max_retries=2
    ) as response:
        if response.status_code == 416:  # no byte to give: the file is empty
            return b"", 0
        hf_raise_for_status(response)
        partial = response.headers.get("Content-Range", "").rpartition("/")[2]
        size = partial if response.status_code == 206 else response.headers.get("Content-Length", "")
        if start and response.status_code != 206:
            raise ValueError("it doesn't give ranges")
        if not size.isdecimal():
            raise ValueError("it doesn't tell the length of the file")
        for chunk in response.iter_bytes():
            data += chunk
            if len(data) >= length:  # a server that ignores ranges would send all of it
                break
    return bytes(data[:length]), int(size)
