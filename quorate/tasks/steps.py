"""The record that a step of a task's life leads to: pure, from the one before and the time."""

from __future__ import annotations

from typing import Final

import msgspec

from quorate.base.task_commands import REASON_MOVED, REASON_STOLEN
from quorate.base.task_specs import BLOCKED, READY, RUNNING, SCHEDULED, Options, Task
from quorate.replication.machine import Context
from quorate.tasks.records import LiveRecord

#: A worker got the task from another one, and why: as far as rates go, it began once.
UNCOUNTED: Final = (REASON_STOLEN, REASON_MOVED)


def not_before_ms(spec: Task, context: Context) -> int:
    """The cluster time before which *spec* must not begin, if nothing else keeps it from it now;
    0: it may at once."""
    wait_ms = max(spec.at_ms - context.wall_ms, 0) if spec.at_ms else spec.delay_ms
    return context.time_ms + wait_ms if wait_ms else 0


def waiting(
    options: Options,
    now_ms: int,
    enqueued_ms: int,
    *,
    after_ms: int,
    like: LiveRecord | None = None,
    waits: int = 0,
    pin: str | None = None,
) -> LiveRecord:
    """A task that no worker has: blocked, scheduled, or ready. *like*: as it was before."""
    begun = like is not None and like.begun
    expires_ms = 0 if begun or not options.expires_ms else enqueued_ms + options.expires_ms
    due_ms = expires_ms
    if waits:
        state = BLOCKED
    elif after_ms > now_ms:
        state = SCHEDULED
        due_ms = min(after_ms, expires_ms) if expires_ms else after_ms
    else:
        state, after_ms = READY, 0
    if like is None:
        return LiveRecord(
            state, enqueued_ms, now_ms, due_ms, 0, 0, 0, 0, after_ms, waits, pin=pin or ""
        )
    return LiveRecord(
        state,
        enqueued_ms,
        now_ms,
        due_ms,
        like.attempt,
        0,
        like.errors,
        like.crashes,
        after_ms,
        waits,
        begun,
        False,  # noqa: FBT003  positional: 0.4 us less
        like.pin if pin is None else pin,
    )


def held(live: LiveRecord, state: int, since_ms: int, due_ms: int) -> LiveRecord:
    """A worker has it, since then, and has until *due_ms*."""
    return msgspec.structs.replace(
        live, state=state, since_ms=since_ms, due_ms=due_ms, begun=live.begun or state == RUNNING
    )


def limit_ms(options: Options, now_ms: int) -> int:
    """When an attempt that begins now must have ended, or reported; 0: never."""
    return beat_ms(options, now_ms, now_ms)


def beat_ms(options: Options, since_ms: int, now_ms: int) -> int:
    """When an attempt must have ended, or reported again."""
    if not options.heartbeat_ms:
        return since_ms + options.timeout_ms if options.timeout_ms else 0
    beat_ms = now_ms + options.heartbeat_ms
    return min(since_ms + options.timeout_ms, beat_ms) if options.timeout_ms else beat_ms
