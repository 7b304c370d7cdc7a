"""The first two frames of a connection that this node dials: hello, and welcome or refusal."""

from __future__ import annotations

import asyncio
import ssl

import msgspec

from quorate.base.frames import UNDECODABLE, Hello, LeaderInfo, Refused, Welcome, encode_frame
from quorate.client.endpoints import parse_endpoint
from quorate.errors import RefusedError, UnavailableError, WireFormatError, error_from_code
from quorate.server.connection import Connection, dial

_decode_answer = msgspec.msgpack.Decoder(Welcome | Refused | LeaderInfo).decode


async def greet(
    address: str, hello: Hello, *, context: ssl.SSLContext | None, timeout_s: float
) -> tuple[Connection, Welcome]:
    """Dial *address* ("host:port"), say *hello*, and return the welcomed connection, on which
    nothing else was sent or received yet. *timeout_s* bounds the whole.

    Raises:
        UnavailableError: nobody answers in time.
        RefusedError: it answers and will not have us.
        InvalidArgumentError: *address* is not one.
    """
    endpoint = parse_endpoint(address)
    answer: asyncio.Future[Welcome] = asyncio.get_running_loop().create_future()

    def on_bodies(bodies: list[bytes]) -> None:
        for body in bodies:
            _on_answer(answer, body)

    def on_closed(reason: str) -> None:
        if not answer.done():
            answer.set_exception(UnavailableError(f"{address} closed the connection: {reason}"))

    def on_made(made: Connection) -> None:
        made.on_bodies, made.on_closed = on_bodies, on_closed
        made.accepted()
        made.send(encode_frame(hello))

    try:
        async with asyncio.timeout(timeout_s):
            connection = await dial(
                endpoint.host, endpoint.port, context=context, timeout_s=timeout_s, on_made=on_made
            )
            try:
                return connection, await answer
            except BaseException:
                connection.close()
                raise
    except TimeoutError as error:
        raise UnavailableError(f"{address} did not answer the hello in {timeout_s} s") from error


def _on_answer(answer: asyncio.Future[Welcome], body: bytes) -> None:
    try:
        frame = _decode_answer(body)
    except UNDECODABLE as error:
        raise WireFormatError(f"the answer to the hello is not a frame: {error}") from error
    if answer.done():
        return
    if isinstance(frame, Welcome):
        answer.set_result(frame)
    elif isinstance(frame, Refused):
        refusal = error_from_code(frame.code, frame.message)
        if not isinstance(refusal, RefusedError | UnavailableError):
            refusal = RefusedError(str(refusal))
        answer.set_exception(refusal)
