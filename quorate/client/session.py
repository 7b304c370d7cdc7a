"""The client's session: the replicated lease under which its batches take effect exactly once.

Opened lazily, by the first write, with a submission outside any session; renewed by every batch,
and, when there is none, by a keep-alive after a third of its time to live, so that two may be
lost. This class holds the lease and builds the commands; ``submitter`` sends them.
"""

from __future__ import annotations

from math import inf

import msgspec

from quorate.base.frames import UNDECODABLE, Run
from quorate.base.limits import SESSION_TTL_MS_MAX
from quorate.base.results import Failure
from quorate.base.session_commands import (
    CLIENT_NAME_MAX,
    SESSION_MACHINE,
    CloseSession,
    KeepAlive,
    OpenSession,
    SessionOpened,
    SessionResult,
)
from quorate.client.codec import pack_array
from quorate.errors import InvalidArgumentError, WireFormatError, error_from_code

TTL_MS_MIN = 1_000  # below it, one slow election ends the session
KEEP_ALIVE_FRACTION = 3

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(tuple[tuple[SessionResult]]).decode


class Session:
    """*id* 0: none. *ttl_ms*: the lease, in cluster time. *client*: a name shown to operators."""

    __slots__ = ("_client", "_renewed_at", "id", "ttl_ms")

    def __init__(self, ttl_ms: int, client: str = "") -> None:
        """Raises InvalidArgumentError: *ttl_ms* is outside 1 s to ``SESSION_TTL_MS_MAX``, or
        *client* is longer than ``CLIENT_NAME_MAX``."""
        name: object = client  # callers without a type checker hand in anything
        lease: object = ttl_ms
        if not isinstance(name, str) or len(name) > CLIENT_NAME_MAX:
            raise InvalidArgumentError(f"a client's name has up to {CLIENT_NAME_MAX} characters")
        if not isinstance(lease, int) or not TTL_MS_MIN <= ttl_ms <= SESSION_TTL_MS_MAX:
            raise InvalidArgumentError(
                f"a session's ttl is {TTL_MS_MIN} to {SESSION_TTL_MS_MAX} ms, not {ttl_ms!r}"
            )
        self.id = 0
        self.ttl_ms = ttl_ms
        self._client = client
        self._renewed_at = -inf

    @property
    def keep_alive_at(self) -> float:
        """Loop time at which the lease wants renewing; ``inf`` without a session."""
        if self.id == 0:
            return inf
        return self._renewed_at + self.ttl_ms / 1000 / KEEP_ALIVE_FRACTION

    def open_runs(self) -> tuple[Run, ...]:
        return _runs(OpenSession(self.ttl_ms, self._client))

    def keep_alive_runs(self) -> tuple[Run, ...]:
        return _runs(KeepAlive(self.id))

    def close_runs(self) -> tuple[Run, ...]:
        return _runs(CloseSession(self.id))

    def opened(self, results: msgspec.Raw, sent_at: float) -> None:
        """Take the id from the results of ``open_runs``, which were sent at *sent_at*.

        Raises:
            QuorateError: the cluster refused to open one.
        """
        try:
            ((result,),) = _decode(results)
        except UNDECODABLE as error:
            raise WireFormatError(f"no session in the node's answer: {error}") from error
        if isinstance(result, Failure):
            raise error_from_code(result.code, result.message)
        if not isinstance(result, SessionOpened):
            raise WireFormatError(f"the node opened no session, but said {result}")
        self.id = result.session
        self._renewed_at = sent_at

    def renewed(self, sent_at: float) -> None:
        """A batch sent at *sent_at* was applied: the lease runs from then, at the earliest."""
        self._renewed_at = max(self._renewed_at, sent_at)

    def ended(self) -> None:
        self.id = 0
        self._renewed_at = -inf


def _runs(command: msgspec.Struct) -> tuple[Run, ...]:
    return (Run(SESSION_MACHINE, msgspec.Raw(pack_array([_encode(command)]))),)
