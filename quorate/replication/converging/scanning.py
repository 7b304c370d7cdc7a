"""Looking through many elements without holding the node up: in slices, with pauses between them.

What is looked at changes meanwhile. Each element is seen as it durably was at some moment between
the beginning and the end, and whoever asks has to be content with that (``reconciling`` is).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from hashlib import blake2b
from typing import Final

from quorate.base.limits import MIB
from quorate.crdt.codec import encode_context
from quorate.crdt.digest import DIGEST_BYTES, EMPTY, MODULUS, stored_digest
from quorate.errors import UnavailableError
from quorate.replication.converging.engine import Engine
from quorate.replication.converging.view import ELEMENTS
from quorate.storage.elements import ElementStore

#: Elements, and bytes, between two pauses: some 2 ms of work.
SLICE_ELEMENTS: Final = 512
SLICE_BYTES: Final = MIB // 2
PAUSE_S: Final = 0.001
#: Times that the digest of everything is begun anew because something changed meanwhile.
DIGEST_TRIES: Final = 5


class Scanned:
    """Elements that were looked at: how many, their bytes, the sum of their digests, and where
    they *end*: before that key, or None if there are no more."""

    __slots__ = ("count", "digest", "end", "size_bytes")

    def __init__(self) -> None:
        self.count = 0
        self.digest = EMPTY
        self.size_bytes = 0
        self.end: bytes | None = None


async def scan(
    store: ElementStore,
    start: bytes,
    end: bytes | None,
    *,
    count_max: int | None = None,
    bytes_max: int | None = None,
    each: Callable[[int, bytes, bytes], None] | None = None,
) -> Scanned:
    """Look at the elements from *start* on and before *end*, *count_max* of them and about
    *bytes_max* at most. *each* is told of each: its digest, key and leaf."""
    scanned = Scanned()
    while True:
        limit = SLICE_ELEMENTS if count_max is None else min(SLICE_ELEMENTS, count_max)
        page = store.page(ELEMENTS, start, end, limit, SLICE_BYTES)
        if not page:
            return scanned
        for key, leaf in page:
            digest = stored_digest(key, leaf)
            scanned.digest += digest
            scanned.size_bytes += len(key) + len(leaf)
            if each is not None:
                each(digest, key, leaf)
        scanned.digest %= MODULUS
        scanned.count += len(page)
        start = page[-1][0] + b"\0"
        if count_max is not None:
            count_max -= len(page)
        if count_max == 0 or (bytes_max is not None and scanned.size_bytes >= bytes_max):
            scanned.end = start
            return scanned
        await asyncio.sleep(PAUSE_S)


async def digest_of(engine: Engine) -> str:
    """A digest of all CRDT data of a node, its elements and what it has accounted for: equal on
    nodes that have the same records and folded the same lives.

    Raises:
        UnavailableError: the data keeps changing.
    """
    for _ in range(DIGEST_TRIES):
        before = (engine.change_count, encode_context(engine.view.context), engine.own.generation)
        scanned = await scan(engine.store, b"", None)
        after = (engine.change_count, encode_context(engine.view.context), engine.own.generation)
        if before == after:
            hashed = blake2b(digest_size=DIGEST_BYTES, person=b"quorate-crdt-all")
            hashed.update(scanned.digest.to_bytes(DIGEST_BYTES, "big"))
            hashed.update(after[2].to_bytes(8, "big"))
            hashed.update(after[1])
            return hashed.hexdigest()
    raise UnavailableError(
        "the data changes faster than a digest of it can be made: ask again when writes pause"
    )
