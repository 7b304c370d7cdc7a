"""The machine that remembers which data directory stood behind each number that was ever used.

While a member is one, its incarnation stands in the configuration itself, which is in force from
the moment it is in a node's log (``consensus.membership``): a machine's state is behind that by
whatever was not applied yet. A pin outlives the member: a number is never used twice.
"""

from __future__ import annotations

from typing import ClassVar

import msgspec

from quorate.base.limits import INCARNATION_LENGTH_MAX
from quorate.errors import CommandError
from quorate.replication.machine import Context, Machine
from quorate.replication.tables import Table, Tables

PINS_MAX = 10_000  # numbers ever used by a cluster


class Pin(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """Member *node* keeps its data under *incarnation*, from now on for ever."""

    node: int
    incarnation: str


class Pinned(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """The incarnation in force, which is an earlier one if *node* was pinned before."""

    incarnation: str


class PinRecord(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One row: what stands behind a number."""

    incarnation: str


class ClusterMachine(Machine):
    """Version history: 1, first release."""

    name: ClassVar[str] = "cluster"
    command_type = Pin

    def attach(self, tables: Tables) -> None:
        """One table: number, eight bytes big-endian, to ``PinRecord``."""
        self._pins: Table[PinRecord] = tables.table("cluster.pins", PinRecord)

    def apply(self, command: Pin, context: Context) -> Pinned:  # noqa: ARG002
        """Pin, unless the number has a pin already."""
        if not 0 < command.node < 2**31 or not (
            0 < len(command.incarnation) <= INCARNATION_LENGTH_MAX
        ):
            raise CommandError("a pin names a member and an incarnation")
        key = _key(command.node)
        known = self._pins.get(key)
        if known is not None:
            return Pinned(known.incarnation)
        if len(self._pins) >= PINS_MAX:
            raise CommandError(f"a cluster uses at most {PINS_MAX} numbers")
        self._pins.put(key, PinRecord(command.incarnation))
        return Pinned(command.incarnation)

    def incarnation(self, node: int) -> str:
        """What is pinned for *node*, "" if nothing is."""
        known = self._pins.get(_key(node))
        return "" if known is None else known.incarnation


def _key(node: int) -> bytes:
    return node.to_bytes(8, "big")
