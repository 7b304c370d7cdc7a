"""Bugs of converging data: of its types, its records, what is confirmed, and what is taken over."""

from __future__ import annotations

from typing import Any, Final

from jepsen_like.mutants.mutant import Mutant, one
from jepsen_like.mutants.profiles import Profile

_ROOM: Final = "quorate.replication.converging"
_ENGINE: Final = f"{_ROOM}.engine:Engine"
_LIVING: Final = f"{_ROOM}.living:Living"
_COMMIT: Final = f"{_ROOM}.committing:Commit"
_SPREAD: Final = f"{_ROOM}.disseminating:Disseminating"
_LEVELS: Final = f"{_ROOM}.levels:Levels"
_PULL: Final = f"{_ROOM}.pulling:Pull"
_TYPES: Final = "quorate.crdt"

_SETTINGS: Final[dict[str, Any]] = {
    "voters": 3,
    "learners": 0,
    "lease_reads": False,
    "clock_rates": (),
    "clients": 5,
    "think_ms": 20.0,
    "network_delay_ms": 5.0,
    "operations_max": 400,
    "seconds": 6.0,
    "workloads": {"crdt": 1.0},
}


def _profile(name: str, mix: dict[str, float], rate: float, **settings: Any) -> Profile:  # noqa: ANN401
    return Profile(name=name, settings={**_SETTINGS, **settings}, mix=mix, rate=rate)


#: Nodes that are cut off for long, and write meanwhile.
APART: Final = _profile("apart", {"cut-off": 2.0, "halves": 1.0}, 2.0)
#: Some links between nodes are cut, and others are not: records come by other ways.
ROUNDABOUT: Final = _profile(
    "roundabout", {"bridge": 2.0, "majorities-ring": 2.0, "delay": 1.0}, 3.0, voters=5, clients=8
)
#: The same with counters alone, by more clients; and with sets alone.
COUNTS_APART: Final = _profile(
    "counts-apart",
    {"cut-off": 2.0, "halves": 1.0},
    2.0,
    workloads={"crdt-counter": 1.0},
    clients=8,
)
ELEMENTS_APART: Final = _profile(
    "elements-apart", {"cut-off": 2.0, "halves": 1.0}, 2.0, workloads={"crdt-set": 1.0}
)
#: Small clusters whose members are replaced again and again, and restart all at once.
HANDED_ON: Final = _profile(
    "handed-on",
    {"replace": 3.0, "remove": 1.0, "add": 1.0, "promote": 1.0, "transfer": 1.0, "crash-all": 1.0},
    3.0,
    workloads={"crdt-counter": 1.0},
    voters=1,
    seconds=9.0,
    fold_quiet_s=0.1,
)
#: The same with maps alone, whose keys come and go.
KEYS_APART: Final = _profile(
    "keys-apart", {"cut-off": 2.0, "halves": 1.0}, 2.0, workloads={"crdt-map": 1.0}
)
#: Nodes that lose power, all at once or cut off.
POWERLESS: Final = _profile(
    "powerless",
    {"cut-off": 2.0, "crash-one": 2.0, "crash-all": 1.0},
    4.0,
    disk_delay_ms=15.0,
    clients=8,
)
#: Frames of peers are lost, repeated and swapped.
GARBLED: Final = _profile("garbled", {"replay": 3.0, "cut-off": 1.0, "reset": 1.0}, 3.0)
#: Data of one node is lost, or set back to what it was.
FORGETTING: Final = _profile(
    "forgetting", {"elements-back": 3.0, "elements-lost": 2.0, "cut-off": 1.0}, 2.0
)
#: The same, and records are kept so shortly that others cannot send them again.
REPAIRED: Final = _profile(
    "repaired",
    {"elements-back": 2.0, "elements-lost": 2.0, "cut-off": 3.0},
    2.0,
    journal_bytes=300,
    range_elements=3,
)
#: Answers to clients get lost with their connections.
UNANSWERED: Final = _profile(
    "unanswered", {"crash-one": 2.0, "pause-one": 2.0, "reset": 2.0, "restart-storm": 1.0}, 4.0
)

