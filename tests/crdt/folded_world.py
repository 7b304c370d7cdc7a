"""Members that pass records on, restart, and fold their lives, beside the model of what they know.

What ``quorate.replication.converging`` does, without disks, frames and a log: records of a life go
in order, from whoever has them; a member joins one as a whole; what is too old for it comes with
the whole of another member.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from quorate.base.crdt_operations import KindTag, Operation, Remove
from quorate.crdt.bounded import passed_on
from quorate.crdt.codec import decode_delta, encode_delta, encode_state
from quorate.crdt.delta import Delta
from quorate.crdt.dots import Path, epoch_of, make_actor, member_of
from quorate.crdt.folding import (
    Fold,
    as_here,
    begin_fold,
    counters,
    gather_at,
    generation_of,
    is_preparing,
    is_whole,
    plan,
    takes,
)
from quorate.crdt.kind import KINDS, Kind, Moment
from quorate.crdt.kinds import BoundedCounter, LWWRegister
from quorate.crdt.maps import place
from quorate.crdt.replica import MemoryReplica
from quorate.errors import NotObservedError, QuorateError
from tests.crdt.specification import Event, Known, Scope, effect, innermost, touched, value
from tests.crdt.support import resolved

Frontier = dict[int, int]


class Record(NamedTuple):
    stamp: int
    delta: bytes
    events: tuple[Event, ...]


def join_frontiers(*frontiers: Frontier) -> Frontier:
    joined: Frontier = {}
    for frontier in frontiers:
        for actor, sequence in frontier.items():
            joined[actor] = max(joined.get(actor, 0), sequence)
    return joined


def covers(one: Frontier, other: Frontier) -> bool:
    return all(one.get(actor, 0) >= sequence for actor, sequence in other.items())


class Site:
    """One member: its replica, what it has of the records, and the model of what it knows."""

    def __init__(self, world: FoldedWorld, member: int) -> None:
        self.world = world
        self.replica = MemoryReplica(world.kind, make_actor(member, 1))
        self.frontier: Frontier = {}
        self.stage = 0
        self.to_gather: dict[Path, type[Kind]] = {}
        self.known: Known = {}
        self.direct: frozenset[tuple[Scope, Event]] = frozenset()

    def retired(self, actor: int) -> bool:
        return epoch_of(actor) <= self.replica.state.retired.get(member_of(actor), 0)

    # --- records --------------------------------------------------------------------------------

    def record(self, delta: Delta, *events: Event) -> None:
        actor = self.replica.actor
        self.frontier[actor] = self.frontier.get(actor, 0) + 1
        made = Record(self.stage, encode_delta(delta), events)
        self.world.records[actor, self.frontier[actor]] = made
        for event in events:
            self.learn(event)

    def lacking(self, source: Site) -> list[int]:
        return [
            actor
            for actor, sequence in sorted(source.frontier.items())
            if sequence > self.frontier.get(actor, 0) and not self.retired(actor)
        ]

    def deliver(self, actor: int) -> bool:
        """The next record of *actor*, whoever passes it on; False: it is too old for this site."""
        sequence = self.frontier.get(actor, 0) + 1
        record = self.world.records[actor, sequence]
        if not takes(self.stage, record.stamp):
            return False
        state = self.replica.state
        delta = as_here(decode_delta(record.delta), record.stamp, state, self.stage, self.retired)
        changed = self.replica.join(delta)
        self.frontier[actor] = sequence
        for event in record.events:
            self.learn(event)
        self.tidy(changed)
        self.agree()
        return True

    def pull(self, source: Site) -> bool:
        """Everything that *source* has, element by element."""
        if generation_of(self.stage) != generation_of(source.stage):
            return False
        if not (is_whole(self.stage) and is_whole(source.stage)):
            return False
        changed = self.replica.join(source.replica.state)
        self.frontier = join_frontiers(self.frontier, source.frontier)
        for scope, events in source.known.items():
            self.known[scope] = self.known.get(scope, frozenset()) | events
        self.direct |= source.direct
        self.tidy(changed)
        self.agree()
        return True

    def restart(self) -> None:
        """The same data, another life."""
        member = member_of(self.replica.actor)
        epoch = epoch_of(self.replica.actor) + 1
        state = self.replica.state
        self.replica = MemoryReplica(self.world.kind, make_actor(member, epoch), state)

    def tidy(self, changed: list[Path]) -> None:
        delta = self.replica.tidy(changed)
        if delta is not None:
            actor = self.replica.actor
            scopes = [scope for scope in self.known if scope[-1] == actor]
            saw = {scope: self.known[scope] for scope in scopes}
            self.record(delta, self.world.event(actor, None, (), saw))

    # --- folding --------------------------------------------------------------------------------

    def step(self) -> bool:
        """One step of folding that this member can take by itself; False if there is none."""
        world = self.world
        if self.to_gather:
            prefix, owner = self.to_gather.popitem()
            assert world.fold is not None
            before = self.replica.value()
            gather_at(self.replica.state, prefix, owner, world.fold)
            assert self.replica.value() == before
            if not self.to_gather:
                self.stage += 1
            return True
        if not is_whole(self.stage):
            self.stage += 1
            return True
        generation = generation_of(self.stage)
        if not is_preparing(self.stage):
            ready = world.preparing and covers(self.frontier, world.preparing)
            if ready and world.generation == generation:
                self.stage += 1
                self.replica.state.finishing = frozenset(world.preparing)
                return True
            return False
        if world.fold is not None and world.fold.generation == generation + 1:
            self._begin_fold(world.fold)
            return True
        return False

    def _begin_fold(self, fold: Fold) -> None:
        before = self.replica.value()
        state = self.replica.state = begin_fold(self.replica.state, fold)
        assert self.replica.value() == before
        self.stage += 1
        self.frontier = {a: s for a, s in self.frontier.items() if not self.retired(a)}
        self.to_gather = counters(self.world.kind, state.scan(()))
        self._pass_on(fold)

    def _pass_on(self, fold: Fold) -> None:
        for path, _leaf in list(self.replica.state.scan(())):
            owner, _depth = self.world.kind.locate(path)
            if owner is BoundedCounter:
                replica = self.replica
                at = Moment(replica.actor, replica.counter + 1)
                delta = passed_on(replica.kind, replica.state, path, at, fold.heir_of)
                if delta is not None:
                    replica.counter += 1
                    replica.state.join(delta)
                    self.record(delta)

    # --- the model ------------------------------------------------------------------------------

    def learn(self, event: Event) -> None:
        for scope, saw in event.saw.items():
            self.known[scope] = self.known.get(scope, frozenset()) | saw | {event}
        self.direct |= {(scope, event) for scope in event.saw}

    def complete(self) -> bool:
        return all(
            (scope, event) in self.direct for scope, each in self.known.items() for event in each
        )

    def agree(self) -> None:
        if self.world.specified and self.complete():
            assert self.replica.value() == value(self.world.kind.tag, self.known)


class FoldedWorld:
    """Three members, the records that ever were, and what a log would say of lives."""

    def __init__(self, kind: type[Kind], *, specified: bool = True) -> None:
        self.kind = kind
        self.specified = specified
        self.records: dict[tuple[int, int], Record] = {}
        self.generation = 0
        self.preparing: Frontier = {}
        self.settled: Frontier = {}
        self.fold: Fold | None = None
        self.event_count = 0
        self.sites = [Site(self, member) for member in (1, 2, 3)]

    def event(self, actor: int, done: Any, order: Any, saw: Any) -> Event:
        self.event_count += 1
        return Event(self.event_count, actor, done, order, saw)

    # --- operations -----------------------------------------------------------------------------

    def operate(self, site: Site, operation: Operation, seen: Known | None = None) -> bool:
        """Carry *operation* out at *site*, which removes what *seen* knows. False: refused."""
        replica = site.replica
        seen = site.known if seen is None else seen
        operation = resolved(operation, replica.state)
        scopes = touched(self.kind.tag, operation, replica.actor, seen)
        saw = {scope: seen.get(scope, frozenset()) for scope in scopes}
        try:
            delta = replica.apply(operation, wall_ms=self.event_count % 3)
        except NotObservedError:
            assert seen is not site.known
            return False
        except QuorateError:
            return False
        order = (self._stamp(replica, operation), replica.actor)
        done: Any = effect(self.kind.tag, operation)
        if isinstance(done, Remove) and not delta.elements:
            done = None  # of nothing: no effect
        site.record(delta, self.event(replica.actor, done, order, saw))
        site.agree()
        return True

    def _stamp(self, replica: MemoryReplica, operation: Operation) -> Any:
        _inner, keys = innermost(operation)
        prefix: tuple[bytes, ...] = ()
        for key, tag in zip(keys[::2], keys[1::2], strict=True):
            prefix = place(key, KINDS[tag], prefix)
        is_lww = (keys[-1] if keys else self.kind.tag) is KindTag.LWW_REGISTER
        return LWWRegister.stamp(replica.state, prefix) if is_lww else None

    # --- what a leader does ---------------------------------------------------------------------

    def closed(self) -> list[int]:
        """Lives that are over and not folded."""
        open_lives = {site.replica.actor for site in self.sites}
        some = self.sites[0]
        known = {make_actor(m, e) for m, e in self._lives()}
        return sorted(a for a in known if a not in open_lives and not some.retired(a))

    def _lives(self) -> list[tuple[int, int]]:
        return [
            (member_of(site.replica.actor), epoch)
            for site in self.sites
            for epoch in range(1, epoch_of(site.replica.actor) + 1)
        ]

    def lead(self) -> bool:
        """Propose what can be; False if nothing can."""
        everyone = [site.frontier for site in self.sites]
        stages = {site.stage for site in self.sites}
        if not self.preparing:
            closed = self.closed()
            if not closed or stages != {3 * self.generation}:
                return False
            most = join_frontiers(*everyone)
            self.preparing = {actor: most.get(actor, 0) for actor in closed}
            return True
        if stages != {3 * self.generation + 1}:
            return False
        if not self.settled:
            self.settled = join_frontiers(*everyone) or {0: 0}
            return True
        if not all(covers(each, self.settled) for each in everyone):
            return False
        heirs = {member_of(site.replica.actor): site.replica.actor for site in self.sites}
        chosen = {actor: heirs[member_of(actor)] for actor in self.preparing}
        self.generation += 1
        self.fold = plan(self.generation, chosen)
        self.preparing, self.settled = {}, {}
        return True

    # --- all of it ------------------------------------------------------------------------------

    def hear_all(self) -> None:
        """Every record to everybody, or, where one is too old, the whole of who has it."""
        moved = True
        while moved:
            moved = False
            for site in self.sites:
                for source in self.sites:
                    for actor in site.lacking(source):
                        if site.lacking(source) and (site.deliver(actor) or site.pull(source)):
                            moved = True

    def settle_down(self) -> None:
        """Everything arrives, and all folding is done that can be."""
        moved = True
        while moved:
            self.hear_all()
            moved = self.lead()
            for site in self.sites:
                while site.step():
                    moved = True

    def check_equal(self) -> None:
        first, *others = self.sites
        for site in others:
            assert site.frontier == first.frontier
            assert site.stage == first.stage
            assert site.replica.state == first.replica.state
            assert encode_state(site.replica.state) == encode_state(first.replica.state)
            assert site.replica.state.retired == first.replica.state.retired
