"""Chance that every replica draws alike, whatever the version of its Python.

``random.Random`` promises the same ``random()`` for a seed for ever, but not the same ``choice`` or
``shuffle``: those have changed between versions of Python, and replicas of one cluster may run
different ones for a while. Everything here is arithmetic on 64 bits (SplitMix64: Steele, Lea and
Flood, "Fast splittable pseudorandom number generators", 2014).
"""

from __future__ import annotations

from collections.abc import MutableSequence, Sequence
from typing import Final, TypeVar

from quorate.errors import InvalidArgumentError

T = TypeVar("T")

_MASK: Final = (1 << 64) - 1
_STEP: Final = 0x9E3779B97F4A7C15


class Chance:
    """A stream of chance. *seed*: any integers; their order matters. 0.4 us a number. Not for
    secrets."""

    __slots__ = ("_state",)

    def __init__(self, *seed: int) -> None:
        self._state = 0
        for part in seed:
            self._state = (self._state ^ part) & _MASK
            self._state = self.bits64()

    def bits64(self) -> int:
        """64 random bits."""
        self._state = mixed = (self._state + _STEP) & _MASK
        mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK
        return mixed ^ (mixed >> 31)

    def random(self) -> float:
        """From 0.0 up to but not including 1.0."""
        return (self.bits64() >> 11) * 2.0**-53

    def below(self, bound: int) -> int:
        """An integer from 0 to *bound* - 1, each as likely.

        Raises:
            InvalidArgumentError: *bound* is not from 1 to 2**64.
        """
        if not 0 < bound <= 1 << 64:
            raise InvalidArgumentError(f"a bound is from 1 to 2**64, not {bound}")
        limit = (1 << 64) - (1 << 64) % bound
        while True:  # on average less than two turns
            drawn = self.bits64()
            if drawn < limit:
                return drawn % bound

    def randint(self, least: int, greatest: int) -> int:
        """An integer from *least* to *greatest*, both possible."""
        return least + self.below(greatest - least + 1)

    def choice(self, items: Sequence[T]) -> T:
        """One of *items*.

        Raises:
            InvalidArgumentError: there are none.
        """
        return items[self.below(len(items))]

    def shuffle(self, items: MutableSequence[T]) -> None:
        """Put *items* into a random order, in place."""
        for at in range(len(items) - 1, 0, -1):
            other = self.below(at + 1)
            items[at], items[other] = items[other], items[at]

    def randbytes(self, count: int) -> bytes:
        """*count* random bytes."""
        return b"".join(self.bits64().to_bytes(8, "big") for _ in range((count + 7) // 8))[:count]
