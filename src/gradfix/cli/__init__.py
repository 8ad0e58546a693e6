"""The command line: each command parses, validates, and calls the library once."""

from importlib import import_module

from gradfix.cli.command import app
from gradfix.interrupts import end_at_once

for _name in (
    "transport",
    "check",
    "evaluate",
    "compare",
    "table",
    "merge",
    "votes",
    "merge_votes",
    "apply",
    "diff",
    "extract",
    "inspect",
    "report",
    "run",
    "demo",
    "paper",
):
    import_module(f"gradfix.cli.{_name}")  # importing a command registers it


def main() -> None:
    """Run the ``gradfix`` command."""
    end_at_once()
    app()
