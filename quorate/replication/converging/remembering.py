"""Whether a node knows what it has done: its store may have been lost, or set back to an old copy.

What a node did for a client it remembers in its store, so a write that is sent again is done once.
If the store has lost that memory, the write may be all over the cluster already, and must not be
done again. A frame says when it was first sent to an earlier process of the node (``again``), and
only of such a one there can be doubt. It is answered by "outcome-unknown" if

* the log has given this member lives of which the store knows nothing (it names every life before
  that takes its first write): it was lost, or set back to before they began;
* a member has records of an earlier life of this one that are not here: it was set back to some
  moment of that life. The others say what they have when a connection begins. For ``HEARD_S`` a
  node that has not heard of them all is in doubt, and after that goes by those it can reach.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from quorate.consensus.membership import Membership
from quorate.crdt.dots import epoch_of, member_of
from quorate.errors import OutcomeUnknownError
from quorate.replication.converging.engine import Engine
from quorate.replication.transport import CrdtKnown

#: How long the others may take to say what they have of this node.
HEARD_S: Final = 2.0


class KnownLives(Protocol):
    """What the log says of lives: ``lives.LivesMachine``."""

    def epoch_known(self, member: int) -> int: ...


class Remembering:
    """One node's doubts about itself."""

    def __init__(
        self, engine: Engine, lives: KnownLives, membership: Callable[[], Membership]
    ) -> None:
        self._engine = engine
        self._lives = lives
        self._membership = membership
        self._began_s = engine.clock.monotonic_s()
        self._named = _last_named(engine)
        self._heard: dict[int, None] = {}
        self._why = ""  # this node has forgotten something
        engine.check_memory = self.check
        engine.on_life = self.began

    def on_known(self, frame: CrdtKnown) -> None:
        """A member says what it has."""
        engine = self._engine
        if frame.whole:
            self._heard[frame.sender] = None
        for actor, sequence in frame.frontier:
            mine = member_of(actor) == engine.member and actor != engine.own.actor
            if mine and sequence > engine.frontier.get(actor, 0) and not engine.is_retired(actor):
                self._why = self._why or (
                    f"node {frame.sender} has {sequence} records of life {epoch_of(actor)}, and "
                    f"this node itself {engine.frontier.get(actor, 0)}"
                )

    def began(self, epoch: int) -> None:
        """Life *epoch* begins. The log gave it out, or it is above all that the log knew of."""
        before = min(epoch - 1, self._lives.epoch_known(self._engine.member))
        if before > self._named:
            self._why = self._why or (
                f"the log knows life {before} of this node, and the store none after {self._named}"
            )
        self._named = max(self._named, epoch)

    def check(self) -> None:
        """Refuse a frame that an earlier process may have carried out, and of which the store says
        nothing, unless the store knows all that there was.

        Raises:
            OutcomeUnknownError: it may have forgotten, or is not sure yet.
        """
        engine = self._engine
        if self._why:
            raise OutcomeUnknownError(
                f"an earlier process of node {engine.member} may have done it, and its CRDT data "
                f"was lost or set back since: {self._why}"
            )
        if not engine.own.actor:
            engine.living.needed()
            raise OutcomeUnknownError(f"node {engine.member} has only begun: ask again")
        others = [each for each in self._membership().members() if each != engine.member]
        waited_s = engine.clock.monotonic_s() - self._began_s
        if waited_s < HEARD_S and any(each not in self._heard for each in others):
            raise OutcomeUnknownError(
                f"an earlier process of node {engine.member} may have done it, and this one has "
                f"not heard yet what others have of it"
            )


def _last_named(engine: Engine) -> int:
    """The last life of this node that its store knows of, 0 for none."""
    mine = [epoch_of(actor) for actor in engine.frontier if member_of(actor) == engine.member]
    return max([engine.own.lived, engine.own.retired.get(engine.member, 0), *mine])
