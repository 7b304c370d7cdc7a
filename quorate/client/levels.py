"""Consistency per call, on the client's side: receipts, session tokens, and what a level comes to.

A *token* says how much its bearer has seen: ``q1:CLUSTER:INDEX`` of the log alone, and with records
of CRDT data ``q2:CLUSTER:INDEX:MEMBER.EPOCH.SEQUENCE:...``, a mark for each life of a member, in
order. Printable ASCII without spaces, commas or quotes: it fits into an HTTP header and into a
cookie. What an older client does not know, it refuses, because passing over it would lower the
level silently.
"""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Any, Final, Protocol

from quorate.base.crdt_frames import NOWHERE, Mark, Position
from quorate.base.levels import ANSWERS, CAUSAL, EVENTUAL, QUORUM, Level, check_level
from quorate.client.codec import AnyFuture, MachineCodec
from quorate.errors import LimitExceededError, TokenError, UnconfirmedError

if TYPE_CHECKING:
    from quorate.client.watching import Watches

#: In place of an index to wait for: the read is to be linearizable.
LINEARIZABLE: Final = -1
#: Of a token: a header line of 8 KiB, which servers take, holds it. Enough for five hundred lives
#: of members; ended ones are folded away once all members have their records.
TOKEN_LENGTH_MAX: Final = 7 * 1024
NUMBER_MAX: Final = 2**63 - 1
_SHOWN: Final = 80  # characters of what is no token, in an error

_CLUSTER: Final = "[A-Za-z0-9._-]{1,128}"
_TOKEN: Final = re.compile(
    rf"q1:({_CLUSTER}):([0-9]{{1,19}})|"
    rf"q2:({_CLUSTER}):([0-9]{{1,19}})((?::[0-9]{{1,10}}\.[0-9]{{1,10}}\.[0-9]{{1,19}})+)"
)


class Receipt:
    """Hand one in with a call, and it says what the call got; a fresh one for each.

    *level*: at which it was answered; of a write of CRDT data that was to be confirmed more widely
    and was not, "causal". *index*: of the log entry that the write is in, or that the state read
    had come to; 0 if there was no answer. *token*: for ``at("causal", token=...)`` elsewhere; "" if
    there is nothing to be seen for certain. *may_be_lost*: the write was accepted by one node, and
    no more was known (``eventual``, not of CRDT data).
    """

    __slots__ = ("_cluster", "_marks", "index", "level", "may_be_lost")

    def __init__(self) -> None:
        self.level: Level | None = None
        self.index = 0
        self.may_be_lost = False
        self._cluster = ""  # "": there is no token
        self._marks: tuple[Mark, ...] = ()

    @property
    def token(self) -> str:
        """See the class.

        Raises:
            LimitExceededError: see ``format_token``.
        """
        return format_token(self._cluster, Position(self.index, self._marks))

    def fill(self, level: Level | None, cluster: str, position: Position) -> None:
        """For the client: the call was answered at *position*."""
        self.level, self.index, self.may_be_lost = level, position.index, False
        self._cluster, self._marks = cluster, position.marks

    def fill_more(self, level: Level, cluster: str, position: Position) -> None:
        """For the client: so was one part of a call that leaves in several frames."""
        if self.level is None:
            self.fill(level, cluster, position)
            return
        both = Seen()
        both.reach_position(cluster, Position(self.index, self._marks), NOWHERE)
        both.reach_position(cluster, position, NOWHERE)
        self.fill(level if level == self.level else CAUSAL, cluster, both.position)

    def certain(self, cluster: str) -> None:
        """For the client: what the receipt names will be seen."""
        self._cluster, self._marks = cluster, ()

    def __repr__(self) -> str:
        names = ("level", "index", "may_be_lost")
        fields = [f"{name}={getattr(self, name)!r}" for name in names]
        return f"Receipt({', '.join(fields)}, marks={len(self._marks)})"


def format_token(cluster: str, position: Position) -> str:
    """A token; "" if nothing was seen.

    Raises:
        LimitExceededError: it would be longer than ``TOKEN_LENGTH_MAX``.
    """
    if not cluster or position == NOWHERE:
        return ""
    if not position.marks:
        return f"q1:{cluster}:{position.index}"
    marks = [f"{mark.member}.{mark.epoch}.{mark.sequence}" for mark in position.marks]
    token = ":".join(("q2", cluster, str(position.index), *marks))
    if len(token) > TOKEN_LENGTH_MAX:
        raise LimitExceededError(
            f"a token of {len(marks)} lives of members takes {len(token)} characters, at most "
            f"{TOKEN_LENGTH_MAX}: ended lives are folded away once every member has all their "
            "records, so see whether a member has been away for long, and remove it"
        )
    return token


