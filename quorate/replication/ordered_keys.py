"""The keys of an ordered table: cheap to add to, sorted when somebody looks.

Blocks of neighbouring keys, in order; within a block in whatever order they came, until a range
wants them. To add a key means to find its block (a search among the blocks' least keys, which stay
in the processor's cache) and to put it into a dict. To keep the keys sorted takes three times as
long with a million of them, most of it spent on comparing keys that are far away in memory.

Blocks are dicts for a second reason. A dict of byte strings is invisible to the garbage collector,
a list is not: with a million keys in lists every full collection would stop the node for 20 ms.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Final

#: Keys of one block: sorting it takes 30 us. More would make ranges slow that follow a write, fewer
#: the search among the blocks.
BLOCK_KEYS_MAX: Final = 512
#: A block with fewer keys joins its neighbour.
BLOCK_KEYS_MIN: Final = 64


class OrderedKeys:
    """A set of byte strings in order. The caller sees to it that a key added is new, and a key
    removed is there."""

    __slots__ = ("_blocks", "_count", "_mins", "_sorted")

    def __init__(self) -> None:
        self._blocks: list[dict[bytes, None]]
        #: What the keys of each block are not below; every key is at or above the first, b"".
        self._mins: list[bytes]
        self._sorted: list[bool]
        self._count: int
        self.clear()

    def __len__(self) -> int:
        return self._count

    def clear(self) -> None:
        """Forget all keys."""
        self._blocks, self._mins, self._sorted, self._count = [{}], [b""], [True], 0

    def add(self, key: bytes) -> None:
        """Add a key that is not there."""
        at = bisect_right(self._mins, key) - 1
        block = self._blocks[at]
        block[key] = None
        self._sorted[at] = False
        self._count += 1
        if len(block) > BLOCK_KEYS_MAX:
            self._split(at)

    def remove(self, key: bytes) -> None:
        """Remove a key that is there."""
        at = bisect_right(self._mins, key) - 1
        block = self._blocks[at]
        del block[key]
        self._count -= 1
        if len(block) < BLOCK_KEYS_MIN and len(self._blocks) > 1:
            self._join(at)

    def extend(self, keys: Iterable[bytes]) -> None:
        """Add *keys*: fast if they come in order, and above those that are there."""
        source = iter(keys)
        while part := sorted(islice(source, BLOCK_KEYS_MAX // 2)):
            if self._count == 0:
                self._blocks, self._mins, self._sorted = [dict.fromkeys(part)], [b""], [True]
            elif part[0] > next(reversed(self._in_order(len(self._blocks) - 1))):
                self._blocks.append(dict.fromkeys(part))
                self._mins.append(part[0])
                self._sorted.append(True)
            else:
                for key in part:
                    self.add(key)
                continue
            self._count += len(part)

    def _split(self, at: int) -> None:
        keys = sorted(self._blocks[at])
        half = len(keys) // 2
        self._blocks[at : at + 1] = dict.fromkeys(keys[:half]), dict.fromkeys(keys[half:])
        self._mins.insert(at + 1, keys[half])
        self._sorted[at : at + 1] = True, True

    def _join(self, at: int) -> None:
        """Put a block's keys to those of the one before it, or after it for the first."""
        into = max(0, at - 1)
        self._blocks[into].update(self._blocks.pop(into + 1))
        self._sorted[into] = False
        del self._sorted[into + 1], self._mins[into + 1]
        if len(self._blocks[into]) > BLOCK_KEYS_MAX:
            self._split(into)

    def _in_order(self, at: int) -> dict[bytes, None]:
        block = self._blocks[at]
        if not self._sorted[at]:
            block = self._blocks[at] = dict.fromkeys(sorted(block))
            self._sorted[at] = True
        return block

    def __iter__(self) -> Iterator[bytes]:
        return self.between(b"", None)

    def between(self, start: bytes, end: bytes | None, *, reverse: bool = False) -> Iterator[bytes]:
        """Keys with *start* <= key < *end* (None: to the last). Nothing may be changed while it
        runs."""
        first = bisect_right(self._mins, start) - 1
        last = (len(self._mins) if end is None else bisect_left(self._mins, end)) - 1
        for at in range(last, first - 1, -1) if reverse else range(first, last + 1):
            part: Iterable[bytes] = self._in_order(at)
            if at in {first, last}:
                keys = list(part)
                low = bisect_left(keys, start) if at == first else 0
                high = bisect_left(keys, end) if at == last and end is not None else len(keys)
                part = keys[low:high]
                yield from reversed(part) if reverse else part
            else:
                yield from reversed(self._blocks[at]) if reverse else part

    def count(self, start: bytes, end: bytes | None) -> int:
        """How many keys ``between`` would give: two blocks are looked into, and 20 ns for each
        between them."""
        before = self._below(start) if start else 0
        return max(0, (self._count if end is None else self._below(end)) - before)

    def _below(self, key: bytes) -> int:
        at = bisect_right(self._mins, key) - 1
        inside = bisect_left(list(self._in_order(at)), key)
        return sum(map(len, self._blocks[:at])) + inside
