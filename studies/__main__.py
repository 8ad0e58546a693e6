"""Run the studies as a command."""

from studies.cli import app

app()
