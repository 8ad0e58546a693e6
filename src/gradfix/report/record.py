"""From a record (JSON) to its page: found in a folder, read, laid out."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gradfix.errors import GradfixError
from gradfix.report.page import Page, page_html
from gradfix.report.pages import comparison_page, demo_page, transport_page

REPORT_FILE = "report.html"


VERSION = 1


PAGES: dict[str, Callable[[Mapping[str, Any]], Page]] = {
    "gradfix-transport": transport_page,
    "gradfix-comparison": comparison_page,
    "gradfix-demo": demo_page,
}
"""How each kind of record is laid out, by its ``format``."""


def report(record: Mapping[str, Any], where: str = "the record") -> str:
    """Write the page of a record.

    Args:
        record: JSON of a transport, a comparison or a demo.
        where: What it is from, for messages.

    Returns:
        A whole HTML document that needs no other file; the same record always gives the same text.

    Raises:
        GradfixError: if it is no record of gradfix, one of another version, or a damaged one.
    """
    kind, version = record.get("format"), record.get("version")
    if kind not in PAGES:
        raise GradfixError(
            f"{where}: expected a record of gradfix ({', '.join(PAGES)}), found format {kind!r}; "
            "give the folder that a gradfix command wrote"
        )
    if version != VERSION:
        raise GradfixError(
            f"{where}: {kind} of version {version!r}, this gradfix reads {VERSION}; "
            "make the report with the version of gradfix that wrote it"
        )
    try:
        return page_html(PAGES[kind](record))
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise GradfixError(
            f"{where}: damaged: {type(error).__name__} {error}; restore the file as gradfix wrote it"
        ) from error


FORMATS = ("demo.json", "comparison.json", "gradfix.json")
"""Names of records, the one that tells most first."""


def read_record(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Read the record of a folder.

    Args:
        folder: The output of ``transport``, ``compare`` or ``demo``.

    Returns:
        The file, and what it holds; a demo's with the record of its transport.

    Raises:
        GradfixError: if there is none, or it can't be read.
    """
    found = next((folder / name for name in FORMATS if (folder / name).is_file()), None)
    if found is None:
        raise GradfixError(
            f"{folder}: expected one of {', '.join(FORMATS)}, found none; "
            "give the folder that gradfix transport, compare or demo wrote"
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
        folder: The output of ``transport``, ``compare`` or ``demo``.

    Returns:
        A whole HTML document.
    """
    path, record = read_record(Path(folder))
    return report(record, str(path))
