"""Bugs of leases, locks, semaphores, elections, watches and levels of consistency."""

from __future__ import annotations

from typing import Any, Final

from jepsen_like.mutants.mutant import Mutant, one
from jepsen_like.mutants.profiles import Profile

_LOCKS: Final = "quorate.locks.machine:LockMachine"
_LEASES: Final = "quorate.replication.leases:LeaseMachine"
_BARRIERS: Final = "quorate.locks.barriers:BarrierMachine"
_HELD: Final = "quorate.client.leases:Lease"
_KV: Final = "quorate.replication.kv:KvMachine"

_SETTINGS: Final[dict[str, Any]] = {
    "voters": 3,
    "learners": 0,
    "lease_reads": False,
    "clock_rates": (),
    "clients": 4,
    "think_ms": 50.0,
    "timeout_s": 1.0,
    "operations_max": 300,
    "seconds": 8.0,
}
_HOLDER_FAULTS: Final = {"client-freeze": 3.0, "client-cut": 2.0, "client-crash": 1.0}


def _profile(name: str, mix: dict[str, float], **settings: Any) -> Profile:  # noqa: ANN401
    workloads = dict.fromkeys(settings.pop("workloads"), 1.0)
    return Profile(name=name, settings={**_SETTINGS, "workloads": workloads, **settings}, mix=mix)


#: Holders that freeze, lose the network, or die, while others wait.
HOLDERS: Final = _profile("holders", _HOLDER_FAULTS, workloads=("lock",))
#: Holders that nobody can tell of their loss.
UNREACHED: Final = _profile(
    "unreached",
    {"client-cut": 1.0},
    workloads=("lock",),
    clients=6,
    think_ms=20.0,
    seconds=12.0,
    operations_max=500,
)
SLOW_HOLDERS: Final = _profile(
    "slow-holders", {"client-clock": 2.0, "client-freeze": 1.0}, workloads=("lock",)
)
LEADERS: Final = _profile("candidates", _HOLDER_FAULTS, workloads=("election",))
SPEAKERS: Final = _profile(
    "speakers",
    {"client-cut": 1.0},
    workloads=("proclaim",),
    clients=6,
    think_ms=20.0,
    seconds=12.0,
    operations_max=500,
)
PARTIES: Final = _profile("parties", _HOLDER_FAULTS, workloads=("barrier",), clients=6)
LEASED: Final = _profile("leased", {"checkpoint": 1.0, "transfer": 1.0}, workloads=("lease",))
RELOADED: Final = _profile(
    "reloaded",
    {"crash-all": 2.0, "checkpoint": 3.0, "client-crash": 1.0},
    workloads=("lock",),
    checkpoint_bytes=1500,
)
WATCHERS: Final = _profile(
    "watchers",
    {"crash-one": 2.0, "isolate-leader": 2.0, "reset": 2.0, "client-cut": 2.0},
    workloads=("watch",),
)
FORGETFUL: Final = _profile(
    "forgetful",
    {"client-crash": 2.0, "client-cut": 2.0, "isolate-leader": 1.0},
    workloads=("watch",),
    history_revisions=20,
)
READERS: Final = _profile(
    "readers",
    {"isolate-one": 2.0, "delay": 3.0, "isolate-leader": 1.0, "pause-one": 2.0},
    workloads=("levels",),
    think_ms=20.0,
    network_delay_ms=15.0,
)

