"""Have freed memory go back to the system, but not what the next block takes again.

glibc learns from each large block that is freed to keep the next ones (its threshold for mapping memory rises to
32 MB), and has an arena for each thread. A model fetched block by block frees everything it allocates, in several
threads: twice the memory that it needs at any time would stay with the process. Were all of it given back at once, the
system would have to clear new pages for each activation: a fifth of the processor's time.
"""

import ctypes
import sys
from functools import lru_cache

_MMAP_THRESHOLD, _TRIM_THRESHOLD, _ARENA_MAX = -3, -1, -8  # malloc.h
MAPPED_FROM = 1 << 23
"""Bytes from which a tensor has pages of its own: activations come too often for that, matrices and scores do not."""

LEFT_FREE = 1 << 25
"""Bytes that may be free at the end of what is allocated."""


@lru_cache(maxsize=1)
def give_memory_back() -> bool:
    """Set the allocator of this process, once.

    Returns:
        Whether it is one that can be told so; others are left as they are.
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False  # musl has no such function, and keeps less
    settings = ((_MMAP_THRESHOLD, MAPPED_FROM), (_TRIM_THRESHOLD, LEFT_FREE), (_ARENA_MAX, 1))
    return all([mallopt(name, value) == 1 for name, value in settings])


def give_back_what_is_free() -> None:
    """Let the system have the pages between blocks that are still used: the allocator keeps those by itself."""
    if give_memory_back():
        ctypes.CDLL(None).malloc_trim(0)
