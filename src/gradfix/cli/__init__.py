"""The command line: each command parses, validates, and calls the library once."""

from importlib import import_module

from gradfix.cli.command import app

for _name in (
    "apply",
    "check",
    "compare",
    "demo",
    "diff",
    "evaluate",
    "inspect",
    "report",
    "run",
    "transport",
    "votes",
    "merge",
):
    import_module(f"gradfix.cli.{_name}")  # importing a command registers it


def main() -> None:
    """Run the ``gradfix`` command."""
    app()
