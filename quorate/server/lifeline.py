"""How a node gets a life from the log, whoever leads.

It asks the leader, which proposes it, and learns what came of it from the log: its own machines
tell whether the life is there. So nothing has to be answered, and asking again does no harm: the
number that the process drew when it began makes all its asking one. The leader takes such a request
from the member itself only, on the connection that their nodes have.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

import msgspec

from quorate.base.frames import Run, Submit, SubmitFailed
from quorate.base.types import NO_NODE, NodeId
from quorate.crdt.dots import make_actor
from quorate.errors import ClosedError, MembershipError, QuorateError
from quorate.replication.converging.lives import LIVES_MACHINE, Adopt, Begin, LivesCommand
from quorate.replication.proposals import SubmitAnswer, SubmitSink
from quorate.replication.transport import LifeRequest

if TYPE_CHECKING:
    from quorate.server.node import Node

_logger = logging.getLogger("quorate.lives")

#: How long the log may take before the leader, perhaps another one, is asked again.
ASK_AGAIN_S: Final = 0.25


class Lifeline:
    """The log's word on the lives of *node*, for which this process drew a number; and, while the
    node leads, on those of others."""

    def __init__(self, node: Node) -> None:
        self._node = node
        # So many bits that no other process has the same. Lives that ended before this process
        # began are not its own: it must never be given one of them.
        self._nonce, self._of_earlier = (
            1 + node._random.getrandbits(62)  # noqa: SLF001  the node's own part
            for _ in range(2)
        )
        self._applied = asyncio.Event()
        self._proposed: dict[NodeId, None] = {}

    @property
    def process(self) -> int:
        """The number that this process drew."""
        return self._nonce

    # --- this node's ----------------------------------------------------------------------------

    async def begin(self) -> int:
        """The life of this process, as the log has it: asks until it has. May be cancelled; then a
        life may have begun that nobody uses.

        Raises:
            MembershipError: the node was removed from the cluster.
            ClosedError: the node is stopping.
        """
        lives, me = self._node.lives_machine, self._node.node_id
        while True:
            epoch = lives.open_epoch(me)
            if epoch and lives.holder(make_actor(me, epoch)) == self._nonce:
                return epoch
            await self._ask(0, self._nonce)

    async def adopt(self, epoch: int) -> bool:
        """Have the log admit life *epoch*, which this process, or an earlier one of the node, began
        without it; False: it cannot have it (``LivesMachine.admits``). May be cancelled.

        Raises:
            MembershipError, ClosedError: as ``begin``.
        """
        lives, me = self._node.lives_machine, self._node.node_id
        actor = make_actor(me, epoch)
        over = actor != self._node.parts.converging.engine.own.actor
        nonce = self._of_earlier if over else self._nonce
        while True:
            if lives.holder(actor) == nonce:
                return True
            if not lives.admits(actor, over=over):
                return False
            await self._ask(epoch, nonce, over=over)

    async def _ask(self, epoch: int, nonce: int, *, over: bool = False) -> None:
        """Ask whoever leads, and wait for news: for as long as the log should take, or until more
        of it was applied and that may have come of it."""
        node = self._node
        if node.lives_machine.is_expelled(node.node_id):
            raise MembershipError(f"node {node.node_id} was removed from the cluster")
        if node.replica.stopped:
            raise ClosedError("the node is stopping")
        request = LifeRequest(node.node_id, nonce, epoch, over)
        leader = node.replica.leader
        if node.replica.is_leader:
            self.receive(request)
        elif leader != NO_NODE:
            node.parts.peers.send(leader, request)
        known = node.lives_machine.changes
        try:
            async with asyncio.timeout(ASK_AGAIN_S):
                while node.lives_machine.changes == known:
                    self._applied.clear()
                    await self._applied.wait()
        except TimeoutError:
            pass

    def applied(self) -> None:
        """The node has applied more of the log."""
        self._applied.set()

    # --- those of others, while this node leads -------------------------------------------------

    def receive(self, request: LifeRequest) -> None:
        """A member asks for a life, or for its life to be adopted. Dropped, if it cannot be
        proposed now: it will ask again."""
        node, member = self._node, request.sender
        replica = node.replica
        members = replica.core.state.membership.members()
        if not replica.is_leader or member not in members or member in self._proposed:
            return
        command = (
            Adopt(member, request.epoch, request.nonce, request.over)
            if request.epoch
            else Begin(member, request.nonce)
        )

        def sink(answer: SubmitAnswer) -> None:
            self._proposed.pop(member, None)
            if isinstance(answer, SubmitFailed):
                _logger.info("no life for node %d yet: %s", member, answer.message)

        if self._submit(command, sink):
            self._proposed[member] = None

    def propose(self, command: LivesCommand) -> None:
        """Put *command*, of the leader's own, into the log; what comes of it is seen there."""
        self._submit(command, _look_at_the_log)

    def _submit(self, command: LivesCommand, sink: SubmitSink) -> bool:
        run = Run(LIVES_MACHINE, msgspec.Raw(msgspec.msgpack.encode([command])))
        try:
            self._node.replica.submit(Submit(0, 0, 0, (run,)), sink)
        except QuorateError as error:
            _logger.info("%s cannot be proposed now: %s", type(command).__name__, error)
            return False
        return True


def _look_at_the_log(answer: SubmitAnswer) -> None:
    if isinstance(answer, SubmitFailed):
        _logger.info("what was proposed of lives failed: %s", answer.message)
