"""What a coordinator is told: its settings, and the tasks, workers and workflows handed to it.

Field names and defaults are those of the coordination guide that ``docs/coordinator.md`` maps to
quorate's own names; times are in milliseconds there, so they are here. Whatever takes one of these
takes a mapping with the same names as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal, TypeVar

import msgspec

from quorate.base.limits import LEASE_TTL_MS_MAX, LEASE_TTL_MS_MIN, WORKER_LOAD_MAX
from quorate.base.task_commands import Strategy
from quorate.base.task_specs import DURATION_MS_MAX, NO_OPTIONS, Needs, Options, Retry, Task
from quorate.client.task_payloads import pack_arguments
from quorate.client.task_settings import (
    Priority,
    check_name,
    check_priority,
    sorted_names,
    with_payload,
)
from quorate.client.workflows import checked
from quorate.errors import InvalidArgumentError

S = TypeVar("S", bound=msgspec.Struct)

#: How often somebody may look at most: the looks of a whole day must not be one loop.
INTERVAL_MS_MIN: Final = 10


class RetryPolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """*max_retries* further attempts after a failed one, the n-th of them no sooner than
    *base_delay_ms* x *backoff_factor* to the power n - 1, no more than *max_delay_ms*, after it.
    *retryable_errors*: kinds of errors that are tried again; none named: all."""

    max_retries: int = 3
    base_delay_ms: int = 1_000
    max_delay_ms: int = 60_000
    backoff_factor: float = 2.0
    retryable_errors: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.retry()

    def retry(self) -> Retry:
        """As tasks carry it.

        Raises:
            InvalidArgumentError: one of the fields cannot be.
        """
        return checked(
            lambda: Retry(
                self.max_retries,
                self.base_delay_ms,
                self.max_delay_ms,
                float(self.backoff_factor),
                only=tuple(self.retryable_errors),
            )
        )


class LoadBalancerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a worker is chosen. *strategy*: "least-loaded", "round-robin", "capability-match",
    "random" or "weighted". *consider_capabilities*, *respect_affinity*: whether what tasks need of
    their worker counts, and which workers they name. *max_load_threshold*: a worker whose load is
    above this part of what it takes gets no more."""

    strategy: Strategy = "least-loaded"
    consider_capabilities: bool = True
    respect_affinity: bool = True
    max_load_threshold: float = 0.9

    def __post_init__(self) -> None:
        known = Strategy.__args__  # type: ignore[attr-defined]
        if self.strategy not in known:
            raise InvalidArgumentError(
                f"strategy is one of {', '.join(known)}, not {self.strategy!r}"
            )
        if not 0.001 <= self.max_load_threshold <= 1:
            raise InvalidArgumentError(
                f"max_load_threshold is a part from 0.001 to 1, not {self.max_load_threshold!r}"
            )


class CoordinatorConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """*heartbeat_check_interval_ms*: so often the coordinator looks which workers have been silent
    for twice as long. *timeout_check_interval_ms*: so often, for running tasks whose time is nearly
    up. *dead_worker_threshold_ms*: a worker that was silent for so long is dead, and its tasks are
    others' (the log decides that at the moment, not at the next look). *max_concurrent_tasks*: with
    workers at once, in all. *default_task_timeout_ms*, *default_retry_policy*: of tasks that do not
    say. *queue*: where they wait. *load_balancer*: see there."""

    heartbeat_check_interval_ms: int = 30_000
    timeout_check_interval_ms: int = 10_000
    dead_worker_threshold_ms: int = 90_000
    max_concurrent_tasks: int = 50
    default_task_timeout_ms: int = 300_000
    default_retry_policy: RetryPolicy = RetryPolicy()
    load_balancer: LoadBalancerConfig = LoadBalancerConfig()
    queue: str = "default"

    def __post_init__(self) -> None:
        for name in ("heartbeat_check_interval_ms", "timeout_check_interval_ms"):
            _check_number(name, getattr(self, name), INTERVAL_MS_MIN, DURATION_MS_MAX)
        low, high = LEASE_TTL_MS_MIN, LEASE_TTL_MS_MAX
        _check_number("dead_worker_threshold_ms", self.dead_worker_threshold_ms, low, high)
        _check_number("max_concurrent_tasks", self.max_concurrent_tasks, 1, 1_000_000_000)
        timeout_ms = self.default_task_timeout_ms
        _check_number("default_task_timeout_ms", timeout_ms, 1, DURATION_MS_MAX)
        check_name("queue", self.queue)


