"""Which timers of quorate itself come again and again, and so say nothing of whether anything
happens: see ``loop``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from quorate.client.claims import Desks
from quorate.client.connection import Connection
from quorate.client.leases import Keeper, Lease
from quorate.client.task_pulse import Beats
from quorate.client.turns import Turns
from quorate.replication.converging.service import Converging
from quorate.replication.replica import Replica
from quorate.server.node import Node
from quorate.server.ticking import Ticker
from quorate.testing.loop import Sort

#: What a node does again and again: it finds something to do only if something happened, or if
#: something is due, at which the clock stops (``World``).
_CHORES: Final[tuple[Any, ...]] = (
    Replica._tick,  # noqa: SLF001
    Converging._tick,  # noqa: SLF001
    Node._guard,  # noqa: SLF001
    Ticker.run,
)
#: What a handle does as long as it has something: deadlines, renewals, heartbeats.
_UPKEEP: Final[tuple[Any, ...]] = (
    Connection.run,
    Turns._on_timer,  # noqa: SLF001
    Keeper._keep,  # noqa: SLF001
    Lease._look,  # noqa: SLF001
    Desks._sweep,  # noqa: SLF001
    Beats._beat,  # noqa: SLF001
)


def timer_sorts() -> Mapping[Any, Sort]:
    """By code."""
    found: dict[Any, Sort] = {each.__code__: "chore" for each in _CHORES}
    found.update((each.__code__, "upkeep") for each in _UPKEEP)
    return found
