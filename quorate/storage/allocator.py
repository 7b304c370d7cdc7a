"""Memory that the C library keeps for later, given back to the system."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable


@functools.cache
def _malloc_trim() -> Callable[[int], int] | None:
    """glibc's; other C libraries give back by themselves, or have no such call."""
    try:
        found = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError, TypeError):
        return None
    found.argtypes, found.restype = (ctypes.c_size_t,), ctypes.c_int
    trim: Callable[[int], int] = found
    return trim


def give_back_memory() -> None:
    """Have the C library return what it does not use. LMDB allocates every page that a commit
    changes: with a million keys changed at random, 100 MB that would stay with the process."""
    trim = _malloc_trim()
    if trim is not None:
        trim(0)
