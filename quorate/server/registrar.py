"""What only a leader may record in the log: incarnations of members, its own new address, and which
machines are in force."""

from __future__ import annotations

import asyncio
import logging

import msgspec

from quorate.base.frames import Run, Submit, SubmitFailed
from quorate.base.types import NodeId, Term
from quorate.consensus.events import ChangeMembership
from quorate.consensus.membership import ChangeKind, MemberChange, Membership
from quorate.consensus.output import Refusal, Role
from quorate.errors import QuorateError
from quorate.replication.cluster import ClusterMachine, Pin
from quorate.replication.proposals import SubmitAnswer
from quorate.replication.replica import Replica
from quorate.server.upgrading import Upgrades
from quorate.storage.directory import Identity

_logger = logging.getLogger("quorate.registrar")


class Registrar:
    """*address*: how others reach this node."""

    def __init__(
        self,
        identity: Identity,
        address: str,
        machine: ClusterMachine,
        replica: Replica,
        upgrades: Upgrades,
    ) -> None:
        self._identity = identity
        self._address = address
        self._machine = machine
        self._replica = replica
        self._shown: dict[NodeId, str] = {identity.node: identity.incarnation}
        self._upgrades = upgrades
        self._pinning = False
        self._waits = False  # a change was refused that will pass in a moment
        self._tended_term = Term(0)

    def on_applied(self) -> None:
        """Called after every applied slice: a new leader records its members at once, with its
        first entry. Until it has, nobody tells a founder that was wiped from the one it was, and
        nobody leads without the votes of all."""
        state = self._replica.core.state
        if state.role is not Role.LEADER:
            return
        if self._waits and state.members.index <= state.commit:
            self._waits = False
            asyncio.get_running_loop().call_soon(self.tend)
        if state.term == self._tended_term:
            return
        if state.log.term_at(state.commit) == state.term:
            self._tended_term = state.term
            asyncio.get_running_loop().call_soon(self.tend)  # the core may be amid a step

    def shown(self, node: NodeId, incarnation: str) -> None:
        """Member *node* keeps its data under *incarnation*, as it has shown in a handshake, on a
        connection of either's making."""
        self._shown[node] = incarnation

    def tend(self) -> None:
        """Record what is not recorded yet; harmless on a node that does not lead."""
        replica = self._replica
        state = replica.core.state
        if not replica.is_leader or replica.stopped:
            return
        if state.log.term_at(state.commit) != state.term:
            return
        for wanted in (self._incarnations, self._own_address):
            changes = wanted(state.membership)
            if changes:
                refusal = replica.step(ChangeMembership(changes)).refusal
                self._waits |= refusal is Refusal.CHANGE_PENDING
        pins = [
            Pin(node, incarnation)
            for node, incarnation in state.membership.incarnations
            if incarnation and not self._machine.incarnation(node)
        ]
        if pins and not self._pinning:
            self._pin(pins)
        self._upgrades.tend()

    def _own_address(self, now: Membership) -> tuple[MemberChange, ...]:
        node = self._identity.node
        if now.address(node) in (None, self._address):
            return ()
        return (MemberChange(ChangeKind.ADDRESS, node, self._address),)

    def _incarnations(self, now: Membership) -> tuple[MemberChange, ...]:
        """Of those who have shown theirs since. Of voters all at once: the record of the founders
        ends the time in which elections need all of them, and must not begin it again."""
        new = [
            MemberChange(ChangeKind.INCARNATION, node, incarnation=self._shown[node])
            for node in now.members()
            if not now.incarnation(node) and node in self._shown
        ]
        named = {change.node for change in new}
        voters = {*now.voters, *now.voters_old}
        if any(not now.incarnation(node) and node not in named for node in voters):
            return ()
        return tuple(new)

    def _pin(self, pins: list[Pin]) -> None:
        run = Run(ClusterMachine.name, msgspec.Raw(msgspec.msgpack.encode(pins)))

        def sink(answer: SubmitAnswer) -> None:
            self._pinning = False
            if isinstance(answer, SubmitFailed):
                _logger.info("members not pinned yet: %s", answer.message)

        try:
            self._replica.submit(Submit(0, 0, 0, (run,)), sink)
            self._pinning = True
        except QuorateError as error:
            _logger.info("members not pinned yet: %s", error)
