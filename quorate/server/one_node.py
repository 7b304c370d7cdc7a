"""Questions to one particular node, whoever leads: what does *it* know, does *it* serve?

The client library goes to the leader. Readiness, ``quorate status`` and the demo's verification
must not: they ask each node by itself. One connection, a few calls at a time, no retries.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Sequence
from typing import Any, Final, Self

import msgspec

from quorate.base.frames import (
    ROLE_CLIENT,
    WIRE_VERSION,
    AdminFailed,
    AdminReply,
    AdminRequest,
    ClientFrame,
    Hello,
    Query,
    QueryFailed,
    QueryReply,
    Refused,
    Run,
    ServerFrame,
    Welcome,
)
from quorate.base.kv_commands import KvQuery, KvResult, Status, StatusResult
from quorate.base.results import Failure
from quorate.client.channel import Channel, Dialer
from quorate.client.endpoints import Endpoint
from quorate.errors import (
    DeadlineExceededError,
    OverloadedError,
    QuorateError,
    UnavailableError,
    WireFormatError,
    error_from_code,
)

KV_MACHINE: Final = "kv"
CALLS_MAX: Final = 64  # unanswered at once; nobody here needs more than a few
TIMEOUT_S_DEFAULT: Final = 2.0

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[list[Failure | KvResult]]).decode


class OneNode:
    """A connection to the node at one endpoint. Made by ``open``; belongs to the running loop."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._channel: Channel | None = None
        self._welcome: asyncio.Future[Welcome] = asyncio.get_running_loop().create_future()
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._last_id = 0
        self._lost: QuorateError | None = None

    @classmethod
    async def open(
        cls,
        endpoint: Endpoint,
        *,
        tls: ssl.SSLContext | None = None,
        cluster: str = "",
        timeout_s: float = TIMEOUT_S_DEFAULT,
    ) -> Self:
        """Connect and be welcomed. Close it, or use it in ``async with``.

        Raises:
            UnavailableError: nobody answers there, or not in time.
            RefusedError: the node does not want this caller.
        """
        node = cls(endpoint)
        try:
            async with asyncio.timeout(timeout_s):
                node._channel = await Dialer(tls).dial(
                    endpoint, node._on_frame, node._on_lost, lambda: None
                )
                node._channel.send((Hello(WIRE_VERSION, ROLE_CLIENT, cluster),))
                await node._welcome
        except TimeoutError:
            node.close()
            raise UnavailableError(f"{endpoint} did not answer within {timeout_s:g} s") from None
        except BaseException:
            node.close()
            raise
        return node

    @property
    def welcome(self) -> Welcome:
        """What the node said of itself when this connection was made."""
        return self._welcome.result()

    async def query(
        self,
        query: KvQuery,
        *,
        linearizable: bool = True,
        timeout_s: float = TIMEOUT_S_DEFAULT,
    ) -> KvResult:
        """The answer of this node's key-value store.

        Raises:
            QuorateError: the node refused, or the connection is gone.
            DeadlineExceededError: no answer within *timeout_s*.
        """
        run = Run(KV_MACHINE, msgspec.Raw(_encode([query])))
        number = self._next_id()
        raw = await self._ask(number, Query(number, (run,), linearizable), timeout_s)
        try:
            ((result,),) = _decode(raw)
        except ValueError as error:  # msgspec's errors are such
            raise WireFormatError(f"{self.endpoint} answered what is no result: {error}") from error
        if isinstance(result, Failure):
            raise error_from_code(result.code, result.message)
        return result

    async def call(
        self,
        method: str,
        arguments: dict[str, Any] | None = None,
        timeout_s: float = TIMEOUT_S_DEFAULT,
    ) -> Any:  # noqa: ANN401  # whatever the method returns
        """An administrative call to this node.

        Raises:
            QuorateError: as ``query``.
        """
        number = self._next_id()
        return await self._ask(number, AdminRequest(number, method, arguments or {}), timeout_s)

    async def serves(self, timeout_s: float = TIMEOUT_S_DEFAULT) -> int:
        """Prove that the node serves: a linearizable read. Returns the store's revision.

        Raises:
            QuorateError: it does not serve now, and why.
        """
        result = await self.query(Status(), timeout_s=timeout_s)
        if not isinstance(result, StatusResult):
            raise WireFormatError(f"{self.endpoint} answered a {type(result).__name__}")
        return result.revision

    def close(self) -> None:
        """Drop the connection; unanswered calls end with ``UnavailableError``."""
        if self._channel is not None:
            self._channel.close()
        self._on_lost(UnavailableError(f"the connection to {self.endpoint} was closed"))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exception: object) -> None:
        self.close()

    # --- inside --------------------------------------------------------------------------------

    def _next_id(self) -> int:
        self._last_id += 1
        return self._last_id

    async def _ask(self, number: int, frame: ClientFrame, timeout_s: float) -> Any:  # noqa: ANN401
        if self._lost is not None or self._channel is None:
            raise self._lost or UnavailableError(f"not connected to {self.endpoint}")
        if len(self._answers) >= CALLS_MAX:
            raise OverloadedError(f"{CALLS_MAX} calls to {self.endpoint} wait already")
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._answers[number] = future
        try:
            self._channel.send((frame,))
            async with asyncio.timeout(timeout_s):
                return await future
        except TimeoutError as error:
            if isinstance(error, QuorateError):
                raise
            raise DeadlineExceededError(
                f"{self.endpoint} did not answer within {timeout_s:g} s"
            ) from None
        finally:
            self._answers.pop(number, None)

    def _on_frame(self, frame: ServerFrame) -> None:
        match frame:
            case Welcome():
                if not self._welcome.done():
                    self._welcome.set_result(frame)
            case Refused(code=code, message=message):
                if not self._welcome.done():
                    self._welcome.set_exception(error_from_code(code, message))
            case QueryReply(id=number, results=results):
                self._answer(number, results)
            case AdminReply(id=number, result=result):
                self._answer(number, result)
            case QueryFailed() | AdminFailed():
                self._fail(frame.id, error_from_code(frame.code, frame.message))
            case _:  # news of leaders and the like
                pass

    def _answer(self, number: int, result: object) -> None:
        future = self._answers.get(number)
        if future is not None and not future.done():
            future.set_result(result)

    def _fail(self, number: int, error: QuorateError) -> None:
        future = self._answers.get(number)
        if future is not None and not future.done():
            future.set_exception(error)

    def _on_lost(self, error: QuorateError | None) -> None:
        if self._lost is None:
            self._lost = error or UnavailableError(f"{self.endpoint} closed the connection")
        waiting: Sequence[asyncio.Future[Any]] = [*self._answers.values()]
        for future in waiting:
            if not future.done():
                future.set_exception(UnavailableError(str(self._lost)))
        if not self._welcome.done():
            self._welcome.set_exception(self._lost)
            self._welcome.exception()  # whoever still waits gets it; nobody needs to
