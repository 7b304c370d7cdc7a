"""Operators' calls: status, members, leadership, checkpoints. Methods of ``AdminRequest``.

====================  ===============================  ==========================================
method                arguments                        result
====================  ===============================  ==========================================
status                                                 see ``Node.status``
members.list                                           {"members": [...], "joint": bool}
members.add           node, address                    the list, once the learner is committed
members.promote       node                             likewise; waits until it has caught up
members.demote        node                             likewise
members.remove        node                             likewise
members.address       node, address                    likewise
leader.transfer       target (0: the best one),        {"leader": node}; done already if the
                      source (0: any)                  target, or another than source, leads
checkpoint                                             {"index": log index}
machines.upgrade      name                             {"machine", "version", "before", "behind"}
crdt.digest                                            {"digest", "generation", "folds",
                                                       "retired", "frontier"}
====================  ===============================  ==========================================

A change with the argument *again* is done if it is already so: a client sends it when the answer
to the first sending was lost. Changes work at the leader only; elsewhere the error names it, and
the client goes there. Calls that rescue CRDT data are in ``admin_rescue``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from quorate.base.frames import AdminRequest
from quorate.base.types import NO_NODE, LogIndex, NodeId, Term
from quorate.client.endpoints import parse_endpoint
from quorate.consensus.events import ChangeMembership, TransferLeadership
from quorate.consensus.membership import ChangeKind, MemberChange
from quorate.consensus.output import Refusal
from quorate.consensus.quorum import has_quorum
from quorate.errors import (
    InvalidArgumentError,
    MembershipError,
    NotLeaderError,
    OutcomeUnknownError,
    TransferError,
    TransferRefusedError,
    UnavailableError,
)
from quorate.server.admin_rescue import RescueCalls
from quorate.server.clients import describe_members

if TYPE_CHECKING:
    from quorate.server.node import Node

#: How long a change may take, its learner's catching up included, before its caller is told that
#: it has not finished (it may still).
CHANGE_TIMEOUT_S: Final = 60.0
TRANSFER_TIMEOUT_S: Final = 5.0
#: How long those who are to vote may take to catch up with the CRDT data of those who do.
HAND_OVER_TIMEOUT_S: Final = 10.0
POLL_S: Final = 0.01

#: Refusals that pass by themselves in a moment.
_PASSING: Final = (
    Refusal.TERM_NOT_COMMITTED,
    Refusal.CHANGE_PENDING,
    Refusal.LEARNER_BEHIND,
    Refusal.TRANSFERRING,
)


class Admin:
    """Implements ``clients.Operations`` for one node."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._methods: Mapping[str, Callable[[dict[str, Any]], Awaitable[object]]] = {
            "status": self._status,
            "members.list": self._members,
            "members.add": self._add,
            "members.promote": lambda given: self._change(ChangeKind.PROMOTE, given),
            "members.demote": lambda given: self._change(ChangeKind.DEMOTE, given),
            "members.remove": lambda given: self._change(ChangeKind.REMOVE, given),
            "members.address": lambda given: self._change(ChangeKind.ADDRESS, given),
            "leader.transfer": self._transfer,
            "checkpoint": self._checkpoint,
            "machines.upgrade": self._upgrade,
            "crdt.digest": self._crdt_digest,
            **RescueCalls(node).methods,
        }

    async def call(self, request: AdminRequest) -> object:
        """Run one call; returns plain msgpack values.

        Raises:
            InvalidArgumentError: no such method, or wrong arguments.
            QuorateError: as the method says.
        """
        method = self._methods.get(request.method)
        if method is None:
            raise InvalidArgumentError(
                f"no method {request.method[:64]!r}; there are {', '.join(self._methods)}"
            )
        return await method(request.arguments)

    async def _status(self, _given: dict[str, Any]) -> object:
        return self._node.status()

    async def _members(self, _given: dict[str, Any]) -> object:
        return self._member_list()

    def _member_list(self) -> dict[str, Any]:
        state = self._node.replica.core.state
        in_force = state.members.at(state.commit)
        return {
            "members": [
                {"node": member.node, "address": member.address, "role": member.role}
                for member in describe_members(state.membership)
            ],
            "joint": state.membership.joint or in_force.joint,
        }

    # --- membership ------------------------------------------------------------------------------

    async def _add(self, given: dict[str, Any]) -> object:
        node = _node_argument(given, "node")
        again = given.get("again") is True
        known = self._node.replica.core.state.membership.address(node)
        if self._node.pinned(node) and not (again and known == str(given.get("address", ""))):
            raise MembershipError(
                f"number {node} was used before in this cluster, by a member with its own votes "
                "and log; give the new node a number never used"
            )
        return await self._change(ChangeKind.ADD_LEARNER, given)

    async def _change(self, kind: ChangeKind, given: dict[str, Any]) -> object:
        node = _node_argument(given, "node")
        address = ""
        if kind in (ChangeKind.ADD_LEARNER, ChangeKind.ADDRESS):
            address = str(given.get("address", ""))
            parse_endpoint(address)
        change = MemberChange(kind, node, address)
        deadline_s = asyncio.get_running_loop().time() + CHANGE_TIMEOUT_S
        again = given.get("again") is True
        await self._hand_over(change)
        proposed = await self._propose_change(change, deadline_s, again=again)
        if proposed is not None:
            await self._committed(*proposed, deadline_s)
        return self._member_list()

    async def _hand_over(self, change: MemberChange) -> None:
        """Before others vote, let them have the CRDT data that a majority has: see ``Levels``.

        Raises:
            MembershipError: they did not get it in time; nothing was changed.
        """
        replica = self._node.replica
        membership = replica.core.state.membership
        voters = set(membership.voters)
        if change.kind is ChangeKind.PROMOTE:
            voters.add(change.node)
        elif change.kind in (ChangeKind.DEMOTE, ChangeKind.REMOVE):
            voters.discard(change.node)
        if not replica.is_leader or voters == set(membership.voters) or not voters:
            return
        await self._applied_all_before()
        levels = self._node.parts.converging.levels
        try:
            await levels.hand_over(sorted(voters), HAND_OVER_TIMEOUT_S)
        except UnavailableError as error:
            raise MembershipError(f"the change was not made: {error}") from error

    async def _applied_all_before(self) -> None:
        """Until this node, if it leads, has applied all that was committed before it did.

        Raises:
            MembershipError: that took too long; nothing was changed.
        """
        replica = self._node.replica
        state = replica.core.state
        loop = asyncio.get_running_loop()
        end_s = loop.time() + HAND_OVER_TIMEOUT_S
        while replica.is_leader and not replica.stopped:
            commit = state.commit
            if state.log.term_at(commit) == state.term and replica.applied >= commit:
                return
            if loop.time() > end_s:
                raise MembershipError(
                    "the change was not made: the leader is new, and does not know yet all that "
                    "was committed before; try again in a moment"
                )
            await asyncio.sleep(POLL_S)

    def _is_so(self, kind: ChangeKind, node: NodeId, address: str) -> bool:
        """Whether a change that is asked for again, because its answer was lost, was made."""
        membership = self._node.replica.core.state.membership
        match kind:
            case ChangeKind.ADD_LEARNER | ChangeKind.ADDRESS:
                return membership.address(node) == address
            case ChangeKind.PROMOTE:
                return node in membership.voters
            case ChangeKind.DEMOTE:
                return node in membership.learners
            case ChangeKind.REMOVE:
                return node not in membership.members()
            case ChangeKind.INCARNATION:
                return bool(membership.incarnation(node))

    async def _propose_change(
        self, change: MemberChange, deadline_s: float, *, again: bool
    ) -> tuple[LogIndex, Term] | None:
        """Once the guards let it through; what passes by itself is waited for. None: it was asked
        for *again*, and is so already."""
        replica = self._node.replica
        loop = asyncio.get_running_loop()
        state = replica.core.state
        while True:
            settled = not state.membership.joint and state.members.index <= state.commit
            if again and settled and self._is_so(change.kind, change.node, change.address):
                if not replica.is_leader:
                    raise NotLeaderError("what this node knows may be of yesterday")
                return None
            if again and not settled and replica.is_leader and loop.time() <= deadline_s:
                await asyncio.sleep(POLL_S)  # what is under way may be what was asked for
                continue
            output = replica.step(ChangeMembership((change,)))
            if output.refusal is None:
                if replica.stopped:
                    raise NotLeaderError("the node is stopping")
                return output.proposed, replica.core.state.term
            reason = output.refusal_detail or output.refusal.value
            if output.refusal is Refusal.NOT_LEADER:
                raise NotLeaderError(
                    f"node {replica.node_id} does not lead; node {replica.leader} may"
                )
            if output.refusal not in _PASSING or loop.time() > deadline_s:
                raise MembershipError(f"the change was refused: {reason}")
            await asyncio.sleep(POLL_S)

    async def _committed(self, index: LogIndex, term: Term, deadline_s: float) -> None:
        """Until the change is in force, and what leaves the joint configuration it needed is
        committed, too: before that, who is removed may still be needed."""
        replica = self._node.replica
        state = replica.core.state
        loop = asyncio.get_running_loop()
        while True:
            if replica.stopped or loop.time() > deadline_s:
                raise OutcomeUnknownError("the change was proposed, but not seen to finish")
            in_log = index <= state.log.floor.index or state.log.term_at(index) == term
            if not in_log:
                raise OutcomeUnknownError("another leader took over; look at the list of members")
            made, in_force = state.members.step_at(state.commit)
            if state.commit >= index and not (in_force.joint and made == index):
                return
            await asyncio.sleep(POLL_S)

    # --- leadership and checkpoints --------------------------------------------------------------

    async def _transfer(self, given: dict[str, Any]) -> object:
        target = source = NodeId(NO_NODE)
        if given.get("target"):
            target = _node_argument(given, "target")
        elif given.get("source"):
            source = _node_argument(given, "source")
        replica = self._node.replica
        if source not in (NO_NODE, replica.node_id) and replica.is_leader:
            return {"leader": replica.node_id}
        return {"leader": await self.transfer(target)}

    async def transfer(self, target: NodeId, hopeful: Callable[[], bool] = lambda: True) -> NodeId:
        """Hand leadership over to *target*, 0: to the best follower; returns the new leader.
        It is waited for no longer than *hopeful* says that it may come.

        Raises:
            NotLeaderError: this node does not lead.
            TransferRefusedError: it did not begin.
            TransferError: it did not finish in time.
        """
        replica = self._node.replica
        if target == replica.node_id and replica.is_leader:
            return target
        output = replica.step(TransferLeadership(target))
        if output.refusal is Refusal.NOT_LEADER:
            raise NotLeaderError(f"node {replica.node_id} does not lead; node {replica.leader} may")
        under_way = replica.core.state.transfer_target
        same = output.refusal is Refusal.TRANSFERRING and target in (NO_NODE, under_way)
        if output.refusal is not None and not same:  # asked again: wait for the one under way
            reason = output.refusal_detail or output.refusal.value
            raise TransferRefusedError(f"not handed over: {reason}")
        loop = asyncio.get_running_loop()
        end_s = loop.time() + TRANSFER_TIMEOUT_S
        while loop.time() < end_s and not replica.stopped and hopeful():
            if not replica.is_leader and replica.leader != NO_NODE:
                return replica.leader
            if replica.is_leader and replica.core.state.transfer_target == NO_NODE:
                raise TransferError("the target did not take over in time; this node leads on")
            await asyncio.sleep(POLL_S)
        raise TransferError("this node gave up leading, and knows of no new leader yet")

    async def hand_over(self) -> None:
        """Before this node stops: if it leads, give leadership to the connected voter with the
        longest log. No time is lost on members that are not there, as when all stop together.

        Raises:
            TransferRefusedError: too few members are connected to elect another leader.
            TransferError: it did not finish in time, or they have gone meanwhile.
        """
        replica = self._node.replica
        state = replica.core.state
        if not replica.is_leader or set(state.membership.voters) == {replica.node_id}:
            return
        able = self._able_to_lead()
        if not able:
            raise TransferRefusedError("too few members are connected to elect another leader")
        target = max(able, key=lambda node: state.progress[node].match)
        await self.transfer(target, hopeful=lambda: target in self._able_to_lead())

    def _able_to_lead(self) -> list[NodeId]:
        """Connected voters other than this one, if they and this one are enough to elect one."""
        own, members = self._node.node_id, self._node.replica.core.state.membership
        connected = self._node.parts.peers.connected()
        present = dict.fromkeys((*members.voters, *members.voters_old), False)
        present |= dict.fromkeys((own, *connected), True)
        if not has_quorum(members.voters, members.voters_old, present):
            return []
        return [node for node in connected if node in members.voters and node != own]

    async def _checkpoint(self, _given: dict[str, Any]) -> object:
        return {"index": await self._node.checkpoint()}

    async def _upgrade(self, given: dict[str, Any]) -> object:
        name = given.get("name")
        if not isinstance(name, str):
            raise InvalidArgumentError(f"name must be that of a machine, not {name!r}")
        return await self._node.parts.upgrades.upgrade(name)

    async def _crdt_digest(self, _given: dict[str, Any]) -> object:
        """What tells at a glance whether two nodes hold the same CRDT data; and which lives are
        folded away in it, by member the last one."""
        converging = self._node.parts.converging
        engine = converging.engine
        return {
            "digest": await converging.digest(),
            "generation": engine.own.generation,
            "folds": engine.folds,
            "retired": {str(member): epoch for member, epoch in sorted(engine.own.retired.items())},
            "frontier": [list(pair) for pair in sorted(engine.frontier.items())],
        }


def _node_argument(given: dict[str, Any], name: str) -> NodeId:
    value = given.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 2**31:
        raise InvalidArgumentError(f"{name} must be the number of a node, not {value!r}")
    return NodeId(value)
