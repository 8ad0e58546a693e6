"""Many processes, one job: each runs the same command on the same inputs, and they share what takes long."""

from gradfix.ranks.group import ALONE, Alone, FailedElsewhereError, Group, RankFailedError, ranks

__all__ = ["ALONE", "Alone", "FailedElsewhereError", "Group", "RankFailedError", "ranks"]
