"""How long-running functions tell how far they are, whoever shows it."""

from typing import Protocol


class Progress(Protocol):
    """Called with the running stage as work completes; the command line draws a bar from it."""

    def __call__(self, stage: str, done: int, total: int, unit: str = "") -> None:
        """Report progress.

        Args:
            stage: What is being done, as a reader should see it ("writing weights", "counting votes").
            done: Units completed so far.
            total: Units in the whole stage.
            unit: What is counted: "samples", "bytes", …
        """


def silent(stage: str, done: int, total: int, unit: str = "") -> None:
    """Show nothing: the default of every function that takes a ``progress``."""
