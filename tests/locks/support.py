"""A node with the lock machines, and what tests ask of it."""

from __future__ import annotations

from typing import Any

import msgspec

from quorate.base.barrier_commands import BARRIER_MACHINE, BarrierResult
from quorate.base.lease_commands import GrantLease, LeaseResult, RenewLeases, RevokeLease
from quorate.base.lock_commands import LOCK_MACHINE, Acquire, LockResult, Release
from quorate.base.results import Failure
from quorate.locks.barriers import BarrierMachine
from quorate.locks.machine import LockMachine
from quorate.replication.kv import KvMachine
from quorate.replication.machine import Machine
from quorate.replication.machines import Applied
from quorate.storage.memory_store import MemoryImage
from tests.replication.support import Node, restored, run_of, state_of, store_checkpoint, submit

RESULTS: dict[str, Any] = {
    "leases": msgspec.msgpack.Decoder(list[list[LeaseResult]]),
    LOCK_MACHINE: msgspec.msgpack.Decoder(list[list[LockResult]]),
    BARRIER_MACHINE: msgspec.msgpack.Decoder(list[list[BarrierResult]]),
}


def machines() -> list[Machine]:
    return [KvMachine(), LockMachine(), BarrierMachine()]


class LockNode(Node):
    """A log in a list; *told*: the events of the latest entry, by key."""

    def __init__(self) -> None:
        super().__init__(machines())
        self.told: list[tuple[bytes | None, Any]] = []
        self.image = MemoryImage()

    def run(self, machine: str, *commands: Any, time_ms: int | None = None) -> list[Any]:
        applied: Applied = self.entry(submit(run_of(machine, *commands)), time_ms=time_ms)
        self.told = [(key, event) for name, key, event in applied.effects if name != "leases"]
        (outcome,) = applied.outcomes
        assert not outcome.code, outcome
        results: list[list[Any]] = RESULTS[machine].decode(outcome.results)
        return results[0]

    def one(self, machine: str, command: Any, time_ms: int | None = None) -> Any:
        (result,) = self.run(machine, command, time_ms=time_ms)
        return result

    def lease(self, ttl_ms: int = 60_000, time_ms: int | None = None) -> int:
        granted = self.one("leases", GrantLease(ttl_ms), time_ms)
        assert not isinstance(granted, Failure), granted
        lease: int = granted.lease
        return lease

    def renew(self, *leases: int, time_ms: int | None = None) -> Any:
        return self.one("leases", RenewLeases(leases), time_ms)

    def revoke(self, lease: int, time_ms: int | None = None) -> Any:
        return self.one("leases", RevokeLease(lease), time_ms)

    def acquire(
        self,
        name: bytes,
        lease: int,
        owner: int = 1,
        *,
        kind: Any = "lock",
        total: int = 1,
        permits: int = 1,
        wait: bool = True,
        value: bytes = b"",
        time_ms: int | None = None,
    ) -> Any:
        command = Acquire(name, kind, total, permits, lease, owner, wait, value)
        return self.one(LOCK_MACHINE, command, time_ms)

    def release(self, name: bytes, lease: int, owner: int = 1, *, withdraw: bool = False) -> Any:
        return self.one(LOCK_MACHINE, Release(name, lease, owner, withdraw))

    def ask_of(self, machine: str, query: Any) -> Any:
        raw = self.machines.query(machine, msgspec.msgpack.encode([query]))
        (result,) = RESULTS[machine].decode(b"\x91" + raw)[0]
        return result

    def restart(self) -> None:
        """From a checkpoint, as after a crash, or on a node that got a snapshot."""
        store_checkpoint(self.image, self.machines.take_checkpoint(b""))
        before = state_of(self.machines)
        self.machines = restored(self.image, machines())
        assert state_of(self.machines) == before

    def left_over(self) -> dict[str, int]:
        """Records of the lock machines, by table; without the counters."""
        return {
            table.name: len(table)
            for table in self.machines.tables
            if table.name.startswith(("locks.", "barriers.")) and not table.name.endswith(".last")
            if len(table)
        }
