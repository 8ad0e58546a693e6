"""One self-contained page of a result: whether it was worth it, how sure that is, and what would help more."""

from gradfix.report.writing import REPORT_FILE, report, report_of

__all__ = ["REPORT_FILE", "report", "report_of"]
