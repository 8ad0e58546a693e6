"""JSON files beside weights: configs and indexes."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from gradfix.checkpoints.reading.file_reader import PositionedFile
from gradfix.checkpoints.reading.recognition import other_kind
from gradfix.errors import GradfixError

MAX_JSON_BYTES = 100_000_000


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a JSON object in which no key stands twice.

    Args:
        path: The file.

    Returns:
        The object.

    Raises:
        GradfixError: If the file is absent, too long, no JSON in UTF-8, no object, or ambiguous.
    """
    file = PositionedFile(path)
    if file.size > MAX_JSON_BYTES:
        raise GradfixError(f"{path}: is too long: at most {MAX_JSON_BYTES} bytes expected, found {file.size}")
    data = file.read_bytes(0, file.size)
    if (meaning := other_kind(data[:64])) is not None:
        raise GradfixError(f"{path}: {meaning}")
    return parse_json_object(path, data, "the file")


def parse_json_object(path: Path, data: bytes, where: str) -> dict[str, Any]:
    """Parse a JSON object in which no key stands twice.

    Args:
        path: The file it comes from, for messages.
        data: The JSON.
        where: Which part of the file it is, for messages.

    Returns:
        The object.

    Raises:
        GradfixError: If it is no JSON in UTF-8, no object, or names a key twice.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) != len(pairs):
            counts = Counter(key for key, _ in pairs)
            twice = next(key for key, count in counts.items() if count > 1)
            raise GradfixError(
                f"{path}: duplicate key {twice!r} in {where}, expected each once: it is ambiguous; write it "
                "again"
            )
        return value

    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise GradfixError(
            f"{path}: {where} is not UTF-8 (byte {error.start}): it is corrupt; download or write it again"
        ) from None
    try:
        value = json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else type(error).__name__
        raise GradfixError(
            f"{path}: {where} is not valid JSON ({reason}): it is corrupt; download or write it again"
        ) from None
    if not isinstance(value, dict):
        raise GradfixError(
            f"{path}: {where} is a JSON {type(value).__name__}, expected an object: download or write it "
            "again"
        )
    return value
