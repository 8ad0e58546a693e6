"""What gradfix raises when it refuses: one line that a person can act on."""


class GradfixError(Exception):
    """The inputs do not allow what was asked; the command line exits with status 1.

    The message is one line that names the file or object, the key, what was expected, what was found, and
    what to do about it. Subclasses exist only where a caller treats a kind of refusal differently.
    """
