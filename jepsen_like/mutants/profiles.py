"""Kinds of runs in which a certain bug has its chance: clusters and faults more alike than usual.

The swarm's own draw has a little of everything. Where a bug needs three things to come together,
a thousand seeds may pass before they do; a profile brings them together, and leaves the rest to
the seed as before.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from jepsen_like.simulation.plan import Fault, Plan, draw_fault, draw_plain, stream


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """*settings*: what every run has in common, the rest is drawn. *mix*: kinds of faults with
    their weights, instead of the seed's own; *rate*: how many of them in a second."""

    name: str
    settings: Mapping[str, Any] = {}
    mix: Mapping[str, float] = {}
    rate: float = 2.0
    ends_in: Mapping[str, str] = {}

    def plan(self, seed: int) -> Plan:
        """The plan of *seed* in this profile."""
        plan = draw_plain(seed)
        if self.settings:
            settings = replace(plan.settings, **self.settings)
            plan = replace(plan, settings=settings)
        if self.mix:
            plan = replace(plan, faults=self._faults(plan), kinds=self.kinds)
        return plan

    @property
    def kinds(self) -> tuple[str, ...]:
        """Of faults that *mix* can bring."""
        return (*self.mix, *self.ends_in.values())

    def _faults(self, plan: Plan) -> tuple[Fault, ...]:
        random = stream(plan.seed, f"profile-{self.name}")
        names, weights = list(self.mix), list(self.mix.values())
        at_s = random.uniform(0.1, 0.5)
        faults = []
        while at_s < plan.settings.seconds:
            kind = random.choices(names, weights)[0]
            fault = draw_fault(random, round(at_s, 4), kind, plan.settings)
            if kind in self.ends_in:
                seconds = plan.settings.election_timeout_ms / 1000 * random.uniform(1.0, 2.0)
                faults.append(replace(fault, seconds=round(seconds, 4)))
                at_s += seconds
                fault = draw_fault(random, round(at_s, 4), self.ends_in[kind], plan.settings)
            faults.append(fault)
            at_s += random.expovariate(self.rate)
        return tuple(faults)


