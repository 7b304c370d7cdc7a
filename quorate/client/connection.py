"""Keeps one link to the cluster: to the leader, through a relay if need be, else to anybody.

One task connects and reconnects; frames pass by it, from the channel straight to the owner. A
link to a node that does not lead is worth keeping while the leader is sought: it pushes news of
elections, and such news ends any wait or attempt at once. It also serves local reads.

A pinned connection (*follow_leader* False) stays with the endpoints it was given, whoever leads.
One *aside* goes to any member, rather one that does not lead, and leaves it for another when it
refuses something: so reads spread over the cluster. If there is nobody else, the leader will do.
One that is pinned can be asked to look for ``another`` node, and keeps its link until it has one.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Protocol

from quorate.base.frames import (
    ROLE_CLIENT,
    WIRE_VERSION,
    ClientFrame,
    Hello,
    LeaderInfo,
    Query,
    Refused,
    ServerFrame,
    Welcome,
)
from quorate.client.channel import Channel
from quorate.client.endpoints import Endpoint, OnFrame, OnLost, OnWritable
from quorate.client.routing import Routing
from quorate.errors import (
    QuorateError,
    RefusedError,
    UnavailableError,
    WireFormatError,
    error_from_code,
)

LEADER_AGAIN_S = 5.0  # a connection aside that ended at the leader looks again for another node
SETTLED_S = 1.0  # a link that led for this long was a good one
STALL_STRIKES = 4  # looks, at equal distances, that all found silence
TROUBLE_PLACES_MAX = 8  # endpoints named in one error message
#: Any node answers it at once, from nothing; id 0 belongs to no call.
_PING = Query(0, (), linearizable=False)


class Dials(Protocol):
    """What opens channels: ``channel.Dialer``, or a test's."""

    async def dial(
        self, endpoint: Endpoint, on_frame: OnFrame, on_lost: OnLost, on_writable: OnWritable
    ) -> Channel: ...


class Owner(Protocol):
    """Who uses the connection; called on the loop."""

    def on_frame(self, frame: ServerFrame) -> None:
        """Any frame but those of the handshake and ``LeaderInfo``."""

    def on_routed(self) -> None:
        """There is a link, or it may be written to again, or it now leads."""

    def on_unlinked(self, error: QuorateError) -> None:
        """The link is gone, with everything unanswered on it."""


class Link:
    """One welcomed connection. *node*: who answers, which is not who was dialled if *relay*."""

    __slots__ = (
        "_early_info", "_owner", "_welcome", "adopted", "channel", "endpoint", "incarnation",
        "led_since", "lost_early", "node", "process", "relay", "since",
    )  # fmt: skip

    def __init__(self, owner: Connection, endpoint: Endpoint, *, relay: bool) -> None:
        self._owner = owner
        self.endpoint = endpoint
        self.relay = relay
        self.node = 0
        self.incarnation = ""  #: of that node's disk
        self.process = 0  #: which of that node's
        self.led_since = 0.0
        self.since = 0.0
        self.channel: Channel | None = None
        self.adopted = False  #: frames go to the owner
        self.lost_early = False  #: after the welcome, before the adoption
        self._early_info: LeaderInfo | None = None  # likewise
        self._welcome: asyncio.Future[Welcome] | None = None

    async def open(self, dials: Dials, cluster: str) -> Welcome:
        """Connect and be welcomed.

        Raises:
            QuorateError: why not.
        """
        answer: asyncio.Future[Welcome] = asyncio.get_running_loop().create_future()
        self._welcome = answer
        try:
            self.channel = await dials.dial(
                self.endpoint, self._on_frame, self._on_lost, self._on_writable
            )
            hello = Hello(WIRE_VERSION, ROLE_CLIENT, cluster, relay=self.relay)
            self.channel.send((hello,))
            welcome = await answer
        except BaseException:
            self.close()
            # A dial that is given up says so to ``_on_lost`` too, and nobody waits for it there.
            if not answer.cancel() and not answer.cancelled():
                answer.exception()
            raise
        self.node, self.incarnation = welcome.node, welcome.incarnation
        self.process = welcome.process
        return welcome

    def adopt(self) -> None:
        """From now on the owner hears of everything; first of what came meanwhile."""
        self.adopted = True
        if self._early_info is not None:
            self._owner.received(self, self._early_info)

    def close(self) -> None:
        if self.channel is not None:
            self.channel.close()

    def _on_frame(self, frame: ServerFrame) -> None:
        if self.adopted:
            self._owner.received(self, frame)
        elif self._welcome is None or self._welcome.done():
            if isinstance(frame, LeaderInfo):
                self._early_info = frame
        elif isinstance(frame, Welcome):
            self._welcome.set_result(frame)
        elif isinstance(frame, Refused):
            self._welcome.set_exception(error_from_code(frame.code, frame.message))
        else:
            kind = type(frame).__name__
            self._welcome.set_exception(WireFormatError(f"the node began with a {kind}"))

    def _on_lost(self, error: QuorateError | None) -> None:
        if self.adopted:
            self._owner.lost(self, error or UnavailableError("closed by the node"))
            return
        self.lost_early = True
        if self._welcome is not None and not self._welcome.done():
            self._welcome.set_exception(error or UnavailableError("closed by the node"))

    def _on_writable(self) -> None:
        if self.adopted:
            self._owner.writable_again(self)


