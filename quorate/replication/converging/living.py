"""Whose life a node writes as: has the log give it one, or begins one without it.

Every start of a node is another life, so no dot is ever given twice, whatever became of the disk
meanwhile. A node that cannot reach the log when a write comes begins one by itself, under a number
far enough above all that it knows of; others take nothing of that life until the log admits it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from random import Random
from typing import TYPE_CHECKING, Final, Protocol

from quorate.crdt.dots import epoch_of, member_of
from quorate.errors import QuorateError

if TYPE_CHECKING:
    from quorate.replication.converging.engine import Engine

_logger = logging.getLogger("quorate.crdt")

#: How long the first write of a life waits for the log before it does without.
IMPROVISE_S: Final = 2.0
#: Above all known lives by this much, and by up to 2**16 more, a life begins without the log.
IMPROVISED_ABOVE: Final = 256
BEGIN_AGAIN_S: Final = 1.0


class Lives(Protocol):
    """What the log says of lives: ``lives.LivesMachine``. *present*: the open one of each member,
    in order; *known*: all that are not folded; *generation*: how often some were."""

    @property
    def generation(self) -> int: ...
    def is_admitted(self, actor: int) -> bool: ...
    def is_retired(self, actor: int) -> bool: ...
    def is_expelled(self, member: int) -> bool: ...
    def epoch_known(self, member: int) -> int: ...
    def stable(self) -> Mapping[int, int]: ...
    def present(self) -> tuple[int, ...]: ...
    def known(self) -> tuple[int, ...]: ...


class Living:
    """The lives of one node. *begin*: has the log begin one, returns its epoch. *adopt*: has it
    admit one that was begun here, False: it refuses."""

    def __init__(
        self,
        engine: Engine,
        lives: Lives,
        random: Random,
        *,
        begin: Callable[[], Awaitable[int]],
        adopt: Callable[[int], Awaitable[bool]],
    ) -> None:
        self.problem = ""  #: why some of this node's own records do not spread, or ""
        self._engine = engine
        self._lives = lives
        self._random = random
        self._begin = begin
        self._adopt = adopt
        self._loop = asyncio.get_running_loop()
        self._life: asyncio.Task[None] | None = None
        self._improvise: asyncio.TimerHandle | None = None
        self._refused: dict[int, None] = {}  # own lives that the log will not admit
        self._stopped = False

    def stop(self) -> None:
        """Begin nothing any more."""
        self._stopped = True
        if self._life is not None:
            self._life.cancel()
        if self._improvise is not None:
            self._improvise.cancel()

    def needed(self) -> None:
        """A write waits for a life."""
        self.begin()
        if self._improvise is None:
            self._improvise = self._loop.call_later(IMPROVISE_S, self._improvised)

    def begin(self) -> None:
        """Begin a life, and have the log admit those that it does not know."""
        if self._life is None and not self._stopped:
            self._life = self._loop.create_task(self._live(), name="quorate-life")

    def again(self) -> None:
        """The life is over, as somebody else has begun one: begin another."""
        if self._life is not None and self._life.done():
            self._life = None
        self.begin()

    async def _live(self) -> None:
        """Have a life from the log; or have one admitted that was begun without it."""
        engine = self._engine
        while not self._stopped:
            try:
                await self._admit_earlier()
                if engine.own.actor == 0:
                    epoch = await self._begin()
                    if engine.own.actor == 0:
                        self._settled()
                        self._become(epoch)
                        return
                elif await self._adopt(epoch_of(engine.own.actor)):
                    self._settled()
                    return
                else:  # it is over, and asked for as such
                    engine.become(0)
            except QuorateError as error:
                _logger.info("no life from the log yet: %s", error)
                await asyncio.sleep(BEGIN_AGAIN_S * (0.5 + self._random.random() / 2))

    def _settled(self) -> None:
        """The log has given this node a life."""
        if not self._refused:
            self.problem = ""

    async def _admit_earlier(self) -> None:
        """Have those lives of this node admitted that were begun without the log and ended before
        it heard of them."""
        for actor in self._mine():
            if actor in self._refused or actor == self._engine.own.actor or self._is_known(actor):
                continue
            if not await self._adopt(epoch_of(actor)) and not self._is_known(actor):
                self._orphan(actor)

    def _mine(self) -> list[int]:
        """Lives of this node of which there are records here, in order."""
        engine = self._engine
        return [actor for actor in sorted(engine.frontier) if member_of(actor) == engine.member]

    def _is_known(self, actor: int) -> bool:
        return self._lives.is_admitted(actor) or self._engine.is_retired(actor)

    def _improvised(self) -> None:
        """The log did not answer in time: begin a life that nobody can have had."""
        self._improvise = None
        engine = self._engine
        if engine.own.actor or self._stopped:
            return
        known = self._lives.epoch_known(engine.member)
        retired = engine.own.retired.get(engine.member, 0)
        highest = max(known, retired, *map(epoch_of, self._mine()))
        epoch = highest + IMPROVISED_ABOVE + self._random.getrandbits(16)
        self.problem = "this life was begun without the log, and waits to be admitted"
        _logger.warning("node %d begins life %d without the log", engine.member, epoch)
        self._become(epoch)
        if self._life is not None:
            self._life.cancel()
        self._life = None
        self.begin()

    def _orphan(self, actor: int) -> None:
        """The log refused the life: others will take none of its records as they are."""
        self._refused[actor] = None
        life = f"life {epoch_of(actor)} of node {member_of(actor)} was begun without the log"
        if self._lives.is_expelled(member_of(actor)):
            cure = "which has removed the node: quorate crdt rescue merges what it alone has"
        else:
            cure = (
                "which does not admit it any more: stop the node, set its CRDT data aside (quorate "
                "crdt rescue DATA_DIR --discard), start it, and rescue what was set aside"
            )
        self.problem = f"{life}, {cure}"
        _logger.error("%s", self.problem)

    def _become(self, epoch: int) -> None:
        if self._improvise is not None:
            self._improvise.cancel()
            self._improvise = None
        self._engine.become(epoch)
