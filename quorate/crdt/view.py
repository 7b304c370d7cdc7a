"""What kinds and deltas need of a replica, whether it is in memory or on disk."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from quorate.crdt.dots import Leaf, Path


class View(Protocol):
    """What kinds read of a replica: its leaves, in the order of their keys, and its context."""

    def leaf(self, path: Path) -> Leaf:
        """What is alive in one element; () when nothing is."""
        ...

    def scan(self, prefix: Path) -> Iterator[tuple[Path, Leaf]]:
        """Every element below *prefix* that has something alive, in the order of their keys."""
        ...

    def branches(self, prefix: Path) -> Iterator[bytes]:
        """The segments that come right behind *prefix*, in order, each once."""
        ...

    def sees(self, actor: int, counter: int) -> bool:
        """Whether the replica has accounted for that dot."""
        ...

    def finished(self, actor: int) -> bool:
        """Whether that actor is no more, and the replica has all that it ever did."""
        ...
