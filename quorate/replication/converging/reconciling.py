"""Repair by ranges: what a node does whose peers no longer have the records that it needs.

It takes over another replica's elements, range by range (``pulling``), from one that serves them
(``serving``). What is said here is why that ends in the join of both, although neither stands still
meanwhile and no state of the other is ever seen whole.

**One element.** What one replica says of one element is a piece of its state: the dots alive in it,
and that any other dot it has accounted for is not alive there. Joining it is joining a delta, and
true for ever. What the server has accounted for is taken as of the session's beginning, the element
as it is later. That is a piece of the later state, for what was accounted for stays so. The other
way round (an element, and a context newer than it) would be a lie: what was added in between would
be taken for removed. An element that both hold equal needs no joining; so ranges with equal digests
are skipped, whenever in the session each of their elements was looked at, on either side.

**All elements.** When every range was joined, of each dot that the server had accounted for at the
beginning it is known whether it is alive: if the server held it when its element was looked at, it
was joined; if not, it was dropped here, or was not here. Then, and only then, the server's context
can be accounted for in one commit, and its frontier taken over: what those records did is in that
context, or (numbers in cells that grew) in the elements. To account for it before would make
elements of later ranges look removed here.

**Records.** Meanwhile none are joined here. One of a third replica may add a dot to a range that is
done, which the server saw added and removed long ago; accounting for that dot at the end would
leave it alive here for good, and nowhere else. So records are dropped and not confirmed, peers are
told not to send any (``Disseminating.deafen``), and those that already wait are forgotten before
the session asks its first question. Operations of clients go on: their dots are new, so the server
cannot have accounted for them when the session began, and a dot that they remove is accounted for
here, so the server's element cannot bring it back.

**Until then** an element that was taken over may hold dots that are not in the context
(``Commit.join_elements``); a context that listed them one by one would have a hole for nearly every
element, in every commit. Such a dot is found where it is alive by everything that speaks of it, and
whatever removes it adds it to the context. If the session is given up, what was joined stays, and
the records come or another session does. What a reader sees may be ahead of the frontier, so its
position includes the server's frontier (``Own.ahead``), and so does what own records say that they
were made after. Some of these records may never come: the server has lost its disk, or a session
with it was given up and it stays away. Then the node *releases* what it shows, after ``RELEASE_S``:
it makes a record of its own, which stands for all of it and is in no journal, so all others take
over from this node what it stands for. A node that is ahead serves nobody, before that: all who
took over from it would be ahead, too.

**Lives that were folded away** count as seen by a replica that has done so. A node whose data is
older than a fold, or that is empty, may lack some of their elements; so each side goes by its own
list of them, and the puller's becomes the server's at the end. Sessions are between nodes
that have folded equally often, or from a blank one, which begins where the server is.

A server that restarts may be back at an older state; it knows none of its sessions then, and ends
them. A session without progress for ``PATIENCE_S`` is given up, records are taken again, and after
a pause it is tried anew, with whoever else has what is missing first.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from random import Random
from typing import Any, Final

import msgspec

from quorate.base.types import NodeId
from quorate.crdt.folding import generation_of, is_whole
from quorate.errors import ClosedError, QuorateError, UnavailableError
from quorate.replication.clock import Clock
from quorate.replication.converging.committing import Commit
from quorate.replication.converging.disseminating import Disseminating
from quorate.replication.converging.engine import Engine
from quorate.replication.converging.pulling import Counts, Pull, is_blank
from quorate.replication.converging.records import Frontier
from quorate.replication.converging.serving import Serving
from quorate.replication.transport import (
    CrdtEnd,
    CrdtFrame,
    CrdtGone,
    CrdtKnown,
    CrdtPull,
    CrdtServed,
)

_logger = logging.getLogger("quorate.crdt")

#: A record that one peer has no longer may come from another; so long that is waited for.
SETTLE_S: Final = 0.5
#: The pause after a session that was given up, doubled each time.
PAUSE_S: Final = 1.0
PAUSE_S_MAX: Final = 30.0
#: After a session, records of what it showed are waited for so long.
RELEASE_S: Final = 5.0


class _Want(msgspec.Struct):
    """Why to pull from a node: for the records *lacking*, because it has *folded* lives that this
    blank node never knew, or because somebody waits for it."""

    due_s: float
    tries: int = 0
    lacking: Frontier = {}
    folded: bool = False
    waiters: list[asyncio.Future[None]] = []


class Reconciling:
    """*send*: to a member, or into nothing. *failed*: of an error that nobody expected.
    *is_behind*: whether this node is to take over from one that has folded (``folding``)."""

    def __init__(
        self,
        engine: Engine,
        disseminating: Disseminating,
        clock: Clock,
        random: Random,
        send: Callable[[NodeId, CrdtFrame], None],
        failed: Callable[[BaseException], None],
        is_behind: Callable[[], bool],
    ) -> None:
        self._engine = engine
        self._disseminating = disseminating
        self._is_behind = is_behind
        self._clock = clock
        self._random = random
        self._send = send
        self._failed = failed
        self._serving = Serving(engine, clock, send, failed)
        self._wants: dict[NodeId, _Want] = {}
        self._pull: Pull | None = None
        self._task: asyncio.Task[None] | None = None
        self._stopped = False
        self._ahead_s: float | None = None  # since when records are waited for
        self.counts = Counts()
        self.done = 0  #: sessions that came to their end
        self.given_up = 0

    # --- what comes in ------------------------------------------------------------------------

    def receive(self, frame: CrdtPull | CrdtServed) -> None:
        """A frame of a session."""
        if isinstance(frame, CrdtEnd):
            self._serving.ended(frame)
        if isinstance(frame, CrdtPull):
            self._serving.receive(frame)
        elif self._pull is not None:
            self._pull.receive(frame)

    def on_gone(self, frame: CrdtGone) -> None:
        """A peer cannot send what comes next here."""
        want = self._want(frame.sender)
        want.lacking = {**want.lacking, frame.actor: frame.sequence}

    def on_known(self, frame: CrdtKnown) -> None:
        """A peer says how far it has come in folding lives: a node that is blank, or was set back,
        never gets to know by records what those did that are folded."""
        own = generation_of(self._engine.own.generation)
        folded, whole = generation_of(frame.generation), is_whole(frame.generation)
        if whole and (folded > own or (folded and folded == own)) and self._is_without_folded():
            self._want(frame.sender).folded = True

    def _is_without_folded(self) -> bool:
        """Whether this node may lack what lives did that were folded."""
        own = self._engine.own
        incomplete = bool(generation_of(own.generation) and not own.retired)
        return is_blank(self._engine) or incomplete or self._is_behind()

    async def pull(self, node: NodeId) -> None:
        """Take over all that *node* has now, although nothing may seem to be missing.

        Raises:
            UnavailableError: it cannot be done now; what was taken over so far is good.
        """
        if self._stopped:
            raise ClosedError("the node is stopping")
        if node not in self._disseminating.connected():
            raise UnavailableError(f"node {node} cannot be reached")
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        want = self._want(node)
        want.waiters = [*want.waiters, waiter]
        want.due_s = self._clock.monotonic_s()
        self._plan(want.due_s)
        await waiter

    def lost(self, node: NodeId) -> None:
        """*node* cannot be sent to any more."""
        if self._pull is not None and self._pull.node == node:
            self._pull.end(UnavailableError(f"node {node} cannot be reached any more"))

    def _want(self, node: NodeId) -> _Want:
        want = self._wants.get(node)
        if want is None:
            want = self._wants[node] = _Want(self._clock.monotonic_s() + SETTLE_S)
        return want

    # --- when ---------------------------------------------------------------------------------

    def on_tick(self, now_s: float) -> None:
        """Begin what is due."""
        self._serving.on_tick(now_s)
        self._plan(now_s)
        self._release(now_s)

    def _release(self, now_s: float) -> None:
        """Records that elements here show something of have not come for long: a session was given
        up, or whoever had them lost its disk. Let nobody wait for them."""
        engine = self._engine
        if not engine.own.ahead or self._task is not None:
            self._ahead_s = None
        elif self._ahead_s is None:
            self._ahead_s = now_s
        elif now_s - self._ahead_s >= RELEASE_S:
            self._ahead_s = None
            if engine.own.actor:
                engine.alone(_released)
            else:
                engine.living.begin()

    def _plan(self, now_s: float) -> None:
        if self._task is not None or self._stopped:
            return
        connected = self._disseminating.connected()
        due: list[tuple[int, NodeId]] = []
        for node, want in list(self._wants.items()):
            if not self._is_needed(want):
                del self._wants[node]
            elif node not in connected:  # it says again what it lacks when it is back
                del self._wants[node]
                for waiter in want.waiters:
                    _settle(waiter, UnavailableError(f"node {node} cannot be reached any more"))
            elif now_s >= want.due_s:
                due.append((want.tries, node))
        if due:
            _, node = min(due)
            self._task = asyncio.get_running_loop().create_task(
                self._run(node, self._wants[node]), name="quorate-crdt-pull"
            )

    def _is_needed(self, want: _Want) -> bool:
        engine = self._engine
        if any(not each.done() for each in want.waiters):
            return True
        if want.folded and self._is_without_folded():
            return True
        return not engine.covers(want.lacking)

    async def _run(self, node: NodeId, want: _Want) -> None:
        """One session."""
        waiters, want.waiters = want.waiters, []
        session = self._random.getrandbits(63)
        full = want.folded or bool(waiters)
        folded = self._is_behind()
        full = full or folded
        pull = Pull(self._engine, self._send, node, session, self.counts, full=full, folded=folded)
        self._pull = pull
        problem: QuorateError | None = ClosedError("the node is stopping")
        self._disseminating.deafen(deaf=True)
        try:
            if await pull.run():
                self.done += 1
                _logger.info("took over what node %d has: %s", node, self.counts)
            problem = None
            want.lacking, want.folded, want.tries = {}, False, 0
        except QuorateError as error:
            _logger.info("taking over what node %d has was given up: %s", node, error)
            problem = error
            self._fail(want, error)
        except Exception as error:
            _logger.exception("taking over what node %d has", node)
            self._failed(error)
        finally:
            self._pull = self._task = None
            for waiter in waiters:
                _settle(waiter, problem)
            if not self._stopped:
                self._disseminating.deafen(deaf=False)

    def _fail(self, want: _Want, error: QuorateError) -> None:
        """Not now: those who wait are told, it is tried again later, and others may have what is
        missing."""
        self.given_up += 1
        for node in self._disseminating.connected():
            known = self._disseminating.known(node)
            for actor, sequence in want.lacking.items():
                if known.get(actor, 0) >= sequence:
                    other = self._want(node)
                    other.lacking = {**other.lacking, actor: sequence}
        pause_s = min(PAUSE_S * 2**want.tries, PAUSE_S_MAX)
        want.tries = min(want.tries + 1, 16)
        want.due_s = self._clock.monotonic_s() + pause_s * (0.5 + self._random.random() / 2)
        waiters, want.waiters = want.waiters, []
        for waiter in waiters:
            _settle(waiter, error)

    def stop(self) -> None:
        """Give everything up. Idempotent."""
        self._stopped = True
        self._serving.stop()
        if self._task is not None:
            self._task.cancel()
        for want in self._wants.values():
            for waiter in want.waiters:
                _settle(waiter, ClosedError("the node is stopping"))
        self._wants.clear()

    def describe(self) -> dict[str, Any]:
        """How it stands, as plain values."""
        return {
            "pulling_from": 0 if self._pull is None else self._pull.node,
            "serving": len(self._serving),
            "done": self.done,
            "given_up": self.given_up,
            "ranges": self.counts.ranges,
            "divergent_ranges": self.counts.divergent,
            "elements_fetched": self.counts.fetched,
            "elements_joined": self.counts.joined,
        }


def _released(engine: Engine) -> Commit | None:
    if not engine.own.ahead or not engine.own.actor:
        return None
    _logger.info("what is here beyond %s goes on as a record of this node", engine.own.ahead)
    commit = engine.open()
    commit.release()
    return commit


def _settle(waiter: asyncio.Future[None], error: QuorateError | None) -> None:
    if waiter.done():
        return
    if error is None:
        waiter.set_result(None)
    else:
        waiter.set_exception(UnavailableError(f"it could not be taken over: {error}"))
