"""Labelled rows, read as the commands read them: ``load_rows("support.jsonl")`` gives what ``--support`` would."""

from gradfix.tasks.data import Row, Rows, load_rows

__all__ = ["Row", "Rows", "load_rows"]