class Connection:
    """See the module. *connect_timeout*, *stall_timeout*: seconds. *wanted*: whether anybody waits
    for the cluster; while nobody does, a lost link is not replaced."""

    def __init__(
        self,
        routing: Routing,
        dials: Dials,
        owner: Owner,
        *,
        connect_timeout: float,
        stall_timeout: float,
        wanted: Callable[[], bool],
        follow_leader: bool = True,
        aside: bool = False,
    ) -> None:
        self.routing = routing
        self._dials = dials
        self._owner = owner
        self._connect_timeout = connect_timeout
        self.stall_period = stall_timeout / STALL_STRIKES
        self._wanted = wanted
        self._follow_leader = follow_leader
        self._aside = aside
        self._makes_do = False  # aside: there was nobody but the leader
        self._restless = False  # another node than the linked one is looked for
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()
        self._attempt_task: asyncio.Task[Welcome] | None = None
        self._link: Link | None = None
        self._errors: dict[Endpoint, QuorateError] = {}
        self._strikes = 0
        self._received_seen = -1
        self._idle = False  # the task waits for somebody to want the cluster
        self._flapped = False  # the last link did not live long
        self._first = self._loop.create_future()
        self.leads = False  #: the link ends at the leader
        self.reconnect_count = 0

    # --- for the owner -------------------------------------------------------------------------

    @property
    def linked(self) -> bool:
        return self._link is not None

    @property
    def node(self) -> int:
        """Who answers, 0: nobody."""
        return 0 if self._link is None else self._link.node

    @property
    def incarnation(self) -> str:
        """Which disk of that node's answers, "": nobody. A node that was wiped is another one."""
        return "" if self._link is None else self._link.incarnation

    @property
    def process(self) -> int:
        """Which process of that node answers, 0: nobody."""
        return 0 if self._link is None else self._link.process

    @property
    def writable(self) -> bool:
        link = self._link
        return link is not None and link.channel is not None and link.channel.writable

    @property
    def relayed(self) -> bool:
        return self._link is not None and self._link.relay

    def send(self, frames: Sequence[ClientFrame]) -> None:
        if self._link is not None and self._link.channel is not None:
            self._link.channel.send(frames)

    async def first_welcome(self) -> None:
        """Wait until some node has welcomed this client.

        Raises:
            RefusedError: every endpoint refused it, for a reason that will not pass by itself.
        """
        await asyncio.shield(self._first)

    def why_not(self) -> str:
        """What the last attempts failed with, by endpoint."""
        shown = [f"{place}: {error}" for place, error in self._errors.items()]
        more = len(shown) - TROUBLE_PLACES_MAX
        return "; ".join(shown[:TROUBLE_PLACES_MAX] + ([f"{more} more"] if more > 0 else []))

    def trouble(self) -> str:
        """Why requests cannot go out now; "" if they can."""
        link = self._link
        if link is not None and (self.leads or not self._follow_leader):
            return ""
        if link is None:
            trouble = "no node is connected"
        elif self.routing.leader == 0:
            trouble = f"node {link.node} answers, but knows of no leader"
        else:
            trouble = f"node {self.routing.leader} leads, but cannot be reached"
        reasons = self.why_not()
        return f"{trouble} ({reasons})" if reasons else trouble

    def denied(self) -> None:
        """The linked node refused something because it does not lead; or, aside, for a reason that
        another node may not have."""
        if self._aside:
            self.give_up(UnavailableError("it refused a read that another node may answer"))
        elif self._link is not None and self.routing.denied(self._link.node):
            self._news()

    def another(self) -> None:
        """What the linked node refused may be had elsewhere: look for another node, and stay with
        this one if there is none. Of a pinned connection."""
        if self._link is not None and not self._restless:
            self._restless = True
            self._changed.set()

    def look_for_stall(self, *, waiting: bool) -> None:
        """Call once per ``stall_period`` while requests are unanswered: a link on which nothing
        at all arrived for so long is given up, because a dead machine closes no connections."""
        link = self._link
        if link is None or link.channel is None or not waiting:
            self._strikes = 0
            return
        received = link.channel.received_count
        self._strikes = self._strikes + 1 if received == self._received_seen else 0
        self._received_seen = received
        if self._strikes >= STALL_STRIKES:
            self.give_up(UnavailableError("it was silent for too long"))
        elif self._strikes > 0:
            link.channel.send((_PING,))  # what was asked may take its time, this may not

    def give_up(self, error: QuorateError) -> None:
        """Drop the link, because of *error*, and look for another."""
        link = self._link
        if link is not None:
            self._strikes = 0
            link.close()
            self.lost(link, error)

    def want(self) -> None:
        """Somebody waits for the cluster now."""
        if self._idle:
            self._changed.set()

    def close(self) -> None:
        """Drop the link. The task of ``run`` must have been cancelled."""
        link, self._link = self._link, None
        self.leads = False
        if link is not None:
            link.close()
        if not self._first.done():
            self._first.cancel()

    # --- from the link -------------------------------------------------------------------------

    def received(self, link: Link, frame: ServerFrame) -> None:
        if link is not self._link:
            return
        if isinstance(frame, LeaderInfo):
            if self.routing.informed(frame, link.node):
                self._news()
        else:
            self._owner.on_frame(frame)

    def lost(self, link: Link, error: QuorateError) -> None:
        if link is not self._link:
            return
        self._failed(link.endpoint, error)
        if self._loop.time() - link.since > SETTLED_S:
            self.routing.settled()
        else:
            self._flapped = True
        self._unlink(error)
        self._changed.set()

    def writable_again(self, link: Link) -> None:
        if link is self._link:
            self._owner.on_routed()

    def _news(self) -> None:
        """The beliefs about the cluster changed: no wait and no attempt is worth finishing."""
        if self._attempt_task is not None:
            self._attempt_task.cancel()
        self._makes_do = False
        self._refresh()
        self._changed.set()

    def _refresh(self) -> None:
        led, link = self.leads, self._link
        self.leads = link is not None and link.node == self.routing.leader
        if link is not None and self.leads and not led:
            link.led_since = self._loop.time()
        if link is not None and led and not self.leads:
            self._left_leader(link)
        if self.leads and not led:
            self._owner.on_routed()

    def _left_leader(self, link: Link) -> None:
        if self._loop.time() - link.led_since > SETTLED_S:
            self.routing.settled()

    def _failed(self, endpoint: Endpoint, error: QuorateError) -> None:
        self.routing.failed(endpoint)
        self._errors[endpoint] = error
        self._errors = {at: self._errors[at] for at in self.routing.round() if at in self._errors}

    def _unlink(self, error: QuorateError) -> None:
        link, self._link = self._link, None
        if link is None:
            return
        if self.leads:
            self._left_leader(link)
        self.leads = self._restless = False
        self._owner.on_unlinked(error)

    # --- the task ------------------------------------------------------------------------------

    async def run(self) -> None:
        """Connect, follow the leader, reconnect, until cancelled."""
        while True:
            self._changed.clear()
            if self._flapped:
                self._flapped = False
                await self._pause()
            elif self._content():
                self._idle = self._link is None
                await self._wait()
                self._idle = False
            elif not await self._seek() and not self._changed.is_set():
                await self._pause()

    def _content(self) -> bool:
        """Nothing to do until something changes."""
        if self._link is None:
            return self.reconnect_count > 0 and not self._wanted()
        if self._restless:
            return False
        if self._aside:
            return self._makes_do or not self.leads
        return self.leads or not self._follow_leader

    async def _wait(self) -> None:
        """Until something changes, or it is time to look for somebody else than the leader."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LEADER_AGAIN_S if self._makes_do else None):
                await self._changed.wait()
        self._makes_do = False

    async def _pause(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.routing.backoff_s()):
                await self._changed.wait()

    async def _seek(self) -> bool:
        """One round of attempts. True: there is a better link than before."""
        link = self._link
        if link is None:
            places = self.routing.round_aside() if self._aside else self.routing.round()
            for endpoint in places:
                if await self._attempt(endpoint):
                    return True
            self._give_up_if_refused()
            return False
        if self._restless:
            return await self._seek_another(link)
        if self._aside:
            return await self._seek_aside(link)
        for endpoint in self.routing.towards_leader():
            if await self._attempt(endpoint):
                return True
            if self._changed.is_set():
                return False
        if self.routing.leader != 0 and await self._attempt(link.endpoint, relay=True):
            return True
        for endpoint in (*self.routing.round(but=link.endpoint), link.endpoint):
            # Somebody else may know of a newer leader than the linked node does; or that node
            # refused something once, leads all the same, and says so when it is greeted anew.
            if self._changed.is_set() or await self._attempt(endpoint):
                return True
        return False

    async def _seek_aside(self, link: Link) -> bool:
        """The link is to the leader: try the others."""
        for endpoint in self.routing.round_aside():
            if self._changed.is_set():
                return False
            if endpoint != link.endpoint and await self._attempt(endpoint):
                return True
        self._makes_do = True
        return False

    async def _seek_another(self, link: Link) -> bool:
        for endpoint in self.routing.round(but=link.endpoint):
            if await self._attempt(endpoint):
                return True
            if self._link is not link:
                return False
        self._restless = False
        return False

    async def _attempt(self, endpoint: Endpoint, *, relay: bool = False) -> bool:
        """Connect to *endpoint*; True if the new link replaced the old one."""
        link = Link(self, endpoint, relay=relay)
        opening = link.open(self._dials, self.routing.cluster)
        self._attempt_task = self._loop.create_task(opening)
        try:
            async with asyncio.timeout(self._connect_timeout):
                welcome = await self._attempt_task
        except TimeoutError:
            why = f"no welcome within {self._connect_timeout:g} s"
            self._failed(endpoint, UnavailableError(why))
            return False
        except QuorateError as error:
            self._failed(endpoint, error)
            return False
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            return False  # ``_news`` ended this attempt
        finally:
            self._attempt_task = None
        self._errors.pop(endpoint, None)
        return self._adopt(link, welcome)

    def _adopt(self, link: Link, welcome: Welcome) -> bool:
        """Make *link* the link, unless it is gone already, or the present one is as good."""
        self.routing.welcomed(link.endpoint, welcome, relay=link.relay)
        leads = welcome.node == self.routing.leader
        if self._link is None:
            better = True
        elif self._restless:
            better = welcome.node != self._link.node
        else:
            better = leads is not self._aside
        if link.lost_early or not better:
            link.close()
            self._refresh()
            return False
        old = self._link
        self._unlink(UnavailableError("the connection was given up for a better one"))
        if old is not None:
            old.close()
        self._link = link
        link.since = self._loop.time()
        self._strikes, self._received_seen = 0, -1
        self.reconnect_count += 1
        if not self._first.done():
            self._first.set_result(None)
        self._refresh()
        if not self.leads:
            self._owner.on_routed()
        link.adopt()
        return True

    def _give_up_if_refused(self) -> None:
        errors = [self._errors.get(place) for place in self.routing.round()]
        if not self._first.done() and all(isinstance(error, RefusedError) for error in errors):
            self._first.set_exception(RefusedError(self.why_not()))
            self._first.exception()  # nobody need have waited for it