def parse_token(token: object) -> tuple[str, Position]:
    """Cluster and position of *token*; ("", ``NOWHERE``) of an empty one.

    Raises:
        TokenError: it is malformed, or of a newer version.
    """
    if token == "":
        return "", NOWHERE
    short = isinstance(token, str) and len(token) <= TOKEN_LENGTH_MAX
    shape = _TOKEN.fullmatch(token) if isinstance(token, str) and short else None
    if shape is not None:
        cluster, index = shape[1] or shape[3], int(shape[2] or shape[4])
        marks = tuple(
            [Mark(*map(int, each.split("."))) for each in (shape[5] or "").split(":")[1:]]
        )
        lives = [(mark.member, mark.epoch) for mark in marks]
        numbers = (index, *[mark.sequence for mark in marks])
        if max(numbers) <= NUMBER_MAX and lives == sorted(set(lives)):
            return cluster, Position(index, marks)
    shown = repr(token)
    if len(shown) > _SHOWN:
        shown = f"{shown[:_SHOWN]}..."
    raise TokenError(
        f"{shown} is not a session token that this version knows: it looks like q1:CLUSTER:INDEX "
        "or q2:CLUSTER:INDEX:MEMBER.EPOCH.SEQUENCE, and is passed on as it was given"
    )


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
    """What a session has seen. *cluster* "": nothing. *follows_log* False: CRDT data alone."""

    __slots__ = ("_checked", "_follows_log", "_marks", "_position", "cluster", "index")

    def __init__(self, *, follows_log: bool = True) -> None:
        self.cluster = ""
        self.index = 0
        self._marks: dict[tuple[int, int], int] = {}
        self._position: Position | None = NOWHERE  # None: to be made anew
        self._follows_log = follows_log
        self._checked = False  # the cluster is the one that the handle is connected to

    @property
    def token(self) -> str:
        return format_token(self.cluster, self.position)

    @property
    def position(self) -> Position:
        """All of it."""
        if self._position is None:
            marks = [Mark(*life, self._marks[life]) for life in sorted(self._marks)]
            self._position = Position(self.index, tuple(marks))
        return self._position

    @property
    def in_doubt(self) -> bool:
        """Whether ``check`` is to be called before the next call."""
        return not self._checked and self.cluster != ""

    def reach(self, cluster: str, index: int) -> None:
        """The handle's own cluster has answered with *index*."""
        self.cluster = cluster
        if index > self.index:
            self.index = index
            self._position = None

    def reach_position(self, cluster: str, position: Position, waited_for: Position) -> None:
        """The handle's own cluster has answered a call for CRDT data from a state that held
        *position*, and all of *waited_for*: what of that is not named in it is of lives that were
        folded away, which every node has."""
        self.cluster = cluster
        if self._follows_log:
            self.index = max(self.index, position.index)
        marks = self._marks
        if waited_for is not NOWHERE:
            named = {(mark.member, mark.epoch) for mark in position.marks}
            for mark in waited_for.marks:
                life = mark.member, mark.epoch
                if life not in named and marks.get(life, 0) <= mark.sequence:
                    marks.pop(life, None)
        self._raise(position.marks)

    def _raise(self, more: tuple[Mark, ...]) -> None:
        marks = self._marks
        for mark in more:
            life = mark.member, mark.epoch
            if mark.sequence > marks.get(life, 0):
                marks[life] = mark.sequence
        self._position = None

    def merge(self, token: object, own: str) -> None:
        """Take on what the bearer of *token* has seen; *own*: the handle's cluster, if known.

        Raises:
            TokenError: it is malformed, or of another cluster.
        """
        cluster, position = parse_token(token)
        known = own or self.cluster
        if cluster and known and cluster != known:
            raise TokenError(f"the token is of cluster {cluster!r}, and this handle of {known!r}")
        if cluster:
            self.cluster = cluster
            self.index = max(self.index, position.index)
            self._raise(position.marks)

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
        slip.fill(level, "", NOWHERE)
        return slip

    def _end(self, slip: Receipt) -> None:
        if slip.index == 0:
            slip.level = None
        elif not slip.may_be_lost:
            cluster = self._plans.cluster
            slip.certain(cluster)
            if self.seen is not None:
                self.seen.reach(cluster, slip.index)
