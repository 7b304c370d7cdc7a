"""A seed's life: some hundred ticks of faults and churn (safety), then none (liveness)."""

from __future__ import annotations

from quorate.base.types import NO_NODE, NodeId
from quorate.consensus.config import CoreConfig
from quorate.consensus.events import (
    Announce,
    ChangeMembership,
    PeerLost,
    PeerReached,
    ReadIndex,
    TransferLeadership,
)
from quorate.consensus.membership import ChangeKind, MemberChange
from tests.consensus.harness import Cluster, Faults, Member, Read, plain, quick_config

#: Ticks within which a healed cluster must lead, and then commit: some election timeouts of 20
#: ticks, and one last change of members. To catch up may take one tick more per entry of the
#: longest log, since the windows are tiny: 256 bytes per round trip.
LIVENESS_TICKS_MAX = 400
#: Ticks for which a member that is behind its leader may stand still: three election timeouts.
STANDSTILL_TICKS_MAX = 60
NODES_MAX = 7


class Chaos:
    """One run. ``safety`` breaks things at random; ``liveness`` heals all and expects progress."""

    def __init__(
        self, seed: int, *, leases: bool | None = None, cluster: Cluster | None = None
    ) -> None:
        cluster = self.cluster = cluster or Cluster(seed=seed)
        random = self.random = cluster.random
        self.leases = random.random() < 0.3 if leases is None else leases
        self.fast_failover = random.random() < 0.5
        # Lessons from where bugs hid: each run has a mood, so that some faults come in plenty and
        # others not at all, instead of a little of everything.
        self.mood = {
            name: random.choice((0.0, 0.3, 1.0, 3.0))
            for name in (
                "crash", "pause", "cut", "stall", "change", "transfer", "read", "compact", "flap",
                "power",
            )
        }  # fmt: skip
        cluster.faults = Faults(
            loss=random.choice((0.0, 0.0, 0.05, 0.2)),
            repeat=random.choice((0.0, 0.1, 0.3)),
            delay_max=random.choice((0, 2, 6)),
            disk_max=random.choice((0, 1, 5)),
            fetch=random.choice((0.0, 0.1)),
        )
        cluster.config = self.config
        self.propose_rate = random.choice((0.2, 0.6, 1.5))
        self.next_payload = 0
        self.next_context = 0
        self.next_node = 1
        self._found(random.randint(1, 5), random.choice((0, 0, 1)))

    def config(self, node: NodeId) -> CoreConfig:
        return quick_config(node, lease_reads=self.leases, fast_failover=self.fast_failover)

    def _found(self, voter_count: int, learner_count: int) -> None:
        self.next_node = voter_count + learner_count + 1
        founders = plain(range(1, voter_count + 1), range(voter_count + 1, self.next_node))
        self.cluster.found(founders)
        for member in self.cluster.members.values():
            member.rate = self.random.choice((0.9, 1.0, 1.1))

    # --- faults ---------------------------------------------------------------------------------

    def safety(self, ticks: int) -> None:
        for _ in range(ticks):
            self.cluster.run_one()
            self._work()
            self._break()

    def _chance(self, name: str, per_tick: float) -> bool:
        return self.random.random() < per_tick * self.mood[name]

    def _any(self) -> Member:
        return self.random.choice(list(self.cluster.members.values()))

    def _break(self) -> None:
        cluster, random = self.cluster, self.random
        if self._chance("crash", 0.01):
            self._crash(self._any())
        if self._chance("power", 0.001):
            for member in cluster.members.values():
                self._crash(member)
        for member in cluster.members.values():
            if not member.alive and random.random() < 0.05:
                member.start()
            elif member.paused and random.random() < 0.03:
                member.paused = False
        if self._chance("pause", 0.01):
            self._any().paused = True
        if self._chance("stall", 0.01):
            self._any().disk.stalled_until = cluster.now + random.randint(5, 120)
        if self._chance("cut", 0.02):
            self._cut()
        if random.random() < 0.03:
            cluster.blocked.clear()
        if self._chance("flap", 0.03):
            self._flap(self._any(), self._any())

    def _crash(self, member: Member) -> None:
        if member.alive:
            member.crash(self.random.randint(0, len(member.disk.writes)))
            for other in self.cluster.members.values():  # its connections break
                if other is not member and other.alive and self.random.random() < 0.5:
                    other.step(PeerLost(member.node))

    def _cut(self) -> None:
        """Halves, one alone, a bridge, or single directions."""
        blocked, random = self.cluster.blocked, self.random
        nodes = list(self.cluster.members)
        side = {node: random.random() < 0.5 for node in nodes}
        shape = random.choice(("halves", "alone", "bridge", "directions"))
        alone = random.choice(nodes)
        for one in nodes:
            for other in nodes:
                if shape == "alone":
                    cut = (one == alone) != (other == alone)
                elif shape == "directions":
                    cut = random.random() < 0.3
                else:
                    cut = side[one] != side[other]
                    if shape == "bridge" and alone in {one, other}:
                        cut = False
                if cut and one != other:
                    blocked[one, other] = True

    def _flap(self, one: Member, other: Member) -> None:
        if one is not other and one.alive:
            event = PeerLost if self.random.random() < 0.5 else PeerReached
            one.step(event(other.node))

    # --- work -----------------------------------------------------------------------------------

    def _work(self) -> None:
        random = self.random
        leaders = [m for m in self.cluster.members.values() if m.leads and not m.paused]
        for leader in leaders:
            while random.random() < self.propose_rate / (1 + self.propose_rate):
                self.propose(leader)
            if self._chance("change", 0.03) and leader.leads:
                leader.step(ChangeMembership(self._change(leader)))
            if self._chance("transfer", 0.02) and leader.leads:
                target = random.choice([NO_NODE, *leader.core.state.membership.members()])
                leader.step(TransferLeadership(target))
        if self._chance("read", 0.3):
            self.read(self._any())
        if self._chance("compact", 0.05):
            member = self._any()
            if member.alive:
                member.checkpoint()
                member.compact(random.choice((0, 0, 5, 20)))

    def propose(self, leader: Member) -> None:
        self.next_payload += 1
        payload = b"%d." % self.next_payload + b"x" * self.random.choice((0, 10, 70))
        self.cluster.propose(leader, payload)

    def read(self, member: Member) -> None:
        if member.alive and not member.paused:
            self.next_context += 1
            read = Read(member.node, self.cluster.checks.commit_max)
            self.cluster.reads[self.next_context] = read
            member.step(ReadIndex(self.next_context, member.now_ms))
            self.cluster.serve_reads(member)
            if self.next_context % 4 == 0 and member.alive:
                member.step(Announce())

    def _change(self, leader: Member) -> tuple[MemberChange, ...]:
        membership = leader.core.state.membership
        members = list(membership.members())
        count = self.random.choice((1, 1, 2, 3))
        changes: dict[NodeId, MemberChange] = {}
        for _ in range(count):
            if len(members) < NODES_MAX and self.random.random() < 0.4:
                node = NodeId(self.next_node)
                self.next_node += 1
                joiner = self.cluster.add(node)
                joiner.rate = self.random.choice((0.9, 1.0, 1.1))
                joiner.start()
                changes[node] = MemberChange(ChangeKind.ADD_LEARNER, node, f"n{node}:1")
            else:
                node = self.random.choice(members)
                kind = self.random.choice(
                    (ChangeKind.PROMOTE, ChangeKind.PROMOTE, ChangeKind.DEMOTE, ChangeKind.REMOVE)
                )
                changes[node] = MemberChange(kind, node)
        return tuple(changes.values())

    # --- healing --------------------------------------------------------------------------------

    def liveness(self) -> int:
        """No more faults: soon one leader, everything committed everywhere. Returns the ticks."""
        cluster = self.cluster
        self._heal()
        used = self._settle()
        leader = cluster.leader()
        assert leader is not None
        before = leader.commit
        self.propose(leader)
        cluster.run_until(
            lambda: self._settled() and leader.commit > before, LIVENESS_TICKS_MAX, "a new commit"
        )
        for node in leader.core.state.membership.members():
            self.read(cluster.members[node])
        cluster.run_until(lambda: not cluster.reads, 100, "reads are served on all members")
        cluster.run(60)
        assert leader.leads, f"a healed cluster keeps its leader\n{cluster.describe()}"
        return used

    def _heal(self) -> None:
        cluster = self.cluster
        cluster.faults = Faults()
        cluster.blocked.clear()
        cluster.reads.clear()
        for member in cluster.members.values():
            member.disk.stalled_until = -1
            member.paused = False
            if not member.alive:
                member.start()

    def _settle(self) -> int:
        """Run until settled, within a bound that knows how much is to be caught up, and with
        nobody standing still on the way: that finds a stall which a larger bound would hide."""
        cluster = self.cluster
        ends = [member.core.state.log.last_index for member in cluster.members.values()]
        limit = LIVENESS_TICKS_MAX + max(ends)
        seen: dict[NodeId, tuple[int, int]] = {}  # where it stood, and since when
        led = 0  # the last tick that had a leader
        for used in range(limit):
            if self._settled():
                return used
            cluster.run_one()
            leader = cluster.leader()
            led = used if leader is not None else led
            assert used - led <= LIVENESS_TICKS_MAX, "nobody leads"
            members = leader.core.state.membership.members() if leader is not None else ()
            seen = {node: seen[node] for node in members if node in seen}
            for node in members:
                state = cluster.members[node].core.state
                progress = state.log.last_index + state.commit
                at, since = seen.get(node, (-1, 0))
                if (
                    progress != at
                    or leader is None
                    or cluster.members[node].applied >= leader.commit
                ):
                    seen[node] = (progress, used)
                elif used - since > STANDSTILL_TICKS_MAX:
                    raise AssertionError(f"node {node} is behind and stands still at {progress}")
        raise AssertionError(f"not within {limit} ticks: one leader, nothing pending")

    def _settled(self) -> bool:
        leader = self.cluster.leader()
        if leader is None:
            return False
        state = leader.core.state
        if state.membership.joint or state.commit < state.log.last_index or state.transfer_target:
            return False
        return all(
            self.cluster.members[node].applied == state.commit
            and self.cluster.members[node].core.state.leader == leader.node
            for node in state.membership.members()
        )


def run_seed(seed: int, ticks: int, *, leases: bool | None = None) -> Chaos:
    """One seed's whole life; whatever it finds says how to see it again."""
    chaos = Chaos(seed, leases=leases)
    try:
        chaos.safety(ticks)
        chaos.liveness()
    except AssertionError as error:
        raise AssertionError(
            f"{error}\nreplay with QUORATE_SEED={seed} (pytest {__file__[:-8]}"
            f"test_random_cluster.py)\n{chaos.cluster.describe()}"
        ) from error
    return chaos
