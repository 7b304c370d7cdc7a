"""Digests of elements and of ranges of them, to find out where two replicas differ.

The digest of a range is the sum of its elements' digests, so it is kept up to date by adding what
an element became and taking off what it was, and ranges add up to greater ones. Replicas with equal
digests hold equal elements, up to collisions of 128 bits; their contexts are compared beside it.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b
from typing import Final

from quorate.crdt.codec import encode_leaf
from quorate.crdt.delta import path_key
from quorate.crdt.dots import Leaf, Path

DIGEST_BYTES: Final = 16
MODULUS: Final = 2 ** (8 * DIGEST_BYTES)
EMPTY: Final = 0


def element_digest(path: Path, leaf: Leaf) -> int:
    """The digest of one element; ``EMPTY`` when nothing is alive in it."""
    return stored_digest(path_key(path), encode_leaf(leaf)) if leaf else EMPTY


def stored_digest(key: bytes, encoded: bytes) -> int:
    """The same, from the key and the bytes under which it is kept."""
    hashed = blake2b(len(key).to_bytes(4, "big"), digest_size=DIGEST_BYTES, person=b"quorate-crdt")
    hashed.update(key)
    hashed.update(encoded)
    return int.from_bytes(hashed.digest(), "big")


def replaced(total: int, old: int, new: int) -> int:
    """The digest of a range after one of its elements went from digest *old* to *new*."""
    return (total - old + new) % MODULUS


def range_digest(elements: Iterable[tuple[Path, Leaf]]) -> int:
    """The digest of these elements, in whatever order they come."""
    return sum(element_digest(path, leaf) for path, leaf in elements) % MODULUS
