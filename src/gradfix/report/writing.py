"""From a record to the text of its page."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gradfix.report.page import Page, page_html
from gradfix.report.pages import comparison_page, demo_page, transport_page
from gradfix.report.record import ComparisonRecord, DemoRecord, TransportRecord, paged, read_record

REPORT_FILE = "report.html"


def report(
    record: Mapping[str, Any] | TransportRecord | ComparisonRecord | DemoRecord, where: str = "the record"
) -> str:
    """Write the page of a record.

    Args:
        record: Of a transport, a comparison or a demo, or the JSON of one.
        where: What it is from, for messages.

    Returns:
        A whole HTML document that needs no other file; the same record always gives the same text.
    """
    return page_html(layout(paged(record, where) if isinstance(record, Mapping) else record))


def layout(record: TransportRecord | ComparisonRecord | DemoRecord) -> Page:
    """Lay out a record.

    Args:
        record: Any that has a page.

    Returns:
        The page.
    """
    if isinstance(record, TransportRecord):
        return transport_page(record)
    return comparison_page(record) if isinstance(record, ComparisonRecord) else demo_page(record)


def report_of(folder: str | Path) -> str:
    """Write the page of a folder's record.

    Args:
        folder: The output of ``transport``, ``compare`` or ``demo``.

    Returns:
        A whole HTML document.
    """
    _, record = read_record(Path(folder))
    return report(record)
