"""Whatever clients do and whenever they die: the machines against plain lists."""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from quorate.base.fencing import Fence
from quorate.base.kv_commands import Put
from quorate.base.lock_commands import (
    Acquire,
    Acquired,
    Granted,
    LockQuery,
    NotAcquired,
    Release,
    Released,
    Waiting,
)
from quorate.base.results import Failure
from tests import sharing
from tests.locks.support import LockNode
from tests.replication.support import run_of, state_of, submit

KINDS = {b"l": ("lock", 1), b"r": ("rwlock", 50), b"s": ("semaphore", 3), b"e": ("election", 1)}
LEASES = 3
TTL_MS = 1000

names = st.sampled_from(sorted(KINDS))
owners = st.integers(1, 3)
waits = st.integers(0, 400)


class Line:
    """A name as anybody would write it down: (token, lease, owner, permits), and who waits."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.holders: list[tuple[int, int, int, int]] = []
        self.waiters: list[tuple[int, int, int]] = []

    @property
    def free(self) -> int:
        return self.total - sum(permits for *_, permits in self.holders)

    def has(self, lease: int, owner: int) -> bool:
        held = [(lease_, owner_) for _, lease_, owner_, _ in self.holders]
        waiting = [(lease_, owner_) for lease_, owner_, _ in self.waiters]
        return (lease, owner) in held + waiting

    def drop(self, lease: int, owner: int | None = None) -> None:
        self.holders = [
            each
            for each in self.holders
            if each[1] != lease or (owner is not None and each[2] != owner)
        ]
        self.waiters = [
            each
            for each in self.waiters
            if each[0] != lease or (owner is not None and each[1] != owner)
        ]


class LocksAgainstAModel(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.node = LockNode()
        self.lines = {name: Line(total) for name, (_, total) in KINDS.items()}
        self.leases: list[int] = []
        self.ends: dict[int, int] = {}
        self.token = 0
        self.seen: set[tuple[bytes, int]] = set()
        for _ in range(LEASES):
            self._new_lease()

    # --- the model ------------------------------------------------------------------------------

    def _new_lease(self) -> None:
        lease = self.node.lease(TTL_MS)
        self.leases.append(lease)
        self.ends[lease] = self.node.time_ms + TTL_MS

    def _pass(self, ms: int) -> list[tuple[bytes, int, int]]:
        """Time goes on: who is granted something because others' leases end."""
        self.node.time_ms += ms
        granted = []
        due = sorted((end, lease) for lease, end in self.ends.items() if end <= self.node.time_ms)
        for _, lease in due:
            granted += self._end(lease)
        return granted

    def _end(self, lease: int) -> list[tuple[bytes, int, int]]:
        del self.ends[lease]
        touched = [
            name
            for name, line in sorted(self.lines.items())
            if any(each[1] == lease for each in line.holders)
            or any(each[0] == lease for each in line.waiters)
        ]
        for name in touched:
            self.lines[name].drop(lease)
        return [each for name in touched for each in self._serve(name)]

    def _serve(self, name: bytes) -> list[tuple[bytes, int, int]]:
        line = self.lines[name]
        granted = []
        while line.waiters:
            lease, owner, permits = line.waiters[0]
            if lease in self.ends and self.ends[lease] <= self.node.time_ms:
                line.waiters.pop(0)
                continue
            if permits > line.free:
                break
            line.waiters.pop(0)
            line.holders.append((0, lease, owner, permits))
            granted.append((name, lease, owner))
        return granted

    def _check_grants(self, expected: list[tuple[bytes, int, int]]) -> None:
        """Exactly these hear of it, each once, in order, under tokens that grow."""
        told = []
        for key, event in self.node.told:
            if isinstance(event, Granted):
                lease = int.from_bytes((key or b"")[1:], "big")
                told.append((event.name, lease, event.owner))
                self._take_token(event.name, lease, event.owner, event.token)
        assert told == expected

    def _take_token(self, name: bytes, lease: int, owner: int, token: int) -> None:
        assert token > self.token
        self.token = token
        self.seen.add((name, token))
        line = self.lines[name]
        line.holders = [
            (token, *each[1:]) if each[:3] == (0, lease, owner) else each for each in line.holders
        ]

    # --- what may happen ------------------------------------------------------------------------

    @rule(
        name=names, at=st.integers(0, LEASES - 1), owner=owners, wait=st.booleans(),
        wide=st.booleans(), ms=waits,
    )  # fmt: skip
    def acquire(self, name: bytes, at: int, owner: int, *, wait: bool, wide: bool, ms: int) -> None:
        granted = self._pass(ms)
        kind, total = KINDS[name]
        permits = total if wide else 1
        lease, line = self.leases[at], self.lines[name]
        command = Acquire(name, kind, total, permits, lease, owner, wait)  # type: ignore[arg-type]
        result = self.node.one("locks", command)
        self._check_grants(granted)
        if lease not in self.ends:
            assert isinstance(result, Failure)
            assert result.code == "lease-expired"
        elif line.has(lease, owner):
            assert isinstance(result, Failure)
            assert result.code == "already-held"
        elif not line.waiters and permits <= line.free:
            assert isinstance(result, Acquired)
            line.holders.append((0, lease, owner, permits))
            self._take_token(name, lease, owner, result.token)
        elif wait:
            assert isinstance(result, Waiting)
            assert result.ahead == len(line.waiters)
            assert result.ticket > self.token
            self.token = result.ticket
            line.waiters.append((lease, owner, permits))
        else:
            assert isinstance(result, NotAcquired)
            assert result.waiting == len(line.waiters)

    @rule(name=names, at=st.integers(0, LEASES - 1), owner=owners, ms=waits)
    def release(self, name: bytes, at: int, owner: int, ms: int) -> None:
        granted = self._pass(ms)
        lease, line = self.leases[at], self.lines[name]
        result = self.node.release(name, lease, owner)
        if not line.has(lease, owner):
            assert isinstance(result, Failure)
            assert result.code == "not-held"
        else:
            held = [each[0] for each in line.holders if each[1:3] == (lease, owner)]
            assert isinstance(result, Released)
            if held != [0]:  # granted in this very entry: its token shows below
                assert result.token == (held[0] if held else 0)
            line.drop(lease, owner)
            granted += self._serve(name)
        self._check_grants(granted)

    @rule(at=st.integers(0, LEASES - 1), ms=waits)
    def renew(self, at: int, ms: int) -> None:
        granted = self._pass(ms)
        lease = self.leases[at]
        self.node.renew(lease)
        self._check_grants(granted)
        if lease in self.ends:
            self.ends[lease] = self.node.time_ms + TTL_MS

    @rule(at=st.integers(0, LEASES - 1))
    def die_and_come_again(self, at: int) -> None:
        lease = self.leases[at]
        granted = self._end(lease) if lease in self.ends else []
        self.node.revoke(lease)
        self._check_grants(granted)
        self.leases[at] = self.node.lease(TTL_MS)
        self.ends[self.leases[at]] = self.node.time_ms + TTL_MS

    @rule()
    def restart(self) -> None:
        self.node.restart()

    @rule(name=names, at=st.integers(0, LEASES - 1))
    def fail_half_way(self, name: bytes, at: int) -> None:
        """A machine that breaks in the middle of a command leaves nothing of it behind."""
        machine: Any = self.node.machines.machine("locks")
        before = state_of(self.node.machines)
        real = machine._pass_on
        machine._pass_on = machine._grant = _break
        try:
            kind, total = KINDS[name]
            commands: list[Any] = [Release(name, self.leases[at], owner) for owner in (1, 2, 3)]
            which: Any = kind
            commands.append(Acquire(name, which, total, 1, self.leases[at], 9, wait=False))
            runs = [run_of("locks", each) for each in commands]
            applied = self.node.entry(submit(*runs))
        finally:
            del machine._pass_on, machine._grant
        assert real.__func__ is type(machine)._pass_on
        assert state_of(self.node.machines) == before
        assert applied.effects == []

    # --- what always holds ----------------------------------------------------------------------

    @invariant()
    def as_the_model_says(self) -> None:
        machine = self.node.machines.machine("locks")
        for name, line in self.lines.items():
            info = self.node.ask_of("locks", LockQuery(name))
            holders = sorted(line.holders)
            shown = [(each.token, each.lease, each.owner, each.permits) for each in info.holders]
            assert shown == holders
            assert sum(each.permits for each in info.holders) <= line.total
            assert [(each.lease, each.owner, each.permits) for each in info.waiters] == line.waiters
            held = {each[0] for each in line.holders}
            for seen_name, token in self.seen:
                if seen_name == name:
                    assert machine.holds(Fence("locks", name, token)) is (token in held)
        bound = sum(len(line.holders) + len(line.waiters) for line in self.lines.values())
        assert self.node.left_over().get("locks.bound", 0) == bound


def _break(*_arguments: object) -> Any:
    raise RuntimeError("broken on purpose")


TestLocksAgainstAModel = LocksAgainstAModel.TestCase
TestLocksAgainstAModel.settings = settings(
    max_examples=sharing.examples(40), stateful_step_count=30, deadline=None
)


def test_a_follower_that_decodes_comes_to_the_same_state() -> None:
    """Results, events and hashes are equal on the leader and on one that reads the log."""
    leader, follower = LockNode(), LockNode()
    lease = leader.lease()
    follower.feed(leader.log[0])
    for owner in range(1, 6):
        runs = [
            run_of("locks", Acquire(b"x", "lock", 1, 1, lease, owner)),
            run_of("kv", Put(b"k", b"")),
        ]
        told = leader.entry(submit(*runs), leader=True)
        heard = follower.feed(leader.log[-1])
        assert msgspec.msgpack.encode(told.outcomes) == msgspec.msgpack.encode(heard.outcomes)
        mine = [each for each in told.effects if each[0] == "locks"]
        assert mine == [each for each in heard.effects if each[0] == "locks"]
    assert leader.machines.state_hash == follower.machines.state_hash
