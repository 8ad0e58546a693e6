"""What gradfix raises when it refuses: one line that a person can act on."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal

Interface = Literal["python", "command line", "recipe"]
_interface: ContextVar[Interface] = ContextVar("interface", default="python")


class GradfixError(Exception):
    """The inputs do not allow what was asked; the command line exits with status 1.

    The message is one line that names the file or object, the key, what was expected, what was found, and
    what to do about it. Subclasses exist only where a caller treats a kind of refusal differently.
    """


class ArchitectureError(GradfixError):
    """Two models differ in shapes, depth or kind, so that one's tensors have no place in the other."""


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


@contextmanager
def options_as_on(interface: Interface) -> Iterator[None]:
    """Let messages spell options as they are written there.

    Args:
        interface: Where the user writes them.

    Yields:
        Nothing.
    """
    before = _interface.set(interface)
    try:
        yield
    finally:
        _interface.reset(before)


def option(name: str, *, python: str | None = None) -> str:
    """Spell an option as its user writes it.

    Args:
        name: The recipe's field, such as ``samples_per_class``.
        python: The keyword in Python, where it has another name there.

    Returns:
        ``--samples-per-class``, ``samples_per_class:`` in a recipe file, or ``samples_per_class``.
    """
    spellings = {
        "command line": "--" + name.replace("_", "-"),
        "recipe": f"{name}:",
        "python": python or name,
    }
    return spellings[_interface.get()]


def column_option(role: str, column: str = "NAME") -> str:
    """Spell how a task is told which column has a role.

    Args:
        role: Such as ``text_pair``.
        column: The column to name.

    Returns:
        ``--column text_pair=NAME``, ``column: [text_pair=NAME]`` in a recipe file, or ``text_pair='NAME'``.
    """
    spellings = {
        "command line": f"--column {role}={column}",
        "recipe": f"column: [{role}={column}]",
        "python": f"{role}={column!r}",
    }
    return spellings[_interface.get()]


def network_errors() -> tuple[type[Exception], ...]:
    """Name what the Hub's library raises when a request fails.

    Returns:
        Types of exceptions, for an ``except`` clause.
    """
    from huggingface_hub import errors

    # the base of every error of the HTTP client, which the Hub's library has changed before
    http_error: type[Exception] = next(
        kind for kind in errors.HfHubHTTPError.__mro__ if kind.__name__ == "HTTPError"
    )
    return (http_error, OSError, ValueError)
