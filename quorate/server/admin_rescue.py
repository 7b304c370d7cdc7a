"""Operators' calls that take in what a node's store alone has: see ``converging.rescuing``.

====================  ===============================  ==========================================
method                arguments                        result
====================  ===============================  ==========================================
crdt.lives            actors                           of each: {"actor", "since", "has", "why",
                                                       "waits"}, and {"members"}
crdt.rescue           actor                            {"since", "estate"}
crdt.merge            estate, delta                    {"node", "short": [[path, amount], ...]}
crdt.rescued          actor, estate, upto, node        {}, once it is in the log
====================  ===============================  ==========================================

All but the first, which any member answers, are for the leader, and may be done twice. *since*: the
records behind that one are to be rescued, -1: none, *why* says the reason, and *waits* whether it
passes. *has*: the last record that the member has. *node*: who took in all of it, and must still be
the one.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from quorate.crdt.dots import epoch_of, member_of
from quorate.errors import (
    CommandError,
    InvalidArgumentError,
    MembershipError,
    NotLeaderError,
    UnavailableError,
)
from quorate.replication.converging.lives import LivesCommand, Rescue, Rescued

if TYPE_CHECKING:
    from quorate.server.node import Node

#: How long the log may take.
LOG_TIMEOUT_S: Final = 5.0
#: How long it may take until so many voters have what was taken in that no quorum read misses it.
SPREAD_TIMEOUT_S: Final = 10.0
POLL_S: Final = 0.02


class RescueCalls:
    """The calls, for one node."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self.methods = {
            "crdt.lives": self._lives,
            "crdt.rescue": self._rescue,
            "crdt.merge": self._merge,
            "crdt.rescued": self._rescued,
        }

    def _check_leads(self) -> None:
        replica = self._node.replica
        if not replica.is_leader:
            raise NotLeaderError(f"node {replica.node_id} does not lead; node {replica.leader} may")

    def _members(self) -> list[int]:
        return [int(each) for each in self._node.replica.core.state.membership.members()]

    async def _lives(self, given: dict[str, Any]) -> object:
        actors = given.get("actors")
        if not isinstance(actors, list):
            raise InvalidArgumentError(f"actors must be a list of numbers, not {actors!r:.80}")
        frontier = self._node.parts.converging.engine.frontier
        lives = [
            {"actor": actor, **self._life(actor), "has": frontier.get(actor, 0)}
            for actor in (_number(each, "actors") for each in actors)
        ]
        return {"lives": lives, "members": self._members()}

    def _life(self, actor: int) -> dict[str, Any]:
        lives = self._node.lives_machine
        try:
            self._check_gone(actor)
            return {"since": lives.since(actor), "why": "", "waits": False}
        except (CommandError, MembershipError) as error:
            return {"since": -1, "why": str(error), "waits": lives.is_admitted(actor)}

    def _check_gone(self, actor: int) -> None:
        """Refuse a life that its own node can have admitted.

        Raises:
            MembershipError: it is of a member.
        """
        member = member_of(actor)
        if member in self._members() and self._node.lives_machine.admits(actor, over=True):
            raise MembershipError(
                f"node {member} is a member: start it, and what it did in life {epoch_of(actor)} "
                f"spreads by itself"
            )

    async def _rescue(self, given: dict[str, Any]) -> object:
        self._check_leads()
        actor = _number(given.get("actor"), "actor")
        lives = self._node.lives_machine
        self._check_gone(actor)
        since = lives.since(actor)
        if not lives.estate(actor):
            await self._proposed(Rescue(actor), lambda: bool(lives.estate(actor)))
        return {"since": since, "estate": lives.estate(actor)}

    async def _merge(self, given: dict[str, Any]) -> object:
        self._check_leads()
        estate, delta = _number(given.get("estate"), "estate"), given.get("delta")
        if not isinstance(delta, bytes):
            raise InvalidArgumentError(f"delta must be bytes, not {delta!r:.80}")
        if not self._node.lives_machine.is_rescuing(estate):
            raise CommandError(f"nothing is being rescued as life {estate}: begin anew")
        short = await self._node.parts.converging.rescuing.take(estate, delta)
        return {
            "node": int(self._node.node_id),
            "short": [[list(each.path), each.amount] for each in short],
        }

    async def _rescued(self, given: dict[str, Any]) -> object:
        self._check_leads()
        actor, estate, upto, node = (
            _number(given.get(name), name) for name in ("actor", "estate", "upto", "node")
        )
        if node != self._node.node_id:
            raise UnavailableError(f"node {node} took it in, and leads no more: begin anew")
        converging, lives = self._node.parts.converging, self._node.lives_machine
        after = converging.rescuing.after()
        voters = sorted(self._node.replica.core.state.membership.voters)
        await converging.levels.hand_over(voters, SPREAD_TIMEOUT_S)
        if lives.estate(actor) == estate:
            command = Rescued(actor, estate, upto, after)
            await self._proposed(command, lambda: lives.estate(actor) != estate)
        return {}

    async def _proposed(self, command: LivesCommand, so: Any) -> None:  # noqa: ANN401
        """Until the log says that it is *so*.

        Raises:
            UnavailableError: it does not.
        """
        loop = asyncio.get_running_loop()
        end_s = loop.time() + LOG_TIMEOUT_S
        self._node.parts.lifeline.propose(command)
        while not so():
            if loop.time() > end_s:
                raise UnavailableError(f"{type(command).__name__} has not come to be in the log")
            await asyncio.sleep(POLL_S)


def _number(value: object, name: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 1 << 64:
        raise InvalidArgumentError(f"{name} must be positive numbers of 64 bits, not {value!r:.80}")
    return value
