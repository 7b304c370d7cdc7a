"""What a task is: its description, its states, and the policies that it comes with.

These are wire and disk formats, shared by node and client: arrays; a new field goes last in its
class with a default. Durations are in milliseconds of cluster time.

A *task* is the name of a *function* and its packed arguments (*payload*). Each time a worker gets
it, that is an *attempt*, and its number is the fencing token of what the worker does with it.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Final

import msgspec

from quorate.base.limits import (
    TASK_CAPABILITIES_MAX,
    TASK_EXCLUDED_MAX,
    TASK_HEADER_MAX,
    TASK_KEY_BYTES_MAX,
    TASK_NAME_MAX,
    VALUE_BYTES_MAX,
)
from quorate.errors import InvalidArgumentError

TASK_MACHINE: Final = "tasks"  # the machine's name, for ``Run.machine`` and ``Fence.machine``

# --- states ---------------------------------------------------------------------------------------

SCHEDULED: Final = 1  #: not before a time: it was delayed, or waits between two attempts
BLOCKED: Final = 2  #: waits for other tasks
READY: Final = 3  #: waits for a worker
ASSIGNED: Final = 4  #: a worker has it in store, and has not begun
RUNNING: Final = 5
DONE: Final = 6  #: the first of the states that are never left
DEAD: Final = 7  #: gave up: in the dead-letter queue
CANCELLED: Final = 8

#: By state; the place of 0 is for what does not exist.
STATE_NAMES: Final = (
    "unknown",
    "scheduled",
    "blocked",
    "ready",
    "assigned",
    "running",
    "done",
    "dead",
    "cancelled",
)
STATES: Final = range(SCHEDULED, CANCELLED + 1)
LIVE_STATES: Final = range(SCHEDULED, DONE)

# --- priorities -----------------------------------------------------------------------------------

LOW: Final = 1
NORMAL: Final = 2
HIGH: Final = 3
URGENT: Final = 4
PRIORITY_MAX: Final = 9

# --- fields ---------------------------------------------------------------------------------------

DURATION_MS_MAX: Final = 10 * 366 * 24 * 3600 * 1000  # ten years
MOMENT_MS_MAX: Final = 2**53 - 1  # as of wall clocks in the log
TIMEOUT_MS_DEFAULT: Final = 300_000
RETRIES_DEFAULT: Final = 3
RETRY_BASE_MS_DEFAULT: Final = 1_000
RETRY_MAX_MS_DEFAULT: Final = 60_000
RETRY_FACTOR_DEFAULT: Final = 2.0
CRASHES_DEFAULT: Final = 3  #: as many workers may die of a task; with the next it is dead
KEEP_MS_DEFAULT: Final = 3_600_000  #: so long a task is known after its end

TaskId = Annotated[int, msgspec.Meta(ge=1, le=2**63 - 1)]
TaskIdOrNone = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=TASK_NAME_MAX)]
HeaderText = Annotated[str, msgspec.Meta(max_length=TASK_HEADER_MAX)]
NameOrNone = Annotated[str, msgspec.Meta(max_length=TASK_NAME_MAX)]
Payload = Annotated[bytes, msgspec.Meta(max_length=VALUE_BYTES_MAX)]
TaskKey = Annotated[bytes, msgspec.Meta(max_length=TASK_KEY_BYTES_MAX)]
Priority = Annotated[int, msgspec.Meta(ge=0, le=PRIORITY_MAX)]
Duration = Annotated[int, msgspec.Meta(ge=0, le=DURATION_MS_MAX)]
Moment = Annotated[int, msgspec.Meta(ge=0, le=MOMENT_MS_MAX)]
Count = Annotated[int, msgspec.Meta(ge=0, le=1_000_000_000)]
Capability = Name
Capabilities = Annotated[tuple[Capability, ...], msgspec.Meta(max_length=TASK_CAPABILITIES_MAX)]


def check_sorted(what: str, names: tuple[str, ...]) -> None:
    """Raises InvalidArgumentError: they are not in order, or one is there twice."""
    if any(first >= second for first, second in pairwise(names)):
        raise InvalidArgumentError(f"{what} are given in order and each once, not as {names}")


class Retry(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """What to do when an attempt fails: at most *retries* further ones; before the n-th of them
    *base_ms* x *factor* to the power n - 1, no more than *max_ms*, and up to *jitter* (0.0 to 1.0)
    times that on top, by chance. *fatal*: names of errors that are never tried again. *only*: names
    of those that alone are, if there are any; that of an attempt that was not in time is "timeout".
    """

    retries: Count = RETRIES_DEFAULT
    base_ms: Duration = RETRY_BASE_MS_DEFAULT
    max_ms: Duration = RETRY_MAX_MS_DEFAULT
    factor: Annotated[float, msgspec.Meta(ge=1.0, le=1000.0)] = RETRY_FACTOR_DEFAULT
    jitter: Annotated[float, msgspec.Meta(ge=0.0, le=1.0)] = 0.0
    fatal: Annotated[tuple[Name, ...], msgspec.Meta(max_length=64)] = ()
    only: Annotated[tuple[Name, ...], msgspec.Meta(max_length=64)] = ()


#: How long a key is held: until its task ends (whatever the end), until its first attempt begins,
#: or for a time that runs from the enqueueing, whatever becomes of the task.
UNTIL_ENDED: Final = 1
UNTIL_STARTED: Final = 2
FOR_A_TIME: Final = 3


class Unique(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """Only one at a time: whoever enqueues a task with a *key* that is held (of the same queue)
    gets the task that holds it. *hold*: see above; *hold_ms*: of ``FOR_A_TIME``."""

    key: Annotated[bytes, msgspec.Meta(min_length=1, max_length=TASK_KEY_BYTES_MAX)]
    hold: Annotated[int, msgspec.Meta(ge=UNTIL_ENDED, le=FOR_A_TIME)] = UNTIL_ENDED
    hold_ms: Duration = 0

    def __post_init__(self) -> None:
        if (self.hold == FOR_A_TIME) != (self.hold_ms > 0):
            raise InvalidArgumentError("hold_ms goes with a key that is held for a time, and only")


class Needs(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """What a task asks of its worker: all *capabilities* (sorted, each once); to be the one named
    *worker*; to be none of *excluded*. Tasks of one queue that ask for the same stand in one line.
    """

    capabilities: Capabilities = ()
    worker: NameOrNone = ""
    excluded: Annotated[tuple[Name, ...], msgspec.Meta(max_length=TASK_EXCLUDED_MAX)] = ()

    def __post_init__(self) -> None:
        check_sorted("capabilities", self.capabilities)
        check_sorted("excluded", self.excluded)
        if self.worker and self.worker in self.excluded:
            raise InvalidArgumentError(f"worker {self.worker!r} is both required and excluded")


def check_beside(needs: Needs | None) -> None:
    """Raises InvalidArgumentError: a task with such needs cannot run beside another one."""
    if needs is not None and (needs.worker or needs.excluded):
        raise InvalidArgumentError(
            "a task that runs beside another one names no workers, neither the one nor others"
        )


class Options(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """What few tasks say.

    *retry*: see there. *timeout_ms*: from the beginning of an attempt to its end; 0: none.
    *heartbeat_ms*: so often at least an attempt must report; 0: never. *expires_ms*: the first
    attempt begins so soon after the enqueueing, or the task is dead; 0: never too late. *crashes*:
    as many workers may die of it. *keep_ms*: so long it is known after its end. *unique*: see
    there. *needs*: see there. *prefers*: a worker's name, to be chosen where there is a choice.
    *beside*: a task; run where that one runs or ran first. *headers*: names and texts that travel
    with it, as for tracing.
    """

    retry: Retry | None = None
    timeout_ms: Duration = TIMEOUT_MS_DEFAULT
    heartbeat_ms: Duration = 0
    expires_ms: Duration = 0
    crashes: Count = CRASHES_DEFAULT
    keep_ms: Duration = KEEP_MS_DEFAULT
    unique: Unique | None = None
    needs: Needs | None = None
    prefers: NameOrNone = ""
    beside: TaskIdOrNone = 0
    headers: Annotated[tuple[tuple[Name, HeaderText], ...], msgspec.Meta(max_length=64)] = ()

    def __post_init__(self) -> None:
        if self.beside:
            check_beside(self.needs)


class Task(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """A task, as it is enqueued. *key*: tasks of one key are begun in their order and share what
    limits the queue has for a key; keys take turns. *delay_ms*: not before. *options*: None for
    all defaults. *at_ms*: not before this time of day, in Unix milliseconds, in place of
    *delay_ms*; 0: none. It is reckoned into cluster time once, by the leader's wall clock in the
    entry that lets the task begin but for this: so wall clocks that jump later move nothing."""

    function: Name
    payload: Payload = b""
    queue: Name = "default"
    priority: Priority = NORMAL
    key: TaskKey = b""
    delay_ms: Duration = 0
    options: Options | None = None
    at_ms: Moment = 0

    def __post_init__(self) -> None:
        if self.at_ms and self.delay_ms:
            raise InvalidArgumentError("a task has a delay or a time at which it may begin")


NO_OPTIONS: Final = Options()
NO_NEEDS: Final = Needs()
NO_RETRY: Final = Retry()
