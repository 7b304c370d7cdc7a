"""Scenario files: a script of commands for a small cluster, and the exact trace of what it does.

A file is a list of blocks, parted by blank lines. A block is comments (``#``), commands, a line
``----`` and the trace. Nothing happens by itself: no clock runs, messages wait on the wire until
``deliver``, writes finish at once unless ``hold-disk``. Random timeouts are drawn, but scenarios
do not meet them: they ``campaign`` by name.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

from quorate.base.types import LogIndex, NodeId
from quorate.consensus.events import (
    ChangeMembership,
    Event,
    PeerLost,
    PeerReached,
    ReadIndex,
    SnapshotOffered,
    SnapshotSent,
    Tick,
    TransferLeadership,
)
from quorate.consensus.membership import ChangeKind, MemberChange, Membership, decode_membership
from quorate.consensus.messages import (
    AppendReply,
    AppendRequest,
    Entry,
    EntryKind,
    Heartbeat,
    HeartbeatReply,
    Message,
    ReadIndexReply,
    ReadIndexRequest,
    TimeoutNow,
    VoteReply,
    VoteRequest,
)
from quorate.consensus.output import Output
from tests.consensus.harness import Cluster, Member, plain, quick_config

KINDS = {
    "add": ChangeKind.ADD_LEARNER,
    "promote": ChangeKind.PROMOTE,
    "demote": ChangeKind.DEMOTE,
    "remove": ChangeKind.REMOVE,
}

#: Messages that one ``deliver`` may deliver; more go round in circles.
DELIVERIES_MAX = 500


def show_membership(membership: Membership) -> str:
    shown = ",".join(map(str, membership.voters))
    if membership.joint:
        shown += " <- " + ",".join(map(str, membership.voters_old))
    if membership.learners:
        shown += " learners " + ",".join(map(str, membership.learners))
    if membership.learners_next:
        shown += " next " + ",".join(map(str, membership.learners_next))
    return f"({shown})"


def show_entry(entry: Entry) -> str:
    what = EntryKind(entry.kind).name.lower()
    if entry.kind == EntryKind.MEMBERSHIP:
        what = show_membership(decode_membership(entry.payload))
    elif entry.kind == EntryKind.BATCH:
        what = repr(entry.payload.decode())
    return f"{entry.index}/{entry.term} {what}"


def show(message: Message) -> str:
    head = f"{message.sender}->{message.target} t{message.term} "
    match message:
        case VoteRequest():
            kind = "PreVote" if message.pre else "Vote"
            extra = " transfer" if message.transfer else ""
            return head + f"{kind}? last {message.last_index}/{message.last_term}{extra}"
        case VoteReply():
            kind = "PreVote" if message.pre else "Vote"
            return head + f"{kind} {'granted' if message.granted else 'refused'}"
        case AppendRequest():
            entries = ", ".join(map(show_entry, message.entries)) or "nothing"
            return head + (
                f"Append after {message.prev_index}/{message.prev_term}: {entries}; "
                f"commit {message.commit}"
            )
        case AppendReply() if message.ok:
            return head + f"AppendReply ok {message.index}"
        case AppendReply():
            return head + (
                f"AppendReply refused {message.index}, "
                f"hint {message.hint_index}/{message.hint_term}"
            )
        case Heartbeat():
            return head + f"Heartbeat round {message.round} commit {message.commit}"
        case HeartbeatReply():
            return head + (
                f"HeartbeatReply round {message.round} verified {message.verified} "
                f"durable {message.durable}"
            )
        case ReadIndexRequest():
            return head + f"ReadIndex? {message.context}"
        case ReadIndexReply():
            return head + f"ReadIndex {message.context} is {message.index or 'refused'}"
        case TimeoutNow():
            return head + "TimeoutNow"


class Scenario:
    """Interprets one file. Each method ``do_x`` is the command ``x``; its words are arguments."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.cluster = Cluster()
        self.last: Message | None = None

    # --- the file -------------------------------------------------------------------------------

    def run(self, text: str) -> str:
        """The same text with the traces that the commands give now."""
        blocks = []
        for block in text.strip("\n").split("\n\n"):
            script = block.split("\n----")[0].splitlines()
            self.lines = []
            for line in script:
                words = shlex.split(line, comments=True)
                if words:
                    self._command(words)
            blocks.append("\n".join([*script, "----", *(self.lines or ["ok"])]))
        return "\n\n".join(blocks) + "\n"

    def _command(self, words: list[str]) -> None:
        name = words[0].replace("-", "_")
        command: Callable[..., None] = getattr(self, f"do_{name}")
        try:
            command(*words[1:])
        except AssertionError as error:
            raise AssertionError(f"{' '.join(words)}: {error}") from error

    def _say(self, text: str) -> None:
        self.lines.append(text)

    def _trace(self, member: Member, _event: Event, output: Output) -> None:
        """What a step decided, apart from its messages, which show when they are delivered."""
        node = member.node
        if output.refusal is not None:
            detail = f": {output.refusal_detail}" if output.refusal_detail else ""
            self._say(f"  {node} refuses: {output.refusal.value}{detail}")
        if output.role_change is not None:
            change = output.role_change
            whom = f", leader {change.leader}" if change.leader else ""
            self._say(f"  {node} is {change.role.value} in term {change.term}{whom}")
        if output.install is not None:
            self._say(f"  {node} installs {output.install.index}/{output.install.term}")
        if output.persist is not None:
            entries = ", ".join(map(show_entry, output.persist.entries))
            hard = output.persist.hard_state
            self._say(f"  {node} persists term {hard.term} vote {hard.vote} [{entries}]")
        if output.membership is not None:
            self._say(f"  {node} follows {show_membership(output.membership)}")
        if output.commit:
            self._say(f"  {node} commits {output.commit}")
        for read in output.read_states:
            self._say(f"  {node} may read {read.context} at {read.index or 'nothing: refused'}")

    def _member(self, node: str) -> Member:
        return self.cluster.members[NodeId(int(node))]

    # --- commands -------------------------------------------------------------------------------

    def do_cluster(self, voters: str, *more: str) -> None:
        """cluster 1,2,3 [learners=4] [leases] [no-fast-failover] [name=number of the config]"""
        settings: dict[str, int] = {}
        learners: list[int] = []
        for word in more:
            name, _, value = word.partition("=")
            if name == "learners":
                learners = [int(node) for node in value.split(",")]
            else:
                settings[name.replace("-", "_")] = int(value)
        self.cluster = Cluster(config=lambda node: quick_config(node, **settings))
        self.cluster.instant_disks = True
        self.cluster.on_trace = self._trace
        self.cluster.found(plain(map(int, voters.split(",")), learners))

    def do_node(self, node: str) -> None:
        """A new node with an empty disk."""
        self.cluster.add(NodeId(int(node))).start()

    def do_campaign(self, *nodes: str) -> None:
        """The election timeout of each passes now."""
        for node in nodes:
            member = self._member(node)
            state = member.core.state
            member.step(Tick(state.election_timeout - state.elapsed, member.now_ms))

    def do_elect(self, node: str) -> None:
        """campaign, and everything delivered, untraced but for the result."""
        before, self.lines = self.lines, []
        for member in self.cluster.members.values():
            member.core.state.sticky_until = member.core.state.tick
        self.do_campaign(node)
        self.do_deliver()
        state = self._member(node).core.state
        self.lines = [*before, f"  {node} is {state.role.value} in term {state.term}"]

    def do_tick(self, nodes: str, count: str = "1") -> None:
        """That many ticks, one after another, on each of the nodes (1,2,3)."""
        for _ in range(int(count)):
            for node in nodes.split(","):
                member = self._member(node)
                member.clock += 1
                member.step(Tick(1, member.now_ms))

    def do_deliver(self, *only: str) -> None:
        """deliver [FROM->TO …]: what waits on the wire, until nothing is left that matches."""
        for _ in range(DELIVERIES_MAX):
            chosen = next((item for item in sorted(self.cluster.wire, key=lambda item: item[1])
                           if self._wanted(item[2], only)), None)  # fmt: skip
            if chosen is None:
                break
            self.cluster.wire.remove(chosen)
            target = self.cluster.members.get(chosen[2].target)
            up = target is not None and target.alive
            self._say(show(chosen[2]) + ("" if up else " (nobody there)"))
            self.cluster.deliver(chosen[2])
        else:
            raise AssertionError(f"more than {DELIVERIES_MAX} messages: do they end?")
        self._run_jobs()

    def do_deliver_one(self, only: str) -> None:
        """The oldest message from->to, and a copy stays for ``repeat``."""
        item = min((i for i in self.cluster.wire if self._wanted(i[2], (only,))),
                   key=lambda item: item[1])  # fmt: skip
        self.cluster.wire.remove(item)
        self._say(show(item[2]))
        self.cluster.deliver(item[2])
        self.last = item[2]

    def do_repeat(self) -> None:
        """The message of the last ``deliver-one`` arrives again."""
        assert self.last is not None, "repeat follows deliver-one"
        self._say(show(self.last) + " (again)")
        self.cluster.deliver(self.last)

    def do_drop(self, *only: str) -> None:
        """drop [FROM->TO …]: what matches of what waits on the wire is lost."""
        for item in sorted(self.cluster.wire, key=lambda item: item[1]):
            if self._wanted(item[2], only):
                self.cluster.wire.remove(item)
                self._say(show(item[2]) + " (lost)")

    def do_wire(self) -> None:
        """What waits on the wire."""
        for item in sorted(self.cluster.wire, key=lambda item: item[1]):
            self._say(show(item[2]))

    @staticmethod
    def _wanted(message: Message, only: tuple[str, ...]) -> bool:
        """``1->2``, ``*->2``, ``1->*``."""
        for pattern in only:
            sender, target = pattern.split("->")
            if sender in {"*", str(message.sender)} and target in {"*", str(message.target)}:
                return True
        return not only

    def do_propose(self, node: str, *payloads: str) -> None:
        for payload in payloads:
            self.cluster.propose(self._member(node), payload.encode())

    def do_change(self, node: str, *wishes: str) -> None:
        """change LEADER add=4 promote=4 demote=2 remove=3"""
        changes = []
        for wish in wishes:
            kind, other = wish.split("=")
            address = f"n{other}:1" if kind == "add" else ""
            changes.append(MemberChange(KINDS[kind], NodeId(int(other)), address))
        self._member(node).step(ChangeMembership(tuple(changes)))

    def do_transfer(self, node: str, target: str = "0") -> None:
        self._member(node).step(TransferLeadership(NodeId(int(target))))

    def do_read(self, node: str, context: str) -> None:
        member = self._member(node)
        member.step(ReadIndex(int(context), member.now_ms))

    def do_hold_disk(self, node: str) -> None:
        """Writes of this node wait for ``finish-disk``."""
        self._member(node).instant_disk = False

    def do_finish_disk(self, node: str, count: str = "1000") -> None:
        self._member(node).finish_writes(int(count))

    def do_release_disk(self, node: str) -> None:
        self._member(node).instant_disk = True
        self._member(node).finish_writes()

    def do_crash(self, node: str, durable_writes: str = "0") -> None:
        """Of the writes under way that many reached the disk."""
        self._member(node).crash(int(durable_writes))

    def do_start(self, node: str) -> None:
        self._member(node).start()
        self.do_status(node)

    def do_cut(self, *pairs: str) -> None:
        """cut 1->2 2->1: what is sent from now on is lost."""
        for pair in pairs:
            sender, target = pair.split("->")
            self.cluster.blocked[NodeId(int(sender)), NodeId(int(target))] = True

    def do_isolate(self, *nodes: str) -> None:
        for node in nodes:
            for other in self.cluster.members:
                self.cluster.blocked[NodeId(int(node)), other] = True
                self.cluster.blocked[other, NodeId(int(node))] = True

    def do_heal(self) -> None:
        self.cluster.blocked.clear()

    def do_lost(self, node: str, other: str) -> None:
        self._member(node).step(PeerLost(NodeId(int(other))))

    def do_reached(self, node: str, other: str) -> None:
        self._member(node).step(PeerReached(NodeId(int(other))))

    def do_compact(self, node: str, keep: str = "0") -> None:
        """Checkpoint, and cut the log behind it."""
        member = self._member(node)
        member.checkpoint()
        member.compact(int(keep))
        self._say(f"  {node} begins after {member.core.state.log.floor.index}")

    def do_offer(self, node: str, sender: str) -> None:
        """The checkpoint of *sender* arrives, late or unasked for."""
        source = self._member(sender)
        checkpoint = source.disk.checkpoint
        offer = SnapshotOffered(
            term=source.core.state.term,
            sender=source.node,
            id=checkpoint.id,
            membership=checkpoint.membership,
            membership_index=checkpoint.membership_index,
        )
        said = self._member(node).offer(offer)
        self._say(f"  {node} says it {'has' if said else 'does not have'} {checkpoint.id.index}")

    def do_snapshot_failed(self, node: str, target: str, index: str) -> None:
        """The stream to *target* broke."""
        self.cluster.jobs.clear()
        report = SnapshotSent(NodeId(int(target)), LogIndex(int(index)), ok=False)
        self._member(node).step(report)

    def do_unstick(self, *nodes: str) -> None:
        """The time in which these refuse votes, because they heard a leader, is over."""
        for node in nodes:
            state = self._member(node).core.state
            state.sticky_until = state.tick

    def do_log(self, *nodes: str) -> None:
        for node in nodes:
            member = self._member(node)
            entries = ", ".join(map(show_entry, member.log))
            floor = member.core.state.log.floor
            self._say(f"  {node}: after {floor.index}/{floor.term}: {entries}")

    def do_status(self, *nodes: str) -> None:
        for node in nodes or map(str, self.cluster.members):
            member = self._member(node)
            state = member.core.state
            if not member.alive:
                self._say(f"  {node}: down")
                continue
            whom = f" leader {state.leader}" if state.leader else ""
            self._say(
                f"  {node}: {state.role.value} term {state.term} vote {state.vote}{whom} "
                f"commit {state.commit} last {state.log.last_index}/{state.log.last_term} "
                f"durable {state.persisted} {show_membership(state.membership)}"
            )

    def do_followers(self, node: str) -> None:
        for follower in self._member(node).core.status().followers:
            self._say(
                f"  {follower.node}: {follower.state} match {follower.match} next {follower.next}"
            )

    def _run_jobs(self) -> None:
        """Snapshots under way arrive, and are reported."""
        while self.cluster.jobs:
            job = self.cluster.jobs.pop(0)
            self._say("snapshot")
            job[2]()
            self.do_deliver()


def rewrite(path: Path) -> str:
    """The file as it should be."""
    return Scenario().run(path.read_text("utf-8"))
