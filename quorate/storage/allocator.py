"""What memory this process holds that it does not need: asked about, and given back."""

from __future__ import annotations

import ctypes
import functools
import resource
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


def mapped_bytes() -> int:
    """Bytes of files that are in this process's memory because it read them through a map; 0 where
    the system does not say. The system takes them back when it needs them, and yet they count."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[2]) * resource.getpagesize()
    except OSError:
        return 0
