"""The command line: each command parses, validates, and calls the library once."""

import os
from importlib import import_module

try:
    from gradfix.cli.command import app
    from gradfix.cli.interrupts import end_at_once

    for _name in (
        "transport",
        "check",
        "evaluate",
        "compare",
        "merge",
        "votes",
        "apply",
        "diff",
        "inspect",
        "report",
        "run",
        "demo",
    ):
        import_module(f"gradfix.cli.{_name}")  # importing a command registers it
except KeyboardInterrupt:  # nothing has begun yet
    os.write(2, b"interrupted\n")
    os._exit(130)


def main() -> None:
    """Run the ``gradfix`` command."""
    end_at_once()
    app()