MUTANTS = (
    Mutant(
        name="actor-used-again",
        bug="a restart goes on as the actor of before, and counts its dots from the beginning",
        source="delta_crdt: node ids; Riak: vnode ids",
        rewrites=one(
            f"{_LIVING}._live",
            "epoch = await self._begin()",
            "epoch = epoch_of(self._mine()[-1]) if self._mine() else await self._begin()",
        ),
        profile=POWERLESS,
    ),
    Mutant(
        name="life-goes-on",
        bug="a restart goes on as the actor that its disk names, with the count that stands there",
        source="Riak: vnode ids after the restore of a backup",
        rewrites=one(
            f"{_ENGINE}.__init__",
            "self.own = msgspec.structs.replace(self.own, actor=0)",
            "self.own = msgspec.structs.replace(self.own)",
        )
        + one(
            f"{_LIVING}._live",
            "elif await self._adopt(epoch_of(engine.own.actor)):",
            "elif await self._adopt(epoch_of(engine.own.actor)) or True:",
        ),
        profile=FORGETTING,
    ),
    Mutant(
        name="dots-given-twice",
        bug="the counter of dots is not written with what they were given for",
        source="Almeida, Shoker and Baquero 2018, 4; delta_crdt 65",
        rewrites=one(f"{_COMMIT}.finish", "counter=self._counter,", "counter=self._own.counter,"),
        profile=APART,
    ),
    Mutant(
        name="acknowledged-before-durable",
        bug="updates are acknowledged before they are on the disk",
        source="Akka Distributed Data: write-behind-interval",
        rewrites=one(
            f"{_ENGINE}._write",
            "        self._runner.run(lambda: self.store.write(changes), written)",
            "        before, self.frontier = self.frontier, commit.frontier\n"
            "        for waiting, outcome in done:\n"
            "            self._answer(waiting, outcome)\n"
            "        self.frontier = before\n"
            "        self._runner.run(lambda: self.store.write(changes), written)",
        ),
        profile=POWERLESS,
    ),
    Mutant(
        name="confirms-what-it-drops",
        bug="a member confirms a record that it drops, because one before it is missing",
        source="Riak: hinted handoff counts towards a quorum that is not one",
        rewrites=one(
            f"{_SPREAD}.on_record",
            "            self._tell_of_gap(frame.sender)\n",
            "            self.joined({(frame.sender, actor): frame.sequence})\n",
        ),
        profile=GARBLED,
    ),
    Mutant(
        name="gap-accepted",
        bug="a record is joined although one before it is missing",
        source="delta_crdt, horde 90: lost first delta",
        rewrites=one(f"{_SPREAD}.on_record", "elif frame.sequence == expected:", "else:")
        + one(f"{_SPREAD}.on_record", "if frame.sequence > expected:", "if frame.sequence < 0:")
        + one(
            f"{_COMMIT}.join",
            "if arrived.sequence != self.frontier.get(arrived.actor, 0) + 1:",
            "if arrived.sequence <= self.frontier.get(arrived.actor, 0):",
        ),
        profile=GARBLED,
    ),
    Mutant(
        name="joined-without-its-causes",
        bug="a record is joined where what its author had seen is missing",
        source="Antidote: causal delivery",
        rewrites=one(f"{_COMMIT}.covers", "return all(", "return True or all("),
        profile=ROUNDABOUT,
    ),
    Mutant(
        name="sent-is-confirmed",
        bug="what was sent to a member counts as confirmed by it, and is never sent again",
        source="Horde: lost processes on handover",
        rewrites=one(
            f"{_SPREAD}._push",
            "        peer.sent[frame.actor] = frame.sequence\n",
            "        peer.sent[frame.actor] = peer.known[frame.actor] = frame.sequence\n",
        ),
        profile=GARBLED,
    ),
    Mutant(
        name="retry-counts-again",
        bug="a frame that a client sends again is carried out again",
        source="Redis CRDB: INCR after a timeout",
        rewrites=one(
            f"{_ENGINE}.write",
            "known = row.done.get(frame.sequence)",
            "known = row.done.get(-frame.sequence)",
        ),
        profile=UNANSWERED,
    ),
    Mutant(
        name="quorum-of-one",
        bug="a write is acknowledged at quorum when it is durable here",
        source="Cassandra: ANY; Akka: WriteLocal in place of WriteMajority",
        rewrites=one(
            f"{_LEVELS}._confirmed",
            "return quorum_value(membership.voters, membership.voters_old, here)",
            "return max(here.values())",
        ),
        profile=APART,
    ),
    Mutant(
        name="quorum-read-asks-nobody",
        bug="a read at quorum is answered from what is here",
        source="ZooKeeper: reads without sync",
        rewrites=one(
            f"{_LEVELS}.reach",
            "if level in {QUORUM, STRONG} and not self._alone():",
            "if level == STRONG and not self._alone():",
        ),
        profile=COUNTS_APART,
    ),
    Mutant(
        name="strong-means-a-majority",
        bug="a strong write is acknowledged when a majority has it",
        source="Cassandra: ALL",
        rewrites=one(
            f"{_LEVELS}._confirmed",
            "return min(here.values(), default=0)",
            "return quorum_value(membership.voters, membership.voters_old, here)",
        ),
        profile=APART,
    ),
    Mutant(
        name="token-not-waited-for",
        bug="a call is answered before the node has come to what its session has seen",
        source="MongoDB: Jepsen 4.2.6, causal sessions",
        rewrites=one(f"{_ENGINE}.covers", "return all(", "return True or all("),
        profile=APART,
    ),
    Mutant(
        name="log-not-waited-for",
        bug="a token's place in the log is not waited for, only that among records",
        source="Antidote: Cure, snapshots over both",
        rewrites=one(f"{_LEVELS}._serve", "self._index() < read.index", "self._index() < 0"),
        profile=APART,
    ),
    Mutant(
        name="range-accounts-for-all",
        bug="with the first range, all is accounted for that the other had accounted for",
        source="delta_crdt: max_sync_size with the whole clock",
        rewrites=one(
            f"{_PULL}._join",
            "            commit.show(frontier)\n",
            "            commit.show(frontier)\n            self._complete(commit)\n",
        ),
        profile=REPAIRED,
    ),
    Mutant(
        name="ranges-without-a-context",
        bug="what the other does not hold any more stays, though the other saw it removed",
        source="Riak: keys that come back after repair",
        rewrites=one(
            f"{_PULL}._sees", "return self._context.contains(actor, counter) or", "return"
        ),
        profile=REPAIRED,
    ),
    Mutant(
        name="nothing-to-hand-on",
        bug="a leader that has nothing lets a member go that has what a majority confirmed",
        source="our own: what had been confirmed was gone with the member that was removed",
        rewrites=one(
            f"{_LEVELS}.hand_over",
            "if not lives.generation and not lives.known():",
            "if not self._engine.frontier and not any(map(self._disseminating.known, voters)):",
        ),
        profile=HANDED_ON,
        budget=40,
    ),
    Mutant(
        name="what-is-cut-is-gone",
        bug="records are dropped before all members have them, and nobody is repaired",
        source="Redis CRDB: backlog too small; Akka: delta too old",
        rewrites=one(f"{_ENGINE}._clean", "min(stable.get(actor, 0), sequence)", "sequence")
        + one(f"{_SPREAD}.on_gone", "self._on_gone(frame)", "pass"),
        profile=APART,
    ),
    Mutant(
        name="removal-takes-all",
        bug="a removal takes out what it has not seen",
        source="Roshi and Cassandra: tombstones by time",
        rewrites=one(
            f"{_TYPES}.sets:ORSet.mutate",
            "return {path: ((), dots_of(leaf))} if leaf else {}",
            "return {\n"
            "                path: ((), (*dots_of(leaf), *(\n"
            "                    (actor, counter + 1) for actor, counter in dots_of(leaf)\n"
            "                )))\n"
            "            } if leaf else {}",
        ),
        profile=ELEMENTS_APART,
    ),
    Mutant(
        name="latest-clock-wins",
        bug="a write does not replace what it has seen; whichever has the later wall clock stays",
        source="Redis CRDB, Riak: last write wins by the OS clock",
        rewrites=one(
            f"{_TYPES}.registers:LWWRegister.mutate",
            "return {path: (((at.actor, at.counter, payload),), dots_of(seen))}",
            "return {path: (((at.actor, at.counter, payload),), ())}",
        )
        + one(
            f"{_TYPES}.registers:LWWRegister.mutate",
            "stamp = max(at.stamp, successor(newest))",
            "stamp = at.stamp",
        ),
        profile=APART,
    ),
    Mutant(
        name="dropped-key-keeps-its-count",
        bug="a key that is dropped takes only what its own node had counted there",
        source="Riak DT: reset-remove of embedded counters; Akka: ORMap",
        rewrites=one(
            f"{_TYPES}.counters:_Counter.removal",
            "parts[path] = (_undone(leaf), ())",
            "continue",
        ),
        profile=KEYS_APART,
    ),
    Mutant(
        name="dropped-key-takes-all",
        bug="a key that is dropped takes what others count there meanwhile, too",
        source="Riak DT: embedded counters without context",
        rewrites=one(
            f"{_TYPES}.counters:_Counter.removal",
            "parts[path] = (_undone(leaf), ())",
            "parts[path] = ((), dots_of(leaf))",
        ),
        profile=KEYS_APART,
    ),
)