class TaskAffinity(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which worker runs a task: *required_worker*: this one, or it waits; *preferred_worker*: this
    one where there is a choice; *excluded_workers*: none of these; *same_worker_as*: the one that
    runs or ran that task. Workers by name; an id stands for the name of its worker."""

    required_worker: str | int = ""
    preferred_worker: str | int = ""
    excluded_workers: tuple[str | int, ...] = ()
    same_worker_as: int = 0

    def workers(self) -> tuple[str | int, ...]:
        """All that are named."""
        return (self.required_worker, self.preferred_worker, *self.excluded_workers)


class TaskRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A task to submit. *type*: name of the function. *payload*: its only argument; left out: it
    has none. *capabilities*: that its worker must have. *timeout_ms*, *retry_policy*: None: as the
    coordinator's. *key*: tasks of one key begin in their order. The rest is explained at
    ``TaskAffinity`` and, as *queue* "" is the coordinator's, ``TaskSettings``."""

    type: str
    payload: Any = msgspec.UNSET
    priority: Priority = "normal"
    capabilities: tuple[str, ...] = ()
    affinity: TaskAffinity = TaskAffinity()
    timeout_ms: int | None = None
    retry_policy: RetryPolicy | None = None
    delay_ms: int = 0
    key: str = ""
    queue: str = ""

    def task(self, config: CoordinatorConfig, names: Mapping[int, str]) -> Task:
        """As it goes to the cluster. *names*: of workers, by id.

        Raises:
            InvalidArgumentError: one of the fields cannot be.
            TaskPayloadError: the payload cannot be packed.
        """
        payload = pack_payload(self.type, self.payload)
        affinity = self.affinity

        def name(worker: str | int) -> str:
            return worker if isinstance(worker, str) else names[worker]

        excluded = sorted_names("excluded_workers", map(name, affinity.excluded_workers))
        capabilities = sorted_names("capabilities", self.capabilities)
        required = name(affinity.required_worker)
        needs = None
        if capabilities or required or excluded:
            needs = Needs(capabilities, required, excluded)
        timeout_ms = config.default_task_timeout_ms if self.timeout_ms is None else self.timeout_ms
        options = Options(
            (self.retry_policy or config.default_retry_policy).retry(),
            timeout_ms,
            needs=needs,
            prefers=name(affinity.preferred_worker),
            beside=affinity.same_worker_as,
        )
        made = Task(
            self.type,
            b"",
            self.queue or config.queue,
            check_priority(self.priority),
            self.key.encode(),
            self.delay_ms,
            None if options == NO_OPTIONS else options,
        )
        return with_payload(checked(lambda: made), payload)


class WorkerRegistration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A worker to register. *max_load*: tasks that it has at once. *model_name*: shown to
    operators. *queues*: that it serves; none: all. *weight*: for the strategy "weighted"."""

    name: str
    capabilities: tuple[str, ...] = ()
    max_load: int = 1
    model_name: str = ""
    queues: tuple[str, ...] = ()
    weight: int = 1

    def __post_init__(self) -> None:
        _check_number("max_load", self.max_load, 1, WORKER_LOAD_MAX)


class WorkerHeartbeat(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A worker is alive. *status*: how it is; "draining" and "error": it takes no more tasks;
    "offline": it goes. *current_load*: what it believes to have; what the cluster has of it
    counts."""

    worker_id: int
    status: Literal["active", "idle", "busy", "draining", "error", "offline"] = "active"
    current_load: int | None = None


class WorkflowTask(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A task of a workflow, *id* within it, which begins when all of *depends_on* are done. The
    rest as in ``TaskRequest``."""

    id: str
    type: str
    payload: Any = msgspec.UNSET
    depends_on: tuple[str, ...] = ()
    priority: Priority = "normal"
    capabilities: tuple[str, ...] = ()
    timeout_ms: int | None = None
    retry_policy: RetryPolicy | None = None


class WorkflowDefinition(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Tasks that depend on each other. *fail_fast*: when one of them is dead, what has not begun
    never will; otherwise what does not depend on it goes on. *max_concurrency*: so many of them at
    once are with workers or wait for one; None: all that may."""

    id: str
    tasks: tuple[WorkflowTask, ...]
    name: str = ""
    fail_fast: bool = True
    max_concurrency: int | None = None


def as_given(kind: type[S], given: S | Mapping[str, Any]) -> S:
    """A *kind*, or the mapping made into one.

    Raises:
        InvalidArgumentError: the mapping has a field too many or too few, or of another type.
    """
    try:
        return given if isinstance(given, kind) else msgspec.convert(given, kind)
    except (msgspec.ValidationError, TypeError) as error:
        if isinstance(error, InvalidArgumentError):
            raise
        raise InvalidArgumentError(f"{kind.__name__}: {error}") from error


def pack_payload(what: str, payload: Any) -> bytes:  # noqa: ANN401  whatever msgpack has
    """As the only argument of a function.

    Raises:
        TaskPayloadError: it cannot be packed.
    """
    return b"" if payload is msgspec.UNSET else pack_arguments((payload,), {}, f"task {what!r}")


def _check_number(name: str, number: int, low: int, high: int) -> None:
    given: object = number
    if not isinstance(given, int) or isinstance(given, bool) or not low <= given <= high:
        raise InvalidArgumentError(f"{name} is a number from {low} to {high}, not {number!r}")
