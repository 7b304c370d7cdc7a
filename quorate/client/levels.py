"""Consistency per call, on the client's side: receipts, session tokens, and what a level comes to.

A *token* says how much of the log its bearer has seen: ``q1:CLUSTER:INDEX``, printable ASCII that
fits into an HTTP header. A later version appends fields; what an older client does not know, it
refuses, because passing over it would lower the level silently.
"""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Any, Final, Protocol

from quorate.base.levels import ANSWERS, CAUSAL, EVENTUAL, QUORUM, Level, check_level
from quorate.client.codec import AnyFuture, MachineCodec
from quorate.errors import TokenError, UnconfirmedError

if TYPE_CHECKING:
    from quorate.client.watching import Watches

#: In place of an index to wait for: the read is to be linearizable.
LINEARIZABLE: Final = -1
TOKEN_LENGTH_MAX: Final = 256
INDEX_MAX: Final = 2**63 - 1

_TOKEN: Final = re.compile(r"q1:([A-Za-z0-9._-]{1,128}):([0-9]{1,19})")


class Receipt:
    """Hand one in with a call, and it says what the call got; a fresh one for each.

    *level*: at which it was answered. *index*: of the log entry that the write is in, or that the
    state read had come to; 0 if there was no answer. *token*: for ``at("causal", token=...)``
    elsewhere; "" if there is nothing to be seen for certain. *may_be_lost*: the write was accepted
    by one node, and no more was known (``eventual``).
    """

    __slots__ = ("index", "level", "may_be_lost", "token")

    def __init__(self) -> None:
        self.level: Level | None = None
        self.index = 0
        self.token = ""
        self.may_be_lost = False

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.__slots__)
        return f"Receipt({fields})"


def format_token(cluster: str, index: int) -> str:
    """A token; "" if nothing was seen."""
    return f"q1:{cluster}:{index}" if cluster and index else ""


def parse_token(token: object) -> tuple[str, int]:
    """Cluster and index of *token*; ("", 0) of an empty one.

    Raises:
        TokenError: it is malformed, or of a newer version.
    """
    if token == "":
        return "", 0
    shape = _TOKEN.fullmatch(token) if isinstance(token, str) else None
    if shape is None or int(shape[2]) > INDEX_MAX:
        shown = repr(token)
        if len(shown) > TOKEN_LENGTH_MAX:
            shown = f"{shown[:TOKEN_LENGTH_MAX]}..."
        raise TokenError(
            f"{shown} is not a session token that this version knows: it looks like "
            "q1:CLUSTER:INDEX, and is passed on as it was given"
        )
    return shape[1], int(shape[2])


class Plans(Protocol):
    """What plans commands and queries: ``Database``."""

    @property
    def cluster(self) -> str:
        """Id of the cluster, "" before any node has answered."""

    @property
    def seen(self) -> int:
        """The highest index that any answer on this handle has named."""

    @property
    def watches(self) -> Watches: ...

    async def welcomed(self, timeout: float) -> None: ...

    def submit(
        self,
        codec: MachineCodec,
        item: object,
        timeout: float,
        level: int = 0,
        receipt: Receipt | None = None,
        /,
    ) -> AnyFuture: ...

    def ask(
        self,
        codec: MachineCodec,
        item: object,
        timeout: float,
        after: int = LINEARIZABLE,
        receipt: Receipt | None = None,
        /,
    ) -> AnyFuture: ...


class Seen:
    """What a session has seen. *cluster* "": nothing yet."""

    __slots__ = ("_checked", "cluster", "index")

    def __init__(self) -> None:
        self.cluster = ""
        self.index = 0
        self._checked = False  # the cluster is the one that the handle is connected to

    @property
    def token(self) -> str:
        return format_token(self.cluster, self.index)

    def reach(self, cluster: str, index: int) -> None:
        """The handle's own cluster has answered with *index*."""
        self.cluster = cluster
        self.index = max(self.index, index)

    def merge(self, token: object, own: str) -> None:
        """Take on what the bearer of *token* has seen; *own*: the handle's cluster, if known.

        Raises:
            TokenError: it is malformed, or of another cluster.
        """
        cluster, index = parse_token(token)
        known = own or self.cluster
        if cluster and known and cluster != known:
            raise TokenError(f"the token is of cluster {cluster!r}, and this handle of {known!r}")
        if cluster:
            self.cluster = cluster
            self.index = max(self.index, index)

    async def check(self, plans: Plans, wait_s: float) -> float:
        """Make sure that an imported token is of the handle's cluster, which is known once a node
        has answered. Returns what is left of *wait_s*.

        Raises:
            TokenError: it is not.
            UnavailableError: no node answered in time.
        """
        if self._checked or not self.cluster:
            return wait_s
        if not plans.cluster:
            loop = asyncio.get_running_loop()
            began = loop.time()
            await plans.welcomed(wait_s)
            wait_s = max(wait_s - (loop.time() - began), 0.001)
        if self.cluster != plans.cluster:
            raise TokenError(
                f"the token is of cluster {self.cluster!r}, and this handle of {plans.cluster!r}"
            )
        self._checked = True
        return wait_s


class Scope:
    """How the calls of a handle or view are made: at *level*, unless they say otherwise. *seen*:
    the session of a view; a plain handle has none, and its ``causal`` calls follow everything
    that the handle has seen."""

    __slots__ = ("_plans", "level", "plain", "seen")

    def __init__(self, plans: Plans, level: Level = QUORUM, seen: Seen | None = None) -> None:
        self._plans = plans
        self.level: Level = level
        self.seen = seen
        self.plain = level == QUORUM and seen is None  #: calls without a level need nothing of this

    def watches(self) -> Watches:
        """Of the handle."""
        return self._plans.watches

    async def write(
        self,
        codec: MachineCodec,
        command: object,
        wait_s: float,
        level: Level | None,
        receipt: Receipt | None,
    ) -> Any:  # noqa: ANN401  the machine's result, or ``Accepted``
        """One command."""
        chosen = self.level if level is None else check_level(level)
        if self.seen is not None:
            wait_s = await self.seen.check(self._plans, wait_s)
        slip = self._begin(receipt, chosen)
        try:
            return await self._plans.submit(codec, command, wait_s, ANSWERS[chosen], slip)
        except UnconfirmedError:
            slip.level = QUORUM
            raise
        finally:
            self._end(slip)

    async def read(
        self,
        codec: MachineCodec,
        query: object,
        wait_s: float,
        level: Level | None,
        receipt: Receipt | None,
    ) -> Any:  # noqa: ANN401  the machine's result
        """One query."""
        chosen = self.level if level is None else check_level(level)
        if self.seen is not None:
            wait_s = await self.seen.check(self._plans, wait_s)
        slip = self._begin(receipt, chosen)
        try:
            return await self._plans.ask(codec, query, wait_s, self._after(chosen), slip)
        finally:
            self._end(slip)

    def _after(self, level: Level) -> int:
        if level == CAUSAL:
            return self._plans.seen if self.seen is None else self.seen.index
        return 0 if level == EVENTUAL else LINEARIZABLE

    def _begin(self, receipt: Receipt | None, level: Level) -> Receipt:
        slip = Receipt() if receipt is None else receipt
        slip.level, slip.index, slip.token, slip.may_be_lost = level, 0, "", False
        return slip

    def _end(self, slip: Receipt) -> None:
        if slip.index == 0:
            slip.level = None
        elif not slip.may_be_lost:
            cluster = self._plans.cluster
            slip.token = format_token(cluster, slip.index)
            if self.seen is not None:
                self.seen.reach(cluster, slip.index)
