"""Results of a submission or a query, as they gather in a buffer that must not outgrow a reply."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from quorate.base.invariants import must
from quorate.base.limits import BATCH_COMMANDS_MAX, REPLY_BYTES_MAX
from quorate.base.results import Failure
from quorate.errors import LimitExceededError
from quorate.replication.machine import Context

#: Room that is kept in a full reply for the short refusals of the commands that no longer fit.
REFUSAL_BYTES: Final = 64
RESULTS_BYTES_MAX: Final = REPLY_BYTES_MAX - REFUSAL_BYTES * BATCH_COMMANDS_MAX
must(RESULTS_BYTES_MAX > REPLY_BYTES_MAX // 2, "refusals take the smaller part of a full reply")

FULL: Final = Failure(LimitExceededError.code, "the reply is full")
must(len(msgspec.msgpack.encode(FULL)) <= REFUSAL_BYTES, "a short refusal is short")


class ReplyFullError(Exception):
    """The results of a submission, or of a query, outgrow a reply."""


def refuse_full(command: Any, context: Context) -> Any:  # noqa: ANN401, ARG001
    """In the place of a machine's ``apply``, once the reply is full."""
    raise ReplyFullError


_SMALL: Final = tuple(bytes((0x90 | count,)) for count in range(16))


def array_header(count: int) -> bytes:
    """The msgpack header of an array of *count* items."""
    if count < 16:
        return _SMALL[count]
    if count < 1 << 16:
        return b"\xdc" + count.to_bytes(2, "big")
    return b"\xdd" + count.to_bytes(4, "big")