#: As ``simulate`` draws it, without workloads of coordination.
SWARM: Final = Profile(name="swarm")
#: Votes and acknowledgements of earlier terms come again; leaders fall often.
REPLAYED_VOTES: Final = Profile(
    name="replayed-votes",
    settings={"voters": 5, "learners": 0, "repeat_chance": 0.6},
    mix={"isolate-leader": 1.0, "crash-leader": 1.0, "halves": 4.0},
    rate=4.0,
)
REPLAYED: Final = Profile(
    name="replayed",
    settings={"voters": 3, "learners": 0, "network_delay_ms": 5.0},
    mix={"replay": 3.0, "transfer": 2.0, "isolate-leader": 1.0, "delay": 1.0},
    rate=4.0,
)
#: Leaders change all the time, and leave uncommitted entries behind.
ELECTIONS: Final = Profile(
    name="elections",
    settings={"voters": 5, "learners": 0, "network_delay_ms": 5.0, "clients": 6, "think_ms": 5.0},
    mix={
        "isolate-leader": 3.0,
        "halves": 2.0,
        "bridge": 1.0,
        "majorities-ring": 1.0,
        "crash-leader": 1.0,
        "one-way": 1.0,
        "pause-leader": 1.0,
    },
    rate=4.0,
)
#: Four voters become three, and two become one: joint majorities that differ.
SHRINKING: Final = Profile(
    name="shrinking",
    settings={"voters": 4, "learners": 0, "network_delay_ms": 15.0, "clients": 6, "think_ms": 5.0},
    mix={
        "remove": 3.0,
        "demote": 3.0,
        "promote": 3.0,
        "add": 1.0,
        "isolate-leader": 2.0,
        "pause-leader": 1.0,
        "halves": 1.0,
    },
    rate=4.0,
)
CHURN: Final = Profile(
    name="churn",
    settings={"voters": 3, "learners": 2, "network_delay_ms": 15.0},
    mix={
        "promote": 2.0,
        "demote": 2.0,
        "add": 2.0,
        "remove": 1.0,
        "replace": 1.0,
        "isolate-leader": 3.0,
        "crash-leader": 1.0,
        "transfer": 2.0,
    },
    rate=4.0,
)
LAGGING_CHURN: Final = Profile(
    name="lagging-churn",
    settings={"voters": 3, "learners": 1, "checkpoint_bytes": 1500, "segment_bytes": 8192},
    mix={
        "lag": 3.0,
        "demote": 2.0,
        "promote": 2.0,
        "add": 2.0,
        "crash-one": 1.0,
        "checkpoint": 1.0,
    },
    rate=3.0,
)
_READING: Final[Mapping[str, Any]] = {
    "voters": 3,
    "learners": 0,
    "clients": 6,
    "think_ms": 30.0,
    "workloads": {"register": 3.0, "cas-register": 1.0},
    "operations_max": 500,
}
#: Reads that count on clocks. Few write: who was cut off for a while still has the whole log.
LEASES: Final = Profile(
    name="leases",
    settings={
        **_READING,
        "clients": 4,
        "think_ms": 100.0,
        "lease_reads": True,
        "fast_failover": False,
        "clock_rates": (),
        "heartbeat_ms": 50,
        "election_timeout_ms": 250,
        "network_delay_ms": 0.2,
        "disk_delay_ms": 0.1,
    },
    mix={"bridge": 3.0, "majorities-ring": 3.0, "one-way": 2.0},
    rate=3.0,
)
#: Leases whose answers come late: the leader's links are slow, and it is heard by nobody.
LATE_ANSWERS: Final = Profile(
    name="late-answers",
    settings={
        **LEASES.settings,
        "think_ms": 30.0,
        "operations_max": 1200,
        "heartbeat_ms": 20,
        "election_timeout_ms": 100,
    },
    mix={"delay": 3.0, "one-way": 4.0, "pause-leader": 1.0},
    rate=8.0,
)
TRANSFERS: Final = Profile(
    name="transfers",
    settings={**LEASES.settings, "election_timeout_ms": 500},
    mix={"transfer": 3.0, "one-way": 3.0},
    rate=8.0,
)
#: Voters leave, and some of those who stay were not heard from when the lease was granted.
LEASED_CHURN: Final = Profile(
    name="leased-churn",
    settings={
        **LEASES.settings,
        "voters": 5,
        "think_ms": 5.0,
        "operations_max": 1500,
        "seconds": 6.0,
    },
    mix={"remove": 2.0, "demote": 3.0, "promote": 3.0, "pause-one": 6.0, "isolate-one": 4.0},
    rate=10.0,
)
#: Voters stand still, and find heartbeats before they find what time it is; leaders are cut off.
LATE_VOTERS: Final = Profile(
    name="late-voters",
    settings={**LEASES.settings, "heartbeat_ms": 20, "election_timeout_ms": 100},
    mix={"pause-one": 4.0, "isolate-leader": 3.0, "one-way": 2.0},
    rate=6.0,
)
#: Voters restart when their leader has just been cut off.
LEASED_RESTARTS: Final = Profile(
    name="leased-restarts",
    settings=LEASES.settings,
    mix={"crash-one": 4.0, "isolate-leader": 3.0, "one-way": 3.0, "restart-storm": 1.0},
    rate=6.0,
)
#: Elections, while an fsync takes longer than a heartbeat's way to and fro.
NEW_LEADERS: Final = Profile(
    name="new-leaders",
    settings={**_READING, "network_delay_ms": 0.2, "disk_delay_ms": 10.0, "heartbeat_ms": 20},
    mix={"crash-leader": 2.0, "isolate-leader": 2.0, "transfer": 3.0, "disk-slow": 2.0},
    rate=4.0,
)
#: Leaders that do not know that they were replaced.
SLEEPING_LEADERS: Final = Profile(
    name="sleeping-leaders",
    settings=_READING,
    mix={"pause-leader": 3.0, "isolate-leader": 2.0, "delay": 2.0, "one-way": 2.0, "replay": 1.0},
    rate=4.0,
)
#: The rest compacts its log past a leader that was cut off with entries of its own.
OVERTAKEN_LEADERS: Final = Profile(
    name="overtaken-leaders",
    settings={
        "voters": 3,
        "learners": 0,
        "election_timeout_ms": 500,
        "heartbeat_ms": 50,
        "checkpoint_bytes": 1500,
        "segment_bytes": 2048,
        "clients": 8,
        "think_ms": 30.0,
        "timeout_s": 0.5,
        "operations_max": 400,
    },
    mix={"isolate-leader": 3.0, "checkpoint": 8.0, "lag": 1.0, "pause-leader": 1.0},
    rate=8.0,
)
#: Leaders with more to send than goes into a message fall, and lead again.
LONG_TAILS: Final = Profile(
    name="long-tails",
    settings={
        "voters": 5,
        "learners": 0,
        "append_bytes_max": 300,
        "inflight_messages_max": 1,
        "network_delay_ms": 15.0,
        "disk_delay_ms": 0.5,
        "clients": 8,
        "think_ms": 30.0,
        "operations_max": 400,
    },
    mix={"isolate-leader": 3.0, "crash-leader": 2.0, "delay": 2.0, "pause-leader": 2.0},
    rate=4.0,
)
#: The power fails for all when a leader was cut off with entries of its own, and another has a few.
POWER_CUTS: Final = Profile(
    name="power-cuts",
    settings={
        **LONG_TAILS.settings,
        "voters": 3,
        "network_delay_ms": 5.0,
        "clients": 16,
        "operations_max": 1200,
    },
    mix={"isolate-leader": 1.0},
    ends_in={"isolate-leader": "crash-all"},
    rate=1.5,
)
STALLED_DISKS: Final = Profile(
    name="stalled-disks",
    settings={"voters": 3, "learners": 0, "election_timeout_ms": 500, "heartbeat_ms": 50},
    mix={"disk-stall": 3.0, "transfer": 1.0},
    rate=2.0,
)
#: Nodes die between a vote and the first entry of its term.
CRASHING_VOTERS: Final = Profile(
    name="crashing-voters",
    settings={"voters": 5, "learners": 0, "network_delay_ms": 15.0, "disk_delay_ms": 0.5},
    mix={"crash-leader": 3.0, "crash-all": 2.0, "restart-storm": 3.0, "crash-one": 2.0},
    rate=6.0,
)
#: Many commands in a write, so that it has sectors enough to be torn.
TORN_WRITES: Final = Profile(
    name="torn-writes",
    settings={
        "voters": 3,
        "learners": 0,
        "disk_delay_ms": 25.0,
        "clients": 8,
        "workloads": {"append": 1.0, "bank": 2.0},
        "think_ms": 5.0,
        "operations_max": 1200,
    },
    mix={"crash-one": 2.0, "crash-leader": 3.0, "crash-all": 3.0},
    rate=5.0,
)
SICK_DISKS: Final = Profile(
    name="sick-disks",
    settings={"voters": 3, "learners": 0, "checkpoint_bytes": 1500},
    mix={
        "disk-stall": 2.0,
        "disk-slow": 2.0,
        "eio-fsync": 3.0,
        "crash-one": 2.0,
        "crash-leader": 2.0,
        "checkpoint": 1.0,
    },
    rate=4.0,
)
FULL_DISKS: Final = Profile(
    name="full-disks",
    settings={"voters": 3, "learners": 0, "checkpoint_bytes": 1500},
    mix={"disk-full": 3.0, "checkpoint": 3.0, "crash-one": 2.0},
    rate=4.0,
)
DAMAGE: Final = Profile(
    name="damage",
    settings={"voters": 3, "learners": 0},
    mix={"bit-flip": 3.0, "truncate": 1.0, "wipe": 2.0, "crash-leader": 1.0},
    rate=2.0,
)
#: One disk is new and empty, and the others begin again from their own: with nothing but the log.
WIPED_AND_RESTARTED: Final = Profile(
    name="wiped-and-restarted",
    settings={
        "voters": 3,
        "learners": 0,
        "checkpoint_bytes": 1_000_000,
        "clients": 2,
        "think_ms": 20.0,
        "network_delay_ms": 0.2,
        "heartbeat_ms": 50,
        "election_timeout_ms": 500,
    },
    mix={"wipe": 3.0, "restart-storm": 2.0, "crash-leader": 2.0},
    rate=3.0,
)
SMALL_SEGMENTS: Final = Profile(
    name="small-segments",
    settings={"voters": 3, "learners": 0, "segment_bytes": 8192},
    mix={"crash-one": 3.0, "crash-leader": 3.0, "crash-all": 1.0},
    rate=4.0,
)
#: Connections break between a command and its answer; sessions expire.
LOST_REPLIES: Final = Profile(
    name="lost-replies",
    settings={
        "voters": 3,
        "learners": 0,
        "clients": 6,
        "think_ms": 5.0,
        "timeout_s": 5.0,
        "session_ttl_s": 1.0,
    },
    mix={"crash-leader": 3.0, "pause-leader": 4.0, "isolate-leader": 2.0, "reset": 1.0},
    rate=4.0,
)
#: Leaders that are heard and hear nobody: their entries arrive, and the answers do not.
DEAF_LEADERS: Final = Profile(
    name="deaf-leaders",
    settings={
        "voters": 3,
        "learners": 0,
        "heartbeat_ms": 20,
        "election_timeout_ms": 200,
        "clients": 6,
        "think_ms": 30.0,
        "timeout_s": 0.5,
    },
    mix={"one-way": 4.0, "isolate-leader": 1.0},
    rate=4.0,
)
