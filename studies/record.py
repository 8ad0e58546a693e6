"""The studies as JSON, for the report and for other tools."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from studies.cells import Table
from studies.figures import Curves, Figure
from studies.report import Report

FORMAT = "gradfix-studies"
VERSION = 1


def studies_json(reports: Mapping[str, tuple[str, Report]]) -> list[dict[str, Any]]:
    """Give studies as JSON.

    Args:
        reports: Title and part of the page, by study.

    Returns:
        An object a study: its note, figure and tables with every interval.
    """
    return [
        {
            "name": name,
            "title": title,
            "note": report.note,
            "figure": None if report.figure is None else _figure(report.figure),
            "tables": _tables(report.tables),
        }
        for name, (title, report) in reports.items()
    ]


def _figure(figure: Figure) -> dict[str, Any]:
    return {"kind": "curves" if isinstance(figure, Curves) else "dots", **asdict(figure)}


def _tables(tables: Sequence[Table]) -> list[dict[str, Any]]:
    return [asdict(table) for table in tables]
