"""JSON files beside weights: configs and indexes."""

from pathlib import Path
from typing import Any

from gradfix.checkpoints.reading.file_reader import PositionedFile
from gradfix.checkpoints.reading.recognition import other_kind
from gradfix.errors import GradfixError
from gradfix.text_files import MAX_BYTES, decoded, parse_json


def read_json_object(path: Path, *, finite: bool = True) -> dict[str, Any]:
    """Read a JSON object in which no key stands twice.

    Args:
        path: The file.
        finite: Refuse NaN and infinities; transformers writes infinities into some configurations.

    Returns:
        The object.

    Raises:
        GradfixError: If the file is absent, too long, no JSON in UTF-8, no object, or ambiguous.
    """
    file = PositionedFile(path)
    if file.size > MAX_BYTES:
        raise GradfixError(f"{path}: is too long: at most {MAX_BYTES} bytes expected, found {file.size}")
    data = file.read_bytes(0, file.size)
    if (meaning := other_kind(data[:64])) is not None:
        raise GradfixError(f"{path}: {meaning}")
    return parse_json(decoded(data, str(path)), str(path), finite=finite)


def parse_json_object(path: Path, data: bytes, where: str) -> dict[str, Any]:
    """Parse a JSON object in which no key stands twice.

    Args:
        path: The file it comes from, for messages.
        data: The JSON.
        where: Which part of the file it is, for messages.

    Returns:
        The object.
    """
    described = f"{path}: {where}"
    return parse_json(decoded(data, described), described)
