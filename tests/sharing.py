"""What is too much for every quick run is shared out among those of one CI, one for each Python.

Searches draw other examples in each process, so that three runs with a third of them are one with
all. A simulated cluster does the same under every Python, so that each takes other seeds. Together
they try everything; alone, a run of the quick tests tries its own part.

Tests marked ``shared`` take long, and see little of the Python that they run under: each of them is
one run's. Whoever names a test, by its id or ``-k``, has it all the same.

``QUORATE_PARTS`` is the number of runs, 3 if it is not set, and ``QUORATE_PART``, from 0, is this
one, by the minor version of Python if it is not set. ``QUORATE_PARTS=1`` does all of it here, as
``python -m tools.check --deep`` does.
"""

from __future__ import annotations

import os
import sys
import zlib
from collections.abc import Iterable
from typing import Final, TypeVar

T = TypeVar("T")

#: The seed of hashes of a child whose answer is held against this process's own, which has another.
OTHER_HASHES: Final = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"

PARTS: Final = max(1, int(os.environ.get("QUORATE_PARTS", "3")))
PART: Final = int(os.environ.get("QUORATE_PART", sys.version_info.minor)) % PARTS


def examples(count: int) -> int:
    """How many of a search's *count* examples are to be tried here."""
    return max(1, -(-count // PARTS))


def under_other_hashes(**more: str) -> dict[str, str]:
    """The environment of a child process in which strings hash differently than here."""
    return {**os.environ, "PYTHONHASHSEED": OTHER_HASHES, **more}


def turn(cases: Iterable[T]) -> list[T]:
    """Those of *cases*, which do the same under every Python, that are to be tried here."""
    return list(cases)[PART::PARTS]


def is_mine(name: str) -> bool:
    """Whether the test of that *name*, which one run has, is this one's."""
    return zlib.crc32(name.encode()) % PARTS == PART
