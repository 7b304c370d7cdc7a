"""Typed encoding of one machine's commands and queries, and typed decoding of their results.

Commands are encoded one by one at the call, not a run at once when it is sent: it costs 46 ns per
command more (82 ns against 36 ns), and buys exact byte bounds, an encoding error raised to the
caller who made it, and a batch that later changes of a caller's object cannot touch.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from quorate.base.frames import UNDECODABLE
from quorate.base.limits import BATCH_BYTES_MAX
from quorate.base.results import Failure
from quorate.errors import (
    CommandError,
    InvalidArgumentError,
    LimitExceededError,
    OutcomeUnknownError,
    QuorateError,
    UnconfirmedError,
    error_from_code,
)

AnyFuture = asyncio.Future[Any]
Finisher = Callable[[AnyFuture, Any], None]

_encode = msgspec.msgpack.Encoder().encode
_decode_outer = msgspec.msgpack.Decoder(list[msgspec.Raw]).decode


def _finish_failure(future: AnyFuture, failure: Failure) -> None:
    future.set_exception(_refusal(failure.code, failure.message))


def _refusal(code: str, message: str) -> QuorateError:
    error = error_from_code(code, message)
    if type(error) is QuorateError:  # a code of the machine's own
        error = CommandError(message)
        vars(error)["code"] = code
    return error


def _finish_untyped(future: AnyFuture, result: list[Any]) -> None:
    # Without a declared type a Failure shows by its tag, which no result may use.
    if len(result) == 3 and type(result[0]) is int and result[0] == 0:
        future.set_exception(_refusal(str(result[1]), str(result[2])))
    else:
        future.set_result(result)


class MachineCodec:
    """How to talk to one machine.

    *result_type*: a union of the tagged structs that its commands and queries return, or None:
    then results arrive as plain msgpack values. *finishers*: what to do, by result class, instead
    of handing the result to the future as it is.
    """

    __slots__ = ("_decode_lone", "_decode_run", "encode", "finishers", "name")

    def __init__(
        self,
        name: str,
        result_type: Any = None,  # noqa: ANN401  # a union is not a class
        finishers: Mapping[type, Finisher] | None = None,
    ) -> None:
        self.name = name
        item: Any = Any if result_type is None else result_type | Failure
        self._decode_lone = msgspec.msgpack.Decoder(tuple[list[item]]).decode
        self._decode_run = msgspec.msgpack.Decoder(list[item]).decode
        self.encode = _encode
        self.finishers: dict[type, Finisher] = {Failure: _finish_failure, **(finishers or {})}
        if result_type is None:
            self.finishers[list] = _finish_untyped

    def encode_checked(self, item: object) -> bytes:
        """*item* as msgpack.

        Raises:
            InvalidArgumentError: it cannot be encoded.
            LimitExceededError: it alone is longer than a batch may be.
        """
        try:
            part = self.encode(item)
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise InvalidArgumentError(
                f"{type(item).__name__} cannot be encoded: {error}"
            ) from error
        if len(part) > BATCH_BYTES_MAX:
            raise LimitExceededError(
                f"a {type(item).__name__} of {len(part)} bytes is over the limit of "
                f"{BATCH_BYTES_MAX} for one command"
            )
        return part

    def finish(self, futures: Sequence[AnyFuture], results: Sequence[Any]) -> None:
        """Complete *futures* with *results*; those cancelled or expired are passed over."""
        finishers = self.finishers
        for future, result in zip(futures, results, strict=True):
            if future.done():
                continue
            finisher = finishers.get(type(result))
            if finisher is None:
                future.set_result(result)
            else:
                finisher(future, result)

    def finish_unconfirmed(
        self,
        futures: Sequence[AnyFuture],
        results: Sequence[Any],
        index: int,
        members: tuple[int, ...],
    ) -> None:
        """As ``finish``, of commands in the entry at *index* which *members* have not confirmed.
        What the machine refused is refused everywhere, and stays that."""
        told = [_Told() for _ in futures]
        self.finish(told, results)  # type: ignore[arg-type]  # they do what a finisher needs
        names = ", ".join(map(str, members))
        text = (
            f"it is done, and committed in entry {index}, but these members have not confirmed in "
            f"time that they have applied it: {names}; do not repeat it"
        )
        for future, outcome in zip(futures, told, strict=True):
            if not future.done():
                error = outcome.error or UnconfirmedError(text, index, members, outcome.result)
                future.set_exception(error)


class _Told:
    """Takes what a finisher says in place of a future."""

    error: QuorateError | None = None
    result: object = None

    def done(self) -> bool:
        return False

    def set_result(self, result: object) -> None:
        self.result = result

    def set_exception(self, error: QuorateError) -> None:
        self.error = error


Runs = Sequence[tuple[MachineCodec, Sequence[AnyFuture]]]


def decode_results(runs: Runs, raw: msgspec.Raw) -> Sequence[Sequence[Any]]:
    """The results of each run.

    Raises:
        OutcomeUnknownError: the node's answer does not fit what was asked; it did answer, so
            the commands did happen, but not even which ones were refused can be known.
    """
    try:
        if len(runs) == 1:
            decoded: Sequence[Sequence[Any]] = runs[0][0]._decode_lone(raw)  # noqa: SLF001
        else:
            outer = _decode_outer(raw)
            decoded = [
                codec._decode_run(part)  # noqa: SLF001
                for (codec, _), part in zip(runs, outer, strict=True)
            ]
    except UNDECODABLE as error:
        raise OutcomeUnknownError(f"the answer came, but cannot be read: {error}") from error
    if [len(futures) for _, futures in runs] != [len(results) for results in decoded]:
        raise OutcomeUnknownError("the answer came, but does not fit the commands that were sent")
    return decoded


def pack_array(parts: Sequence[bytes]) -> bytes:
    """A msgpack array of items that are encoded already."""
    count = len(parts)
    if count < 16:
        head = bytes((0x90 | count,))
    elif count < 65_536:
        head = b"\xdc" + count.to_bytes(2, "big")
    else:
        head = b"\xdd" + count.to_bytes(4, "big")
    return head + b"".join(parts)
