"""Who belongs to the cluster, and how that changes (thesis chapter 4, joint consensus).

A configuration is itself a log entry and holds from the moment it is *appended*; a follower that
truncates the entry falls back to the one before. ``MembershipHistory`` answers "which
configuration at index i", which must be the same on every node.

Raft assumes that a voter remembers its votes and its log. One whose disk was wiped does not, and
must not count under its old number (trap "wiped node"). So a configuration names the *incarnation*
of each member's data directory, and whoever has it in its log, committed or not, refuses any other.
Founders cannot name them yet: until all of them are named, an election needs every voter. Then a
wiped one and those that never heard of it elect nobody without one that knows better.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from itertools import pairwise

import msgspec

from quorate.base.invariants import must
from quorate.base.limits import INCARNATION_LENGTH_MAX, MEMBERS_MAX
from quorate.base.types import LogIndex, NodeId
from quorate.errors import MembershipError, WireFormatError


class Membership(msgspec.Struct, frozen=True, array_like=True):
    """One configuration. All tuples ascend.

    *voters_old* is empty except in a joint configuration (thesis 4.3), where decisions need a
    majority of both voter sets. *learners_next*: old voters that become learners when the joint
    configuration is left. *addresses*: "host:port" for every member. *incarnations*: of every
    member's data directory, "" while it is not known; all empty: nobody keeps account of them.
    """

    voters: tuple[NodeId, ...]
    voters_old: tuple[NodeId, ...] = ()
    learners: tuple[NodeId, ...] = ()
    learners_next: tuple[NodeId, ...] = ()
    addresses: tuple[tuple[NodeId, str], ...] = ()
    incarnations: tuple[tuple[NodeId, str], ...] = ()

    @property
    def joint(self) -> bool:
        return bool(self.voters_old)

    def is_voter(self, node: NodeId) -> bool:
        return node in self.voters or node in self.voters_old

    def members(self) -> tuple[NodeId, ...]:
        """Everybody who gets the log, ascending."""
        return tuple(sorted({*self.voters, *self.voters_old, *self.learners}))

    def address(self, node: NodeId) -> str | None:
        for member, address in self.addresses:
            if member == node:
                return address
        return None

    def incarnation(self, node: NodeId) -> str:
        """Of the data directory behind *node*, "" if it is not known."""
        for member, incarnation in self.incarnations:
            if member == node:
                return incarnation
        return ""

    def unmet(self) -> tuple[NodeId, ...]:
        """Voters whose data directory is not known, where account is kept: founders, at first."""
        return tuple(node for node, known in self.incarnations if not known and self.is_voter(node))

    def without_old(self) -> Membership:
        """The configuration that a joint one leads to."""
        must(self.joint, "only a joint configuration is left", membership=self)
        learners = tuple(sorted({*self.learners, *self.learners_next}))
        kept = {*self.voters, *learners}
        return Membership(
            voters=self.voters,
            learners=learners,
            addresses=tuple(pair for pair in self.addresses if pair[0] in kept),
            incarnations=tuple(pair for pair in self.incarnations if pair[0] in kept),
        )


class ChangeKind(enum.Enum):
    """What a change does with one member."""

    ADD_LEARNER = "add"
    PROMOTE = "promote"
    DEMOTE = "demote"
    REMOVE = "remove"
    ADDRESS = "address"
    INCARNATION = "incarnation"


class MemberChange(msgspec.Struct, frozen=True):
    """One wish. *address* counts for ``ADD_LEARNER`` and ``ADDRESS`` only, *incarnation* for
    ``INCARNATION``."""

    kind: ChangeKind
    node: NodeId
    address: str = ""
    incarnation: str = ""


class _Draft:
    """A configuration while changes are made to it."""

    def __init__(self, now: Membership) -> None:
        self.voters = set(now.voters)
        self.learners = set(now.learners)
        self.addresses = dict(now.addresses)
        self.incarnations = dict(now.incarnations)


def changed(now: Membership, changes: Sequence[MemberChange]) -> Membership:
    """The configuration to append for *changes*: joint if the voters change, else plain.

    Raises:
        MembershipError: a change that makes no sense, or would leave no voter.
    """
    must(not now.joint, "changes start from a plain configuration", now=now)
    if not changes:
        raise MembershipError("no change is named")
    if len({change.node for change in changes}) != len(changes):
        raise MembershipError("each node may be named once; do the second change after the first")
    draft = _Draft(now)
    for change in changes:
        _apply_change(change, draft)
    voters, learners = draft.voters, draft.learners
    if not voters:
        raise MembershipError("the change would leave no voter; add and promote another first")
    if len(voters) + len(learners) > MEMBERS_MAX:
        raise MembershipError(f"a cluster has at most {MEMBERS_MAX} members")
    new_voters = tuple(sorted(voters))
    if new_voters == now.voters:
        return Membership(
            voters=new_voters,
            learners=tuple(sorted(learners)),
            addresses=tuple(sorted(draft.addresses.items())),
            incarnations=tuple(sorted(draft.incarnations.items())),
        )
    demoted = learners & set(now.voters)
    kept = voters | learners | set(now.voters)
    addresses = {**dict(now.addresses), **draft.addresses}
    incarnations = {**dict(now.incarnations), **draft.incarnations}
    if incarnations:  # if account begins with this change, then of those who leave by it, too
        incarnations = {**dict.fromkeys(now.members(), ""), **incarnations}
    return Membership(
        voters=new_voters,
        voters_old=now.voters,
        learners=tuple(sorted(learners - demoted)),
        learners_next=tuple(sorted(demoted)),
        addresses=tuple(sorted((node, at) for node, at in addresses.items() if node in kept)),
        incarnations=tuple(sorted(pair for pair in incarnations.items() if pair[0] in kept)),
    )


def _apply_change(change: MemberChange, draft: _Draft) -> None:
    node, voters, learners = change.node, draft.voters, draft.learners
    known = node in voters or node in learners
    if change.kind is ChangeKind.ADD_LEARNER:
        if node < 1:
            raise MembershipError(f"a node id is 1 or more, not {node}")
        if known:
            raise MembershipError(f"node {node} is a member already")
        _refuse_taken(change, draft.addresses)
        learners.add(node)
        draft.addresses[node] = change.address
        if draft.incarnations:
            draft.incarnations[node] = ""
        return
    if not known:
        raise MembershipError(f"node {node} is not a member; members: {sorted(voters | learners)}")
    match change.kind:
        case ChangeKind.PROMOTE:
            if node in voters:
                raise MembershipError(f"node {node} is a voter already")
            learners.remove(node)
            voters.add(node)
        case ChangeKind.DEMOTE:
            if node in learners:
                raise MembershipError(f"node {node} is a learner already")
            voters.remove(node)
            learners.add(node)
        case ChangeKind.REMOVE:
            voters.discard(node)
            learners.discard(node)
            draft.addresses.pop(node, None)
            draft.incarnations.pop(node, None)
        case ChangeKind.ADDRESS:
            _refuse_taken(change, draft.addresses)
            draft.addresses[node] = change.address
        case ChangeKind.INCARNATION:
            _name_incarnation(change, draft)


def _name_incarnation(change: MemberChange, draft: _Draft) -> None:
    """Once and for all: who comes with another data directory has forgotten what it promised."""
    node, incarnation = change.node, change.incarnation
    if not 0 < len(incarnation) <= INCARNATION_LENGTH_MAX:
        raise MembershipError(f"an incarnation has 1 to {INCARNATION_LENGTH_MAX} characters")
    if draft.incarnations.get(node):
        raise MembershipError(f"node {node} has shown its data directory already")
    if not draft.incarnations:  # nobody kept account of them before
        draft.incarnations = dict.fromkeys(sorted(draft.voters | draft.learners), "")
    draft.incarnations[node] = incarnation


def _refuse_taken(change: MemberChange, addresses: dict[NodeId, str]) -> None:
    for other, address in sorted(addresses.items()):
        if address == change.address and other != change.node:
            raise MembershipError(f"{address} is the address of node {other} already")


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Membership)


def encode_membership(membership: Membership) -> bytes:
    """The payload of a membership entry; ``decode_membership`` reads it."""
    return _encoder.encode(membership)


def decode_membership(payload: bytes) -> Membership:
    """Raises WireFormatError, never a msgspec exception."""
    try:
        return _decoder.decode(payload)
    except msgspec.DecodeError as error:
        raise WireFormatError(f"not a membership: {error}") from error


def invalid_membership(payload: bytes) -> str | None:
    """Why *payload*, from another member, is no configuration to follow, or None."""
    try:
        membership = decode_membership(payload)
    except WireFormatError as error:
        return str(error)
    voters, old = membership.voters, membership.voters_old
    learners, following = membership.learners, membership.learners_next
    addressed = tuple(node for node, _address in membership.addresses)
    accounted = tuple(node for node, _incarnation in membership.incarnations)
    for ids in (voters, old, learners, following, addressed, accounted):
        if any(node < 1 for node in ids) or any(a >= b for a, b in pairwise(ids)):
            return f"node ids do not ascend from 1: {membership}"
    if not voters:
        return f"no voter is left: {membership}"
    if any(membership.is_voter(node) for node in learners):
        return f"a learner votes: {membership}"
    if any(node in voters or node not in old for node in following):
        return f"only a leaving voter becomes a learner next: {membership}"
    members = membership.members()
    if any(node not in members for node in addressed):
        return f"an address of a stranger: {membership}"
    if accounted not in ((), members):
        return f"incarnations of others than the members: {membership}"
    if any(len(text) > INCARNATION_LENGTH_MAX for _node, text in membership.incarnations):
        return f"an incarnation of more than {INCARNATION_LENGTH_MAX} characters: {membership}"
    if len(voters) + len(learners) + len(following) > MEMBERS_MAX or len(old) > MEMBERS_MAX:
        return f"more than {MEMBERS_MAX} members: {membership}"
    return None


class MembershipHistory:
    """The configuration at every index from the log's floor on."""

    def __init__(self, base: Membership, base_index: LogIndex) -> None:
        self._steps: list[tuple[LogIndex, Membership]] = [(base_index, base)]

    @property
    def current(self) -> Membership:
        return self._steps[-1][1]

    @property
    def index(self) -> LogIndex:
        """Index of the entry that made the current configuration."""
        return self._steps[-1][0]

    def at(self, index: LogIndex) -> Membership:
        """The configuration in force once the entry at *index* was appended."""
        return self.step_at(index)[1]

    def step_at(self, index: LogIndex) -> tuple[LogIndex, Membership]:
        """As ``at``, with the index of the entry that made it."""
        for step in reversed(self._steps):
            if step[0] <= index:
                return step
        return self._steps[0]

    def votes_since(self, index: LogIndex, node: NodeId) -> bool:
        """Whether *node* is a voter of the configuration at *index* or of a later one."""
        for at, membership in reversed(self._steps):
            if membership.is_voter(node):
                return True
            if at <= index:
                return False
        return False

    def append(self, index: LogIndex, membership: Membership) -> None:
        must(index > self.index, "configurations come in log order", index=index, last=self.index)
        self._steps.append((index, membership))

    def truncate(self, last: LogIndex) -> bool:
        """Forget configurations after *last* (Raft 5.3 undone); True if the current one changed."""
        before = len(self._steps)
        while len(self._steps) > 1 and self._steps[-1][0] > last:
            self._steps.pop()
        return len(self._steps) != before

    def compact(self, floor: LogIndex) -> None:
        """Forget what was replaced at or before *floor*."""
        while len(self._steps) > 1 and self._steps[1][0] <= floor:
            del self._steps[0]

    def reset(self, base: Membership, base_index: LogIndex) -> None:
        self._steps = [(base_index, base)]
