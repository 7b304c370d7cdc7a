"""A replica of one piece of data in memory: what a durable one does, without disk and peers.

For tests, examples and tools. It gives out dots and stamps; wall time is handed in.
"""

from __future__ import annotations

from typing import Any

from quorate.base.crdt_operations import Operation
from quorate.crdt.clock import NEVER, Stamp, tick
from quorate.crdt.delta import Delta
from quorate.crdt.dots import Path
from quorate.crdt.kind import Kind, Moment, operate, tidy
from quorate.crdt.observing import observe
from quorate.crdt.state import State


class MemoryReplica:
    """Data of *kind* at *actor*. A life of its own needs an actor of its own: see ``dots``."""

    def __init__(self, kind: type[Kind], actor: int, state: State | None = None) -> None:
        self.kind = kind
        self.actor = actor
        self.state = state if state is not None else State(kind.tag)
        self.counter = 0
        self.stamp: Stamp = NEVER

    def apply(self, operation: Operation, *, wall_ms: int = 0) -> Delta:
        """Carry *operation* out here, and return what others are to join.

        Raises:
            CrdtError: it is not allowed here; nothing changed, and no dot was used.
            InvalidArgumentError: an argument cannot work, or outgrows a limit.
        """
        stamp = tick(self.stamp, wall_ms)
        at = Moment(self.actor, self.counter + 1, stamp)
        delta = operate(self.kind, self.state, operation, at)
        self.counter, self.stamp = at.counter, stamp
        self.state.join(delta)
        return delta

    def join(self, other: Delta | State | MemoryReplica) -> list[Path]:
        """Take over what another knows; returns the elements that changed.

        Raises:
            TypeMismatchError: it is data of another kind; nothing changed.
        """
        return self.state.join(other.state if isinstance(other, MemoryReplica) else other)

    def tidy(self, paths: list[Path]) -> Delta | None:
        """Drop spent cells of the own counters among *paths*; see ``kind.tidy``."""
        at = Moment(self.actor, self.counter + 1, self.stamp)
        delta = tidy(self.kind, self.state, paths, at)
        if delta is not None:
            self.counter = at.counter
            self.state.join(delta)
        return delta

    def observe(self, key: Any = None) -> bytes:  # noqa: ANN401  a key, or None for all of it
        """A token of what is here now, for a removal that is to undo just that."""
        return observe(self.kind, self.state, key=key)

    def value(self) -> Any:  # noqa: ANN401  each kind has its own
        """What the data amounts to here."""
        return self.kind.value(self.state, ())
