"""Replicas against the specification, while deltas are lost, repeated, overtaken, and lives end.

A replica that got every delta of what it knows of must read what the specification says. One that
missed some (the delta of an add, say, that a later add replaced) may lag behind until it joins with
another; so it is compared again then, and at the end all are.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from quorate.base.crdt_operations import Clear, KindTag, Operation, Remove
from quorate.crdt.codec import decode_delta, decode_state, encode_delta, encode_state
from quorate.crdt.dots import make_actor
from quorate.crdt.kind import Kind
from quorate.crdt.kinds import BoundedCounter, LWWRegister
from quorate.crdt.maps import place
from quorate.crdt.replica import MemoryReplica
from quorate.errors import CrdtError, NotObservedError
from tests import sharing
from tests.crdt.specification import Event, Known, Scope, effect, innermost, touched, value
from tests.crdt.support import ALL, REPLICAS, operations, resolved

SPECIFIED = [kind for kind in ALL if kind is not BoundedCounter]
INDEX = st.integers(0, REPLICAS - 1)


class Site:
    """A replica beside the model of what it knows. *direct*: what it got the deltas of."""

    def __init__(self, replica: MemoryReplica) -> None:
        self.replica = replica
        self.known: Known = {}
        self.direct: frozenset[tuple[Scope, Event]] = frozenset()

    def learn(self, event: Event) -> None:
        for scope, saw in event.saw.items():
            self.known[scope] = self.known.get(scope, frozenset()) | saw | {event}
        self.direct |= {(scope, event) for scope in event.saw}

    def complete(self) -> bool:
        return all(
            (scope, event) in self.direct for scope, each in self.known.items() for event in each
        )


class Machine(RuleBasedStateMachine):
    """Three members. What travels is bytes."""

    kind: type[Kind]

    def __init__(self) -> None:
        super().__init__()
        self.sites = [Site(MemoryReplica(self.kind, make_actor(n + 1, 1))) for n in range(REPLICAS)]
        self.sent: list[tuple[bytes, list[Event]]] = []
        self.tokens: list[tuple[bytes, Known]] = []
        self.backups: list[tuple[bytes, Known, Any]] = []
        self.lives = 1
        self.events = 0

    # --- what happens ---------------------------------------------------------------------------

    @rule(at=INDEX, data=st.data(), wall_ms=st.integers(0, 4))
    def operate(self, at: int, data: st.DataObject, wall_ms: int) -> None:
        site = self.sites[at]
        operation = data.draw(operations(self.kind, but=(BoundedCounter,)))
        self._carry_out(site, operation, wall_ms, site.known)

    @precondition(lambda self: self.tokens)
    @rule(at=INDEX, data=st.data())
    def remove_what_was_read(self, at: int, data: st.DataObject) -> None:
        token, known = data.draw(st.sampled_from(self.tokens))
        removal: Operation = Clear(token)
        if self.kind.name in {"ORSet", "ORMap"} and known:
            removal = Remove(data.draw(st.sampled_from(sorted(known, key=repr)))[0], token)
        self._carry_out(self.sites[at], removal, 0, known)

    def _carry_out(self, site: Site, operation: Operation, wall_ms: int, seen: Known) -> None:
        replica = site.replica
        operation = resolved(operation, replica.state)
        scopes = touched(self.kind.tag, operation, replica.actor, seen)
        saw = {scope: seen.get(scope, frozenset()) for scope in scopes}
        try:
            delta = replica.apply(operation, wall_ms=wall_ms)
        except NotObservedError:
            assert not site.complete() or seen is not site.known
            return
        except CrdtError:
            return
        order = (self._stamp(replica, operation), replica.actor)
        self.events += 1
        done = effect(self.kind.tag, operation)
        event = Event(self.events, replica.actor, done, order, saw)
        if isinstance(done, Remove) and not delta.elements:
            event = Event(self.events, replica.actor, None, order, saw)  # of nothing: no effect
        site.learn(event)
        self.sent.append((encode_delta(delta), [event]))
        self._agree(site)

    def _stamp(self, replica: MemoryReplica, operation: Operation) -> Any:
        _inner, keys = innermost(operation)
        prefix: tuple[bytes, ...] = ()
        for key, tag in zip(keys[::2], keys[1::2], strict=True):
            prefix = place(key, KINDS[tag], prefix)
        is_lww = (keys[-1] if keys else self.kind.tag) is KindTag.LWW_REGISTER
        return LWWRegister.stamp(replica.state, prefix) if is_lww else None

    @precondition(lambda self: self.sent)
    @rule(at=INDEX, data=st.data())
    def deliver(self, at: int, data: st.DataObject) -> None:
        """Any delta, at any time, as often as you like, or never."""
        encoded, events = data.draw(st.sampled_from(self.sent))
        site = self.sites[at]
        changed = site.replica.join(decode_delta(encoded))
        for event in events:
            site.learn(event)
        self._tidy(site, changed)
        self._agree(site)

    @rule(at=INDEX, source=INDEX)
    def join_whole(self, at: int, source: int) -> None:
        self._join(self.sites[at], self.sites[source])

    def _join(self, site: Site, source: Site) -> None:
        changed = site.replica.join(decode_state(encode_state(source.replica.state)))
        for scope, events in source.known.items():
            site.known[scope] = site.known.get(scope, frozenset()) | events
        site.direct |= source.direct
        self._tidy(site, changed)
        self._agree(site)

    def _tidy(self, site: Site, changed: list[Any]) -> None:
        """An owner drops the spent cells of its counters: no effect on any value."""
        before = site.replica.value()
        delta = site.replica.tidy(changed)
        assert site.replica.value() == before
        if delta is not None:
            self.events += 1
            scopes = [scope for scope in site.known if scope[-1] == site.replica.actor]
            saw = {scope: site.known[scope] for scope in scopes}
            event = Event(self.events, site.replica.actor, None, (), saw)
            site.learn(event)
            self.sent.append((encode_delta(delta), [event]))

    @rule(at=INDEX)
    def read(self, at: int) -> None:
        site = self.sites[at]
        if site.complete() and len(self.tokens) < 4:
            self.tokens.append((site.replica.observe(), dict(site.known)))

    @rule(at=INDEX)
    def restart(self, at: int) -> None:
        """The same data under a new life."""
        site = self.sites[at]
        site.replica = self._reborn(at, encode_state(site.replica.state))
        self._agree(site)

    @rule(at=INDEX)
    def back_up(self, at: int) -> None:
        site = self.sites[at]
        self.backups.append((encode_state(site.replica.state), dict(site.known), site.direct))

    @precondition(lambda self: self.backups)
    @rule(at=INDEX, data=st.data())
    def restore(self, at: int, data: st.DataObject) -> None:
        """The disk of some day before, of any member, under a new life."""
        encoded, known, direct = data.draw(st.sampled_from(self.backups))
        site = self.sites[at]
        site.replica = self._reborn(at, encoded)
        site.known, site.direct = dict(known), direct
        self._agree(site)

    def _reborn(self, at: int, encoded: bytes) -> MemoryReplica:
        self.lives += 1
        return MemoryReplica(self.kind, make_actor(at + 1, self.lives), decode_state(encoded))

    # --- what must hold -------------------------------------------------------------------------

    def _agree(self, site: Site) -> None:
        if site.complete():
            assert site.replica.value() == value(self.kind.tag, site.known)

    def teardown(self) -> None:
        """Everything arrives: all are equal, byte for byte, and as specified."""
        everything = Site(MemoryReplica(self.kind, make_actor(9, 9)))
        for encoded, events in self.sent:
            everything.replica.join(decode_delta(encoded))
            for event in events:
                everything.learn(event)
        assert everything.complete()
        for site in self.sites:
            self._join(site, everything)
        encoded = {encode_state(site.replica.state) for site in self.sites}
        if not self._tidied_apart():
            assert len(encoded) == 1

    def _tidied_apart(self) -> bool:
        """Whether joining everything made an owner tidy up, which others have not heard of."""
        return len({site.replica.state.context.count() for site in self.sites}) > 1


KINDS = {kind.tag: kind for kind in ALL}


@pytest.mark.parametrize(
    "examples", [sharing.examples(40), pytest.param(1_000, marks=pytest.mark.deep)]
)
@pytest.mark.parametrize("kind", SPECIFIED, ids=lambda kind: kind.name)
def test_replicas_read_what_the_specification_says(kind: type[Kind], examples: int) -> None:
    machine = type(f"{kind.name}Machine", (Machine,), {"kind": kind})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