MUTANTS = (
    Mutant(
        name="lease-by-local-clock",
        bug="each replica ends leases by its own clock",
        source="etcd 15247 (trap 12)",
        rewrites=one(
            f"{_LEASES}.expire",
            "self._deadlines.due(context.due_ms)",
            "self._deadlines.due(\n"
            "            context.due_ms"
            ' + int(__import__("asyncio").get_running_loop().time() * 1000) % 200\n'
            "        )",
        ),
        profile=LEASED,
    ),
    Mutant(
        name="no-grace",
        bug="leases that were due while nobody led run out in the first entry of the new term",
        source="etcd 9888: leases extended after an election; thesis 6.3",
        rewrites=one(
            "quorate.replication.sessions:SessionMachine.due_ms",
            "return self._due_at(time_ms)",
            "return time_ms",
        ),
        profile=LEASED,
    ),
    Mutant(
        name="keys-survive-their-lease",
        bug="keys stay when the lease ends that they are bound to",
        source="etcd: Lease, what is attached is deleted",
        rewrites=one(f"{_KV}.on_lease_end", "if held is None:", "if lease:"),
        profile=LEASED,
    ),
    Mutant(
        name="renewed-after-its-end",
        bug="a renewal brings back a lease that had ended",
        source="etcd 6978: a lease that is revoked and kept alive",
        rewrites=one(
            f"{_LEASES}._renew",
            "            if record is None:\n",
            "            if record is None and self._last.get(_LAST_KEY).lease >= lease:\n"
            "                record = LeaseRecord(1000, 0, '')\n"
            "                self._live.put(_key(lease), record)\n"
            "            if record is None:\n",
        ),
        profile=LEASED,
    ),
    Mutant(
        name="waiter-outlives-its-lease",
        bug="who waits in line stays there when its lease ends, and is granted the lock",
        source="Curator 1.0, kazoo 88: orphaned waiters",
        rewrites=one(
            f"{_LOCKS}.on_lease_end",
            "(bound.token or bound.ticket)",
            "bound.token",
        )
        + one(f"{_LOCKS}._pass_on", "alive = context.lease_alive(claim.lease)", "alive = True"),
        profile=HOLDERS,
        budget=20,
    ),
    Mutant(
        name="token-of-the-name",
        bug="tokens are counted for each name, and begin again when the name is free",
        source="Kleppmann 2016: tokens must only grow; Consul: LockIndex of a key made anew",
        rewrites=one(
            f"{_LOCKS}._pass_on",
            "            self._names.delete(name)\n",
            "            self._names.delete(name)\n            self._number = 0\n",
        ),
        profile=HOLDERS,
    ),
    Mutant(
        name="token-lost-at-restart",
        bug="after a restart tokens begin again",
        source="Kleppmann 2016; Redlock",
        rewrites=one(
            f"{_LOCKS}.loaded",
            "self._number = self._number_before = 0 if last is None else last.count",
            "self._number = self._number_before = 0 * (0 if last is None else last.count)",
        ),
        profile=RELOADED,
    ),
    Mutant(
        name="two-waiters-granted",
        bug="a release hands the lock to the first two in line",
        source="redis-py 1.x Lock; Jepsen: etcd 3.4.3 locks",
        rewrites=one(
            f"{_LOCKS}._pass_on",
            "if alive and claim.permits > record.free:",
            "if alive and claim.permits > record.free + 1:",
        ),
        profile=HOLDERS,
    ),
    Mutant(
        name="readers-beside-writers",
        bug="a reader is let in while a writer holds a read-write lock",
        source="Curator 2.3: InterProcessReadWriteLock",
        rewrites=one(
            f"{_LOCKS}._acquire",
            "record.free >= command.permits",
            "record.free + (command.total > 1 >= command.permits) >= command.permits",
        ),
        profile=HOLDERS,
        budget=20,
    ),
    Mutant(
        name="line-from-its-end",
        bug="who came last is granted first",
        source="ZooKeeper recipes: the lock is fair",
        rewrites=one(
            f"{_LOCKS}._pass_on",
            "next(self._waiters.range_prefix(scope(name), limit=1))",
            "list(self._waiters.range_prefix(scope(name), limit=1000))[-1]",
        ),
        profile=HOLDERS,
        budget=40,
    ),
    Mutant(
        name="belief-outlives-the-lease",
        bug="a holder that could not renew believes in its lock until it is told otherwise",
        source="Kleppmann 2016; Jepsen: etcd 3.4.3 locks",
        rewrites=one(
            f"{_HELD}.alive",
            "return not self._over and self._clock() < self._good_until",
            "return not self._over",
        )
        + one(f"{_HELD}.renewed", "        self._look_again()\n", ""),
        profile=UNREACHED,
        budget=40,
    ),
    Mutant(
        name="lease-longer-than-granted",
        bug="a holder counts its lease for longer than it lasts",
        source="Gray and Cheriton 1989: the holder's term is the shorter one",
        rewrites=one(f"{_HELD}.renewed", "(1 - DRIFT_MARGIN)", "(2 - DRIFT_MARGIN)"),
        profile=UNREACHED,
        budget=40,
    ),
    Mutant(
        name="fence-not-checked",
        bug="the store takes a write whatever token it carries",
        source="Kleppmann 2016",
        rewrites=one(f"{_KV}._check_fences", "if not context.fence_holds(fence):", "if False:"),
        profile=SLOW_HOLDERS,
        budget=40,
    ),
    Mutant(
        name="loser-still-holds",
        bug="who lost a lock with its lease stays among its holders, and its token is good",
        source="Jepsen: etcd 3.4.3 locks",
        rewrites=one(
            f"{_LOCKS}._without",
            "claim = self._holders.delete(numbered(name, bound.token))",
            "claim = self._holders.get(numbered(name, bound.token))",
        ),
        profile=HOLDERS,
        budget=40,
    ),
    Mutant(
        name="epoch-reused",
        bug="who leads after another gets the same epoch",
        source="Raft 5.2: one leader per term; ZooKeeper: epochs",
        rewrites=one(
            f"{_LOCKS}._pass_on",
            "            token = self._draw()\n",
            "            token = self._number\n",
        ),
        profile=LEADERS,
        budget=40,
    ),
    Mutant(
        name="passes-one-too-few",
        bug="a barrier opens when all but one of its parties are there",
        source="Curator 2.0: DistributedDoubleBarrier, parties counted wrong",
        rewrites=one(
            f"{_BARRIERS}._settle",
            "        if not record.inside and record.waiting >= record.parties:\n",
            "        if not record.inside and record.waiting >= record.parties - 1 > 1:\n",
        )
        + one(
            f"{_BARRIERS}._settle",
            "            if record.waiting >= record.parties:\n",
            "            if record.waiting:\n",
        )
        + one(
            f"{_BARRIERS}._let_in",
            "waiting=record.waiting - record.parties,",
            "waiting=max(record.waiting - record.parties, 0),",
        ),
        profile=PARTIES,
    ),
    Mutant(
        name="the-dead-are-counted",
        bug="a party that died at the door lets the others through",
        source="ZooKeeper recipes: barriers, nodes of dead sessions",
        rewrites=one(f"{_BARRIERS}.on_lease_end", "self._remove(name_of(key), place)", "pass"),
        profile=PARTIES,
    ),
    Mutant(
        name="first-leaver-opens",
        bug="the first party that wants to leave a double barrier leaves at once",
        source="ZooKeeper recipes: double barriers, leaving together",
        rewrites=one(
            f"{_BARRIERS}._settle",
            "if not record.inside and record.leaving:",
            "if record.leaving:",
        ),
        profile=PARTIES,
    ),
    Mutant(
        name="followers-not-told",
        bug="what a leader proclaims while it leads is not told to those who follow",
        source="etcd: Observe; Curator LeaderLatch, missed notifications",
        rewrites=one(f"{_LOCKS}._proclaim", "        self._tell_leader(name, context)\n", ""),
        profile=SPEAKERS,
    ),
    Mutant(
        name="deposed-leader-speaks",
        bug="what a former leader proclaims takes the place of what the present one did",
        source="etcd: Proclaim after the leader key was lost; ZooKeeper: epochs",
        rewrites=one(
            f"{_LOCKS}._proclaim",
            "        if bound is None or not bound.token or record is None or not "
            "context.lease_alive(lease):\n",
            "        if record is None or not record.holders:\n",
        )
        + one(
            f"{_LOCKS}._proclaim",
            "key = numbered(name, bound.token)",
            "bound = BoundRecord(self._leader(name).token, 0)\n"
            "        key = numbered(name, bound.token)",
        ),
        profile=SPEAKERS,
        budget=40,
    ),
    Mutant(
        name="watch-gap",
        bug="a watch that is begun again after a failover leaves out a revision",
        source="etcd 15220, 18667: watches that skip",
        rewrites=one(
            "quorate.client.kv_watch:Watch._request",
            "self._received + 1",
            "self._received + 1 + bool(self._begun)",
        ),
        profile=WATCHERS,
        budget=20,
    ),
    Mutant(
        name="watch-without-history",
        bug="a watch that begins in the past is told only what happens from now on",
        source="etcd: watches are resumable",
        rewrites=one(
            f"{_KV}.watch",
            "backlog=(*backlog, KeyEvents(upto)),",
            "backlog=(KeyEvents(upto),),",
        ),
        profile=WATCHERS,
    ),
    Mutant(
        name="history-cut-silently",
        bug="a watch from a revision that is no longer kept begins at the oldest that is",
        source="etcd 18667: watches that skip; etcd: compaction is told",
        rewrites=one(
            f"{_KV}.watch",
            "start = request.start_revision or revision + 1",
            "start = max(request.start_revision or revision + 1, history.oldest)",
        ),
        profile=FORGETFUL,
        budget=20,
    ),
    Mutant(
        name="watch-tells-twice",
        bug="a watch does not pass over what it has been told before",
        source="etcd: watches are unique",
        rewrites=one(
            "quorate.client.kv_watch:Watch._on_events",
            "elif each.revision > self._received:",
            "else:",
        )
        + one(
            "quorate.client.kv_watch:Watch._request", "self._received + 1", "max(self._received, 1)"
        ),
        profile=WATCHERS,
        budget=20,
    ),
    Mutant(
        name="undone-command-told",
        bug="watchers are told what a command did before it was refused and undone",
        source="etcd: watches are reliable",
        rewrites=one(
            f"{_KV}.rolled_back",
            "        del self._changes[3 * count :]",
            "        del self._changes[3 * max(count, len(self._changes) // 3) :]",
        ),
        profile=WATCHERS,
    ),
    Mutant(
        name="causal-too-early",
        bug="a causal read is answered before the node has come to what the session has seen",
        source="MongoDB: Jepsen 4.2.6, causal sessions",
        rewrites=one(
            "quorate.replication.reading:Serving._query_here",
            "if query.after <= self._applier.applied:",
            "if True:",
        ),
        profile=READERS,
        budget=20,
    ),
    Mutant(
        name="quorum-asked-as-eventual",
        bug="the client asks for a read at quorum as for one at eventual",
        source="PySyncObj defect G (trap 10); ZooKeeper: reads without sync",
        rewrites=one(
            "quorate.client.levels:Scope._after",
            "return 0 if level == EVENTUAL else LINEARIZABLE",
            'return LINEARIZABLE if level == "strong" else 0',
        ),
        profile=READERS,
        budget=20,
    ),
    Mutant(
        name="strong-means-quorum",
        bug="a strong write is acknowledged before all voters have applied it",
        source="Cassandra: ALL",
        rewrites=one(
            "quorate.replication.acknowledging:Acknowledging._on_applied",
            "if not isinstance(answer, SubmitReply) or not self._missing(LogIndex(answer.index)):",
            "if True:",
        ),
        profile=READERS,
        budget=20,
    ),
)
