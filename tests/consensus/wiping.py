"""Chaos in which disks are wiped: at most a minority, at any time, from the founding on.

What nodes add to the core is modelled: members show their incarnations when they connect, whoever
has another one in its log ends the connection, and a leader records those of all that it met.
"""

from __future__ import annotations

import msgspec

from quorate.base.types import NodeId
from quorate.consensus.events import ChangeMembership
from quorate.consensus.membership import ChangeKind, MemberChange
from quorate.consensus.messages import Entry, Message
from tests.consensus.chaos import LIVENESS_TICKS_MAX, Chaos
from tests.consensus.cluster_checks import ClusterChecks
from tests.consensus.harness import Cluster, Disk, Member, plain


class Checks(ClusterChecks):
    """An acknowledgement stands for what was on a disk, even if that is wiped before it counts."""

    def __init__(self, cluster: Cluster) -> None:
        super().__init__(cluster)
        self.wiped: list[tuple[NodeId, Disk]] = []

    def holders(self, entry: Entry) -> set[int]:
        gone = {node for node, disk in self.wiped if disk.holds(entry.index, entry.term)}
        return super().holders(entry) | gone


class Strangers(Cluster):
    """Each message belongs to a connection between two data directories."""

    def __init__(self, seed: int) -> None:
        self.lives: dict[NodeId, int] = {}
        self.met: dict[NodeId, dict[NodeId, int]] = {}
        self.tags: dict[int, tuple[Message, int, int]] = {}
        super().__init__(seed=seed)
        self.checks = Checks(self)

    def add(self, node: NodeId) -> Member:
        self.begin(node)
        return super().add(node)

    def begin(self, node: NodeId) -> None:
        """A new, empty directory stands behind that number."""
        self.lives[node] = self.lives.get(node, 0) + 1
        self.met[node] = {}

    def accepts(self, member: Member, other: NodeId, life: int) -> bool:
        """By its log; and there is one connection, the newest."""
        named = member.core.state.membership.incarnation(other)
        return named in ("", str(life)) and self.met[member.node].get(other, 0) <= life

    def post(self, message: Message) -> None:
        target = message.target
        if not self.accepts(self.members[message.sender], target, self.lives[target]):
            return
        self.met[message.sender][target] = self.lives[target]
        self.tags[id(message)] = message, self.lives[message.sender], self.lives[target]
        super().post(message)

    def deliver(self, message: Message) -> None:
        _kept, life, own = self.tags[id(message)]
        member, sender = self.members[message.target], message.sender
        if own == self.lives[member.node] and self.accepts(member, sender, life):
            self.met[member.node][sender] = life
            super().deliver(message)


class Wiping(Chaos):
    """See the module."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed, leases=False, cluster=Strangers(seed))
        for mood in ("change", "compact"):
            self.mood[mood] = 0.0
        self.wipe_chance = self.random.choice((0.03, 0.1, 0.3))
        if self.random.random() < 0.5:
            self._cut()  # from the beginning: some founders never met some others

    def _found(self, voter_count: int, learner_count: int) -> None:
        count = voter_count + learner_count
        self.next_node = count + 1
        self.founders = msgspec.structs.replace(
            plain(range(1, self.next_node)),
            incarnations=tuple((NodeId(node), "") for node in range(1, self.next_node)),
        )
        self.wipes_left = (count - 1) // 2
        self.cluster.found(self.founders)

    def _break(self) -> None:
        super()._break()
        behind, ahead = self._behind_and_ahead()
        if self.wipes_left and behind and ahead and self.random.random() < self.wipe_chance:
            self.wipes_left -= 1
            self._wipe(self.random.choice(ahead))
            if self.random.random() < 0.8:
                self._part()

    def _behind_and_ahead(self) -> tuple[list[Member], list[Member]]:
        """Members that lack something that is committed, and those that lack nothing."""
        commit_max = self.cluster.checks.commit_max
        members = list(self.cluster.members.values())
        ahead = [member for member in members if member.disk.last >= commit_max > 1]
        return [member for member in members if member not in ahead], ahead

    def _part(self) -> None:
        """The worst that can be: who knows is away, who does not is together."""
        behind, ahead = self._behind_and_ahead()
        self.cluster.blocked.clear()
        for one in behind:
            for other in ahead:
                self.cluster.blocked[one.node, other.node] = True
                self.cluster.blocked[other.node, one.node] = True

    def _wipe(self, member: Member) -> None:
        cluster, node = self.strangers, member.node
        if member.alive:
            member.crash(self.random.randint(0, len(member.disk.writes)))
        assert isinstance(cluster.checks, Checks)
        cluster.checks.wiped.append((node, member.disk))
        votes = cluster.checks.votes
        cluster.checks.votes = {key: vote for key, vote in votes.items() if key[0] != node}
        cluster.begin(node)
        member.disk = Disk()
        member.found(self.founders)
        member.start()

    @property
    def strangers(self) -> Strangers:
        assert isinstance(self.cluster, Strangers)
        return self.cluster

    def _work(self) -> None:
        super()._work()
        self.record()

    def record(self) -> None:
        """What the server's registrar does."""
        for leader in list(self.cluster.members.values()):
            if not leader.leads or leader.paused:
                continue
            now = leader.core.state.membership
            met = {leader.node: self.strangers.lives[leader.node]}
            met |= self.strangers.met[leader.node]
            new = [node for node in now.members() if not now.incarnation(node) and node in met]
            if new and all(now.incarnation(node) or node in new for node in now.voters):
                changes = [
                    MemberChange(ChangeKind.INCARNATION, node, incarnation=str(met[node]))
                    for node in new
                ]
                leader.step(ChangeMembership(tuple(changes)))

    def liveness(self) -> int:
        """The founders that are left lead; whoever forgot what it was is replaced."""
        cluster = self.strangers
        self._heal()

        def strange() -> list[NodeId]:
            self.record()
            leader = cluster.leader()
            if leader is None:
                return [NodeId(0)]
            now = leader.core.state.membership
            if now.joint or leader.commit < leader.core.state.members.index:
                return [NodeId(0)]
            found = [
                node
                for node, named in now.incarnations
                if node in now.voters and named != str(cluster.lives[node])
            ]
            if found:
                leader.step(ChangeMembership((MemberChange(ChangeKind.REMOVE, found[0]),)))
            return found

        cluster.run_until(lambda: not strange(), 3 * LIVENESS_TICKS_MAX, "all are who they were")
        return super().liveness()


def run_wiping(seed: int, ticks: int) -> Wiping:
    """One seed's whole life."""
    chaos = Wiping(seed)
    try:
        chaos.safety(ticks)
        chaos.liveness()
    except AssertionError as error:
        raise AssertionError(f"seed {seed}: {error}\n{chaos.cluster.describe()}") from error
    return chaos
