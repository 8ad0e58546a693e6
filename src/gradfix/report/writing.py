"""From a record to the text of its page."""

from collections.abc import Callable, Mapping
from typing import Any

from gradfix.errors import GradfixError
from gradfix.report.documents import comparison_page, demo_page, transport_page
from gradfix.report.page import Page, page_html
from gradfix.report.studies import tables_page

REPORT_FILE = "report.html"
VERSION = 1

PAGES: dict[str, Callable[[Mapping[str, Any]], Page]] = {
    "gradfix-transport": transport_page,
    "gradfix-comparison": comparison_page,
    "gradfix-demo": demo_page,
    "gradfix-lab-tables": tables_page,
}
"""How each kind of record is laid out, by its ``format``."""


def report(record: Mapping[str, Any], where: str = "the record") -> str:
    """Write the page of a record.

    Args:
        record: JSON of a transport, a comparison, a demo or studies.
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
