"""``db.together``: keys written and tasks enqueued in one transaction, all or nothing.

    done = await db.together(
        [ops.missing("order/7")],
        then=[ops.put("order/7", order)],
        tasks=[db.tasks.task("send-confirmation", args=(7,))],
    )

Both machines apply one log, so there is nothing to prepare and nobody to wait for: it costs what a
transaction costs.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, Protocol

import msgspec

from quorate.base.kv_commands import Compare, Operation, Txn, TxnResult
from quorate.base.limits import TASK_BATCH_MAX, TXN_OPERATIONS_MAX
from quorate.base.task_commands import Complete, Done, Enqueue, Enqueued, Settlement
from quorate.base.task_specs import TASK_MACHINE, Task
from quorate.base.together_commands import (
    TOGETHER_MACHINE,
    DoneTogether,
    Part,
    Together,
    TogetherResult,
)
from quorate.client import operations as ops
from quorate.client.codec import AnyFuture, MachineCodec
from quorate.client.kv import Fences
from quorate.client.settings import check_timeout
from quorate.errors import InvalidArgumentError, LimitExceededError

_KV: Final = "kv"
_encode: Final = msgspec.msgpack.Encoder().encode
_decode_txn: Final = msgspec.msgpack.Decoder(TxnResult).decode
_decode_tasks: Final = msgspec.msgpack.Decoder(Enqueued | Settlement).decode


class Committed(msgspec.Struct, frozen=True):
    """What was done. *txn*: of the keys, None if there were none. *tasks*: ids of those enqueued,
    in their order; *known*: places of those that are not new, as their unique key was held."""

    txn: TxnResult | None
    tasks: tuple[int, ...] = ()
    known: tuple[int, ...] = ()


class Attempt(msgspec.Struct, frozen=True):
    """An attempt at a task, which is completed with *result* (packed) in the same transaction."""

    worker: int
    task: int
    attempt: int
    result: bytes = b""


class Plans(Protocol):
    """What this needs of a ``Database``."""

    @property
    def timeout(self) -> float: ...

    def codec(self, name: str, result_type: Any) -> MachineCodec: ...  # noqa: ANN401

    def submit(self, codec: MachineCodec, item: object, timeout: float, /) -> AnyFuture: ...


async def commit(
    plans: Plans,
    compare: Iterable[Compare] = (),
    *,
    then: Iterable[Operation] = (),
    tasks: Iterable[Task] = (),
    completes: Attempt | None = None,
    fence: Fences = None,
    timeout: float | None = None,
) -> Committed:
    """If all of *compare* hold: do *then*, enqueue *tasks*, and complete an attempt; otherwise
    nothing. See ``Database.together``."""
    compares, operations, specs = tuple(compare), tuple(then), tuple(tasks)
    _check(compares, "conditions", Compare, TXN_OPERATIONS_MAX)
    _check(operations, "operations", Operation, TXN_OPERATIONS_MAX)
    _check(specs, "tasks", Task, TASK_BATCH_MAX)
    parts = []
    # Keys first: a condition that does not hold is found before a task is made.
    if compares or operations:
        parts.append(_part(_KV, ops.fenced(Txn(compares, operations), fence)))
    elif fence is not None:
        raise InvalidArgumentError("a fence is for writes of keys, and there are none")
    if completes is not None:
        done = Done(completes.task, completes.attempt, completes.result)
        parts.append(_part(TASK_MACHINE, Complete(completes.worker, (done,), specs)))
    elif specs:
        parts.append(_part(TASK_MACHINE, Enqueue(specs)))
    if not parts:
        raise InvalidArgumentError("there is nothing to do: no condition, operation or task")
    codec = plans.codec(TOGETHER_MACHINE, TogetherResult)
    wait_s = plans.timeout if timeout is None else check_timeout(timeout)
    result: DoneTogether = await plans.submit(codec, Together(tuple(parts)), wait_s)
    results = list(result.results)
    txn = _decode_txn(results.pop(0)) if compares or operations else None
    made = _decode_tasks(results.pop(0)) if results else None
    if isinstance(made, Enqueued):
        return Committed(txn, made.tasks, made.known)
    return Committed(txn, () if made is None else made.followed)


def _part(machine: str, command: object) -> Part:
    return Part(machine, msgspec.Raw(_encode(command)))


def _check(given: tuple[object, ...], what: str, kind: Any, limit: int) -> None:  # noqa: ANN401
    if len(given) > limit:
        raise LimitExceededError(f"a transaction has up to {limit} {what}, not {len(given)}")
    for each in given:
        if not isinstance(each, kind):
            made = "db.tasks.task" if kind is Task else "quorate.ops"
            raise InvalidArgumentError(f"{each!r} is not one of the {what}; make them with {made}")
