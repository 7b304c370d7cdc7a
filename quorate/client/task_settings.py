"""What may be said of a task when it is enqueued, as keyword arguments: times are in seconds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from math import isfinite
from typing import Any, Final, Literal, TypedDict, cast

import msgspec

from quorate.base.limits import TASK_NAME_MAX, VALUE_BYTES_MAX
from quorate.base.task_specs import (
    DURATION_MS_MAX,
    FOR_A_TIME,
    HIGH,
    LOW,
    NO_NEEDS,
    NO_OPTIONS,
    NO_RETRY,
    NORMAL,
    PRIORITY_MAX,
    UNTIL_ENDED,
    UNTIL_STARTED,
    URGENT,
    Needs,
    Options,
    Retry,
    Task,
    Unique,
)
from quorate.client.operations import Bytes, as_bytes
from quorate.errors import InvalidArgumentError, LimitExceededError

PRIORITIES: Final = {"low": LOW, "normal": NORMAL, "high": HIGH, "urgent": URGENT}

#: A number from 0 to 9, or its name.
Priority = int | Literal["low", "normal", "high", "urgent"]


class TaskSettings(TypedDict, total=False):
    """Keyword arguments that say how a task is run. What is not given is as in brackets.

    *queue* ["default"]. *priority*: 0 to 9, or "low" (1), "normal" (2), "high" (3), "urgent" (4)
    ["normal"]. *delay*: begins no sooner than in so many seconds [0]; or *at*: no sooner than at
    this time, a datetime with a time zone; at once, if it has passed [none].

    *retries*: further attempts after a failed one [3]. *backoff*: seconds before the first of them
    [1]; times *backoff_factor* [2] before each further one, up to *backoff_max* [60]. *jitter*: up
    to this part of it on top, by chance, 0 to 1 [0]. *fatal*: errors, by name or class, after
    which there is no further attempt [none].

    *timeout*: seconds from the beginning of an attempt to its end, None: any number [300].
    *heartbeat*: an attempt whose worker was silent for so long has failed, None: its lease alone
    counts [None]. *expires*: if it has not begun so many seconds after it was enqueued it is dead
    [None]. *crashes*: as many workers may die of it [3]. *keep*: seconds for which it and its
    result are known after its end [3600].

    *unique_for*: seconds for which a unique key is held, whatever becomes of the task; or
    *unique_until*: "ended", or "started" ["ended"].

    *capabilities*: that its worker must have [none]. *worker*: the name of the one worker that may
    run it. *excluded*: names of workers that may not. *prefers*: a worker's name, to be chosen
    where there is a choice. *beside*: a task; run where that one runs or ran. *headers*: names and
    texts that travel with it.
    """

    queue: str
    priority: Priority
    delay: float
    at: datetime | None
    retries: int
    backoff: float
    backoff_max: float
    backoff_factor: float
    jitter: float
    fatal: Iterable[str | type[BaseException]]
    timeout: float | None
    heartbeat: float | None
    expires: float | None
    crashes: int
    keep: float
    unique_for: float
    unique_until: Literal["ended", "started"]
    capabilities: Iterable[str]
    worker: str
    excluded: Iterable[str]
    prefers: str
    beside: int
    headers: Mapping[str, str]


class KeyedSettings(TaskSettings, total=False):
    """And two that are about this very task. *key*: tasks of one key are begun in their order, keys
    take turns, and a queue may have limits for each key [b""]. *unique*: whoever enqueues a task
    with a unique key that another of the same queue holds gets that one [none]."""

    key: Bytes
    unique: Bytes


_RETRY: Final = ("retries", "backoff", "backoff_max", "backoff_factor", "jitter", "fatal")
_NEEDS: Final = ("capabilities", "worker", "excluded")
_UNIQUE: Final = ("unique", "unique_for", "unique_until")
_OPTIONS: Final = frozenset(
    (*_RETRY, *_NEEDS, *_UNIQUE, "timeout", "heartbeat", "expires", "crashes", "keep", "prefers")
) | {"beside", "headers"}
_ALL: Final = _OPTIONS | {"queue", "priority", "delay", "at", "key"}
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

_check_task = msgspec.msgpack.Decoder(Task).decode
_encode = msgspec.msgpack.Encoder().encode


def make_task(function: str, payload: bytes, settings: Mapping[str, Any]) -> Task:
    """A task, as it goes to the cluster. *settings*: as in ``KeyedSettings``.

    Raises:
        InvalidArgumentError: one of them cannot be; the text names it.
    """
    check_payload(payload)
    if not settings:
        return Task(check_name("function", function), payload)
    unknown = settings.keys() - _ALL
    if unknown:
        raise InvalidArgumentError(f"a task has no {', '.join(sorted(map(repr, unknown)))}")
    task = Task(
        check_name("function", function),
        b"",
        check_name("queue", settings.get("queue", "default")),
        check_priority(settings.get("priority", NORMAL)),
        as_bytes(settings.get("key", b""), "key"),
        duration_ms("delay", settings.get("delay", 0)),
        _options(settings) if _OPTIONS & settings.keys() else None,
        moment_ms("at", settings.get("at")),
    )
    try:
        checked = _check_task(_encode(task))
    except (msgspec.MsgspecError, TypeError, OverflowError) as error:
        raise InvalidArgumentError(f"a task cannot be so: {error}") from error
    return with_payload(checked, payload) if payload else checked


def with_payload(task: Task, payload: bytes) -> Task:
    """*task* with other arguments."""
    return Task(
        task.function, payload, task.queue, task.priority, task.key, task.delay_ms, task.options,
        task.at_ms,
    )  # fmt: skip


def with_unique(task: Task, key: bytes) -> Task:
    """*task* under a unique *key*, which it holds as it says already.

    Raises:
        InvalidArgumentError: the key is empty or too long.
    """
    options = task.options or NO_OPTIONS
    unique = options.unique or Unique(b"-")
    options = msgspec.structs.replace(options, unique=msgspec.structs.replace(unique, key=key))
    try:
        return _check_task(_encode(msgspec.structs.replace(task, options=options)))
    except msgspec.MsgspecError as error:
        raise InvalidArgumentError(f"a unique key cannot be so: {error}") from error


def check_payload(payload: bytes) -> None:
    """Raises InvalidArgumentError: these are no bytes, or too many."""
    given: object = payload
    if not isinstance(given, bytes):
        raise InvalidArgumentError(f"a payload is bytes, not {type(given).__name__}")
    if len(given) > VALUE_BYTES_MAX:
        raise LimitExceededError(
            f"a payload of {len(given)} bytes is over the limit of {VALUE_BYTES_MAX}"
        )


def check_name(what: str, name: str) -> str:
    """A name of a function, queue, worker or capability.

    Raises:
        InvalidArgumentError: it cannot be one.
    """
    given: object = name
    if isinstance(given, str) and 0 < len(given) <= TASK_NAME_MAX:
        return name
    raise InvalidArgumentError(f"{what} is a name of 1 to {TASK_NAME_MAX} characters, not {name!r}")


def check_priority(priority: Priority) -> int:
    """A priority as a number.

    Raises:
        InvalidArgumentError: there is no such priority.
    """
    given: object = priority
    if isinstance(given, str) and given in PRIORITIES:
        return PRIORITIES[given]
    if isinstance(given, int) and not isinstance(given, bool) and 0 <= given <= PRIORITY_MAX:
        return given
    raise InvalidArgumentError(
        f"a priority is 0 to {PRIORITY_MAX}, or one of {', '.join(PRIORITIES)}, not {priority!r}"
    )


def fatal_classes(settings: Mapping[str, Any]) -> tuple[type[BaseException], ...]:
    """Those of *fatal* that are classes: their subclasses count too."""
    return tuple(each for each in settings.get("fatal", ()) if isinstance(each, type))


def _options(settings: Mapping[str, Any]) -> Options:
    get = settings.get
    try:
        return Options(
            _retry(settings) if _given(settings, _RETRY) else None,
            duration_ms("timeout", get("timeout", NO_OPTIONS.timeout_ms / 1000)),
            duration_ms("heartbeat", get("heartbeat")),
            duration_ms("expires", get("expires")),
            _count("crashes", get("crashes", NO_OPTIONS.crashes)),
            duration_ms("keep", get("keep", NO_OPTIONS.keep_ms / 1000)),
            _unique(settings) if _given(settings, _UNIQUE) else None,
            _needs(settings) if _given(settings, _NEEDS) else None,
            get("prefers", ""),
            _count("beside", get("beside", 0)),
            tuple(sorted(dict(get("headers", ())).items())),
        )
    except (TypeError, ValueError) as error:
        if isinstance(error, InvalidArgumentError):
            raise
        raise InvalidArgumentError(f"a task cannot be so: {error}") from error


def _given(settings: Mapping[str, Any], names: tuple[str, ...]) -> bool:
    return any(name in settings for name in names)


def _retry(settings: Mapping[str, Any]) -> Retry:
    get = settings.get
    backoff_ms = duration_ms("backoff", get("backoff", NO_RETRY.base_ms / 1000))
    most = get("backoff_max", max(NO_RETRY.max_ms, backoff_ms) / 1000)
    fatal = [each.__name__ if isinstance(each, type) else each for each in get("fatal", ())]
    return Retry(
        _count("retries", get("retries", NO_RETRY.retries)),
        backoff_ms,
        duration_ms("backoff_max", most),
        float(get("backoff_factor", NO_RETRY.factor)),
        float(get("jitter", NO_RETRY.jitter)),
        tuple(fatal),
    )


def _needs(settings: Mapping[str, Any]) -> Needs:
    return Needs(
        sorted_names("capabilities", settings.get("capabilities", NO_NEEDS.capabilities)),
        settings.get("worker", ""),
        sorted_names("excluded", settings.get("excluded", NO_NEEDS.excluded)),
    )


def _unique(settings: Mapping[str, Any]) -> Unique:
    hold_ms = duration_ms("unique_for", settings.get("unique_for"))
    until = settings.get("unique_until", "ended")
    if until not in ("ended", "started"):
        raise InvalidArgumentError(f"unique_until is 'ended' or 'started', not {until!r}")
    if hold_ms and "unique_until" in settings:
        raise InvalidArgumentError("give unique_for or unique_until, not both")
    hold = FOR_A_TIME if hold_ms else UNTIL_ENDED if until == "ended" else UNTIL_STARTED
    key = as_bytes(cast("Bytes", settings.get("unique", b"")), "unique")
    if not key:
        raise InvalidArgumentError("a unique key has at least one byte")
    return Unique(key, hold, hold_ms)


def sorted_names(what: str, names: Iterable[str]) -> tuple[str, ...]:
    """*names* in order, each once.

    Raises:
        InvalidArgumentError: one cannot be a name.
    """
    if isinstance(names, str):
        raise InvalidArgumentError(f"{what} are several names: give a list, not {names!r}")
    return tuple(sorted({check_name(what, each) for each in names}))


def duration_ms(name: str, seconds: float | None) -> int:
    """A duration in milliseconds; None: 0, which stands for "none".

    Raises:
        InvalidArgumentError: it cannot be one.
    """
    given: object = seconds
    if given is None:
        return 0
    is_number = isinstance(given, int | float) and not isinstance(given, bool)
    if is_number and isfinite(seconds or 0) and 0 <= (seconds or 0) * 1000 <= DURATION_MS_MAX:
        # What is not nothing must not become it: 0 stands for "none".
        return max(round((seconds or 0) * 1000), 1 if seconds else 0)
    raise InvalidArgumentError(
        f"{name} is a number of seconds from 0 to {DURATION_MS_MAX // 1000}, not {seconds!r}"
    )


def moment_ms(name: str, moment: datetime | None) -> int:
    """A time of day in Unix milliseconds; None: 0, which stands for "none".

    Raises:
        InvalidArgumentError: it is no datetime, or has no time zone.
    """
    given: object = moment
    if given is None or moment is None:
        return 0
    if not isinstance(given, datetime) or moment.utcoffset() is None:
        raise InvalidArgumentError(
            f"{name} is a datetime with a time zone, such as datetime.now(UTC), not {moment!r}"
        )
    # Up to the next millisecond: never too soon. What is long past is past.
    return max(-((_EPOCH - moment) // timedelta(milliseconds=1)), 1)


def _count(name: str, count: int) -> int:
    given: object = count
    if isinstance(given, int) and not isinstance(given, bool) and given >= 0:
        return count
    raise InvalidArgumentError(f"{name} is a number from 0, not {count!r}")
