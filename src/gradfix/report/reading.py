"""Find the record in a folder that a command wrote."""

import json
from pathlib import Path
from typing import Any

from gradfix.errors import GradfixError
from gradfix.report.writing import report

FORMATS = ("demo.json", "comparison.json", "tables.json", "gradfix.json")
"""Names of records, the one that tells most first."""


def read_record(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Read the record of a folder.

    Args:
        folder: The output of ``transport``, ``compare``, ``demo`` or ``lab tables``.

    Returns:
        The file, and what it holds; a demo's with the record of its transport.

    Raises:
        GradfixError: if there is none, or it can't be read.
    """
    found = next((folder / name for name in FORMATS if (folder / name).is_file()), None)
    if found is None:
        raise GradfixError(
            f"{folder}: expected one of {', '.join(FORMATS)}, found none; "
            "give the folder that gradfix transport, compare, demo or lab tables wrote"
        )
    record = _read(found)
    if record.get("format") == "gradfix-demo":
        record["transport"] = _read(folder / "model" / "gradfix.json")
    return found, record


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise GradfixError(
            f"{path}: not readable as JSON ({' '.join(str(error).split())}); restore the file as gradfix wrote it"
        ) from error
    if not isinstance(content, dict):
        raise GradfixError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content


def report_of(folder: str | Path) -> str:
    """Write the page of a folder's record.

    Args:
        folder: The output of ``transport``, ``compare``, ``demo`` or ``lab tables``.

    Returns:
        A whole HTML document.
    """
    path, record = read_record(Path(folder))
    return report(record, str(path))
