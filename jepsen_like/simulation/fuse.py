"""A machine whose command always raises, after it has changed something.

Users' machines have bugs. One that raises must come to an error for its caller, the same on every
replica, with its changes undone, and must stop nobody.
"""

from __future__ import annotations

from typing import ClassVar

import msgspec

from quorate.client.database import Database
from quorate.errors import MachineError
from quorate.replication.machine import Context, Machine
from quorate.replication.tables import Table, Tables


class Blow(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """Write a record, then raise."""

    key: bytes


class Count(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """How many records are there?"""


class Counted(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """So many."""

    count: int


class Record(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Should never be seen."""

    index: int


class Fuse(Machine):
    """Version history: 1, first release."""

    name = "fuse"
    version = 1
    command_type: ClassVar[type] = Blow
    query_type: ClassVar[type] = Count

    _records: Table[Record]

    def attach(self, tables: Tables) -> None:
        """See ``Machine``."""
        self._records = tables.table("fuse.records", Record)

    def apply(self, command: Blow, context: Context) -> Counted:
        """See ``Blow``."""
        self._records.put(command.key, Record(context.index))
        raise RuntimeError("the fuse has blown")

    def query(self, query: Count) -> Counted:  # noqa: ARG002
        """See ``Count``."""
        return Counted(len(self._records))


async def blow(database: Database) -> str:
    """Have it raise; what is wrong with what came of it, "" if nothing is.

    Raises:
        QuorateError: the cluster did not answer.
    """
    fuse = database.machine(Fuse.name, Counted)
    try:
        await fuse.execute(Blow(b"spark"))
    except MachineError:
        left = (await fuse.query(Count())).count
        return f"{left} records of a command that raised are left" if left else ""
    return "a command that raises has a result"
