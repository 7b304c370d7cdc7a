"""Sketches of sets of elements: two of one size tell in what the sets differ, if that is not too
much for the size, however large the sets are.

Each element adds its fingerprint to three cells of the sketch, by exclusive or. In two sketches
laid over each other all elements that are in both vanish; a cell with a single fingerprint left
gives it away, taking it out of its other cells leaves further single ones, and so on. Less than two
cells for each element of the difference mostly suffice. These are invertible Bloom lookup tables
(Eppstein, Goodrich, Uyeda and Varghese, "What's the difference? Efficient set reconciliation
without prior context", 2011), without counts: on which side a fingerprint was is found out by
looking there.

Fingerprints are short, so what comes out has to be confirmed by digests (``crdt.digest``) of all
that it speaks of. Then a collision costs time, and nothing else.
"""

from __future__ import annotations

from typing import Final

from quorate.base.invariants import must
from quorate.errors import CrdtFormatError

FINGERPRINT_BYTES: Final = 6
CELL_BYTES: Final = 8  # a fingerprint, and two bytes of a hash of it
CELLS_MAX: Final = 3 * 4096

_FINGERPRINTS: Final = 2 ** (8 * FINGERPRINT_BYTES) - 1
_CELLS: Final = 2 ** (8 * CELL_BYTES) - 1
_CHECK_BITS: Final = 8 * (CELL_BYTES - FINGERPRINT_BYTES)
_SPREAD: Final = 0x9E3779B97F4A7C15  # odd, of no pattern: Fibonacci hashing


def fingerprint(digest: int) -> int:
    """The fingerprint of the element with that digest."""
    return digest & _FINGERPRINTS


def cells_for(count: int) -> int:
    """Cells that tell a difference of *count* elements in nearly all cases; the rest has to be
    asked for again."""
    return min(3 * (5 + (count * 11 + 19) // 20), CELLS_MAX)


class Sketch:
    """*cells*: a multiple of 3."""

    __slots__ = ("_cells", "_third")

    def __init__(self, cells: int) -> None:
        must(0 < cells <= CELLS_MAX and cells % 3 == 0, "three parts of one size", cells=cells)
        self._third = cells // 3
        self._cells = [0] * cells

    def add(self, fingerprint: int) -> None:
        """Put an element in; a second time: take it out again."""
        third, cells = self._third, self._cells
        value = fingerprint << _CHECK_BITS | (fingerprint * _SPREAD & _CELLS) >> 64 - _CHECK_BITS
        cells[fingerprint % third] ^= value
        cells[third + (fingerprint >> 16) % third] ^= value
        cells[third + third + (fingerprint >> 32) % third] ^= value

    def encode(self) -> bytes:
        """As it travels."""
        return b"".join([cell.to_bytes(CELL_BYTES, "big") for cell in self._cells])

    @classmethod
    def decode(cls, encoded: bytes) -> Sketch:
        """The sketch of these bytes.

        Raises:
            CrdtFormatError: they are none.
        """
        count, left = divmod(len(encoded), CELL_BYTES)
        if left or count % 3 or not 0 < count <= CELLS_MAX:
            raise CrdtFormatError(f"no sketch takes {len(encoded)} bytes")
        sketch = cls(count)
        sketch._cells = [
            int.from_bytes(encoded[at : at + CELL_BYTES], "big")
            for at in range(0, len(encoded), CELL_BYTES)
        ]
        return sketch

    def difference(self, other: Sketch) -> set[int] | None:
        """The fingerprints that are in one of the two; None: there are too many to tell."""
        must(len(self._cells) == len(other._cells), "sketches of one size")
        left = Sketch(len(self._cells))
        left._cells = [one ^ two for one, two in zip(self._cells, other._cells, strict=True)]
        found: set[int] = set()
        waiting = list(range(len(left._cells)))
        while waiting:
            fingerprint = left._single(waiting.pop())
            if fingerprint is None:
                continue
            if fingerprint in found:  # a cell that looked single and was not
                return None
            found.add(fingerprint)
            left.add(fingerprint)
            waiting += left._places(fingerprint)
        return None if any(left._cells) else found

    def _single(self, at: int) -> int | None:
        """The fingerprint that is alone in a cell."""
        cell = self._cells[at]
        fingerprint = cell >> _CHECK_BITS
        check = (fingerprint * _SPREAD & _CELLS) >> 64 - _CHECK_BITS
        if not cell or cell & 2**_CHECK_BITS - 1 != check or at not in self._places(fingerprint):
            return None
        return fingerprint

    def _places(self, fingerprint: int) -> tuple[int, int, int]:
        third = self._third
        return (
            fingerprint % third,
            third + (fingerprint >> 16) % third,
            third + third + (fingerprint >> 32) % third,
        )
