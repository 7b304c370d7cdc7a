"""Rows of the tables and views of ``coordinator_tables``.

Times are cluster time in milliseconds, 0 for what has not come.
"""

from __future__ import annotations

from typing import Any

import msgspec


class WorkerRow(msgspec.Struct, frozen=True, kw_only=True):
    """A row of ``workers``. *status*: "idle", "busy", "draining", "error", "offline"."""

    id: int
    name: str
    status: str
    capabilities: tuple[str, ...]
    current_load: int
    max_load: int
    load_factor: float
    model_name: str
    queues: tuple[str, ...]
    registered_ms: int
    last_seen_ms: int
    failures_in_row: int


class TaskRow(msgspec.Struct, frozen=True, kw_only=True):
    """A row of ``task_queue``: a task that has not ended. *status* is the guide's word for *state*.
    *payload*: what it was submitted with; None: nothing, or packed otherwise."""

    id: int
    type: str
    queue: str
    status: str
    state: str
    priority: int
    payload: Any
    attempt: int
    errors: int
    crashes: int
    worker_id: int
    enqueued_ms: int
    since_ms: int
    due_ms: int
    capabilities: tuple[str, ...]


class ResultRow(msgspec.Struct, frozen=True, kw_only=True):
    """A row of ``task_results``: a task that is done or cancelled, each once, with the attempt that
    ended it."""

    task_id: int
    type: str
    queue: str
    status: str
    attempt: int
    worker_id: int
    result: Any
    error: str
    enqueued_ms: int
    ended_ms: int


class AssignmentRow(msgspec.Struct, frozen=True, kw_only=True):
    """A row of ``worker_assignments``: what a worker has. *reason*: a strategy, or "required",
    "preferred", "beside", "claimed", "stolen", "assigned", "moved"."""

    task_id: int
    worker_id: int
    attempt: int
    status: str
    reason: str
    assigned_ms: int


class DeadLetterRow(msgspec.Struct, frozen=True, kw_only=True):
    """A row of ``dead_letter_queue``. *workers_tried*: on which it failed, the latest last."""

    task_id: int
    type: str
    queue: str
    payload: Any
    kind: str
    error: str
    attempts: int
    errors: int
    crashes: int
    workers_tried: tuple[int, ...]
    died_ms: int


class DependencyRow(msgspec.Struct, frozen=True, kw_only=True):
    """A row of ``task_dependencies``: of a workflow that is known. *satisfied*: what it depends on
    has ended in a way that lets it begin."""

    workflow: int
    task_id: int
    task: str
    depends_on_id: int
    depends_on: str
    type: str
    satisfied: bool


class MetricsRow(msgspec.Struct, frozen=True, kw_only=True):
    """A row of ``worker_metrics``: what a worker has done under this id. *avg_duration_ms*: of what
    it completed."""

    worker_id: int
    name: str
    completed: int
    failed: int
    crashed: int
    total_run_ms: int
    avg_duration_ms: float
    success_rate: float


class ActiveWorkerRow(WorkerRow, frozen=True, kw_only=True):
    """A row of ``v_active_workers``. *silence_ms*: since it was heard of; *stale*: that is more
    than twice the heartbeat interval."""

    silence_ms: int
    stale: bool


class PendingTaskRow(msgspec.Struct, frozen=True, kw_only=True):
    """A row of ``v_pending_tasks``: ready for a worker, in the order of priority."""

    task_id: int
    type: str
    queue: str
    priority: int
    waiting_ms: int
    capabilities: tuple[str, ...]


class HealthRow(msgspec.Struct, frozen=True, kw_only=True):
    """The row of ``v_system_health``. *completed*, *failed*: so far, the latter by attempts."""

    idle_workers: int
    busy_workers: int
    draining_workers: int
    error_workers: int
    offline_workers: int
    pending_tasks: int
    assigned_tasks: int
    running_tasks: int
    completed_tasks: int
    failed_attempts: int
    cancelled_tasks: int
    dead_tasks: int
    avg_load_factor: float
    now_ms: int


class PerformanceRow(msgspec.Struct, frozen=True, kw_only=True):
    """A row of ``v_worker_performance``. *success_rate*: completed of all attempts that ended, 1.0
    before the first."""

    worker_id: int
    name: str
    success_rate: float
    avg_duration_ms: float
    completed: int
    failed: int


class ExecutionRow(msgspec.Struct, frozen=True, kw_only=True):
    """A row of ``v_task_execution_summary``: what has happened in a queue so far."""

    queue: str
    enqueued: int
    completed: int
    dead: int
    cancelled: int
    failures: int
    timeouts: int
    crashes: int
    avg_duration_ms: float
    avg_wait_ms: float


class QueueDepthRow(msgspec.Struct, frozen=True, kw_only=True):
    """A row of ``v_queue_depth``. *oldest_ms*: for so long the oldest ready task waits."""

    queue: str
    scheduled: int
    blocked: int
    ready: int
    assigned: int
    running: int
    oldest_ms: int
    paused: bool


class TimeoutRow(msgspec.Struct, frozen=True, kw_only=True):
    """A row of ``v_timeout_candidates``: running, and *left_ms* before its time is up."""

    task_id: int
    type: str
    worker_id: int
    attempt: int
    running_ms: int
    left_ms: int
