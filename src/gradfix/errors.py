"""What gradfix raises when it refuses: one line that a person can act on."""

from collections.abc import Iterable


class GradfixError(Exception):
    """The inputs do not allow what was asked; the command line exits with status 1.

    The message is one line that names the file or object, the key, what was expected, what was found, and
    what to do about it. Subclasses exist only where a caller treats a kind of refusal differently.
    """


class AlignmentError(GradfixError):
    """A model is not built in a way that can be aligned; where nobody asked for it, a transport does without."""


def listed(names: Iterable[str], most: int = 10) -> str:
    """Name the first few of many keys, and say how many there are.

    Args:
        names: Keys, in the order to show.
        most: How many to spell out.

    Returns:
        ``"a, b, c … (312 in all)"``.
    """
    names = list(names)
    return ", ".join(names[:most]) + (f" … ({len(names)} in all)" if len(names) > most else "")
