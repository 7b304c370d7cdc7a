"""Commands, queries and results of the session machine, shared by node and client.

These are wire and disk formats: arrays that begin with the tag. A new field goes last in its
class with a default; a tag never changes its meaning. Commands and queries refuse fields that they
do not know: a node must not act on half of what it was told. Results use tags from 1;
``Failure`` is 0.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

from quorate.base.limits import SESSION_TTL_MS_DEFAULT, SESSION_TTL_MS_MAX
from quorate.base.results import Failure

SESSION_MACHINE: Final = "sessions"  # the machine's name, for ``Run.machine``
CLIENT_NAME_MAX: Final = 256  # characters; shown to operators only
SESSION_LIST_MAX: Final = 1000  # sessions in one ``SessionList``

Ttl = Annotated[int, msgspec.Meta(ge=1, le=SESSION_TTL_MS_MAX)]


class OpenSession(
    msgspec.Struct, frozen=True, array_like=True, tag=1, forbid_unknown_fields=True, gc=False
):
    """A new session. *client*: a name to show. Result: ``SessionOpened``. Sent outside a session;
    if its reply is lost, send another: the orphan expires."""

    ttl_ms: Ttl = SESSION_TTL_MS_DEFAULT
    client: Annotated[str, msgspec.Meta(max_length=CLIENT_NAME_MAX)] = ""


class KeepAlive(
    msgspec.Struct, frozen=True, array_like=True, tag=2, forbid_unknown_fields=True, gc=False
):
    """Renew a session for its whole ttl; every submission does so too. Result: ``SessionAlive``,
    or a failure "session-expired"."""

    session: int


class CloseSession(
    msgspec.Struct, frozen=True, array_like=True, tag=3, forbid_unknown_fields=True, gc=False
):
    """End a session. Result: ``SessionClosed``, also if there is no such session (any more)."""

    session: int


class SessionOpened(msgspec.Struct, frozen=True, array_like=True, tag=1, gc=False):
    """*session*: its id, from 1; never given out again."""

    session: int
    expires_ms: int


class SessionAlive(msgspec.Struct, frozen=True, array_like=True, tag=2, gc=False):
    """*expires_ms*: cluster time."""

    session: int
    expires_ms: int


class SessionClosed(msgspec.Struct, frozen=True, array_like=True, tag=3, gc=False):
    """*existed*: it was this command that ended it."""

    session: int
    existed: bool


class ListSessions(
    msgspec.Struct, frozen=True, array_like=True, tag=1, forbid_unknown_fields=True, gc=False
):
    """Sessions with an id above *after*, by id. Result: ``SessionList``."""

    after: Annotated[int, msgspec.Meta(ge=0)] = 0
    limit: Annotated[int, msgspec.Meta(ge=1, le=SESSION_LIST_MAX)] = 100


class SessionInfo(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One session. *unacknowledged*: replies kept for it."""

    session: int
    client: str
    ttl_ms: int
    expires_ms: int
    acknowledged: int
    unacknowledged: int


class SessionList(msgspec.Struct, frozen=True, array_like=True, tag=11, gc=False):
    """*count*: of all sessions."""

    count: int
    sessions: tuple[SessionInfo, ...]


SessionCommand = OpenSession | KeepAlive | CloseSession
SessionResult = Failure | SessionOpened | SessionAlive | SessionClosed
