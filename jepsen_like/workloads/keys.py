"""Keys that are used for a while and then replaced, so that the history of each stays short: the
effort of a checker grows faster than the history of one key does."""

from __future__ import annotations

from random import Random
from typing import Final

#: Of the keys ever used, at most so many are read again at the end.
FINAL_READS_MAX: Final = 200


class RotatingKeys:
    """*count* keys at a time; each is given out *uses* times, then a new one takes its place."""

    def __init__(self, prefix: str, count: int, uses: int) -> None:
        if count < 1 or uses < 1:
            raise ValueError(f"keys and their uses are at least 1, not {count} and {uses}")
        self._prefix = prefix
        self._uses = uses
        self._active = [self._name(number) for number in range(count)]
        self._used = [0] * count
        self._made = count

    def draw(self, random: Random) -> str:
        """One of the keys in use."""
        slot = random.randrange(len(self._active))
        if self._used[slot] >= self._uses:
            self._active[slot] = self._name(self._made)
            self._used[slot] = 0
            self._made += 1
        self._used[slot] += 1
        return self._active[slot]

    def used(self) -> list[str]:
        """All of them so far, or the latest ``FINAL_READS_MAX``."""
        first = max(0, self._made - FINAL_READS_MAX)
        return [self._name(number) for number in range(first, self._made)]

    def _name(self, number: int) -> str:
        return f"{self._prefix}{number}"
