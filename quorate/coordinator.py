"""``quorate.coordinator``: the names of the coordination guide, over quorate's own.

``create_default_coordinator()`` is a coordinator over a database of one node in this process;
``Coordinator(db)`` one over any handle. ``docs/coordinator.md`` maps every name.
"""

from __future__ import annotations

import os

from quorate.client.coordinator import Coordinator, Progress, WorkflowOutcome
from quorate.client.coordinator_config import (
    CoordinatorConfig,
    LoadBalancerConfig,
    RetryPolicy,
    TaskAffinity,
    TaskRequest,
    WorkerHeartbeat,
    WorkerRegistration,
    WorkflowDefinition,
    WorkflowTask,
)
from quorate.client.coordinator_distributor import TaskDistributor
from quorate.client.coordinator_events import CoordinatorEvent
from quorate.client.coordinator_inbox import TaskAssignment
from quorate.client.coordinator_queue import LEGAL, QueueStats, TaskQueue
from quorate.client.coordinator_state import DistributedState, StateRow
from quorate.client.coordinator_tables import TABLES, VIEWS, Tables, Views
from quorate.client.coordinator_workers import WorkerManager
from quorate.errors import (
    NoAvailableWorkerError,
    OptimisticLockError,
    QuorateError,
    TaskNotFoundError,
    TaskStateError,
    TaskTimeoutError,
    WorkerNotFoundError,
)
from quorate.server.embedded import open as open_database

#: The guide's names of errors. Each has ``code``, and its text the details.
CoordinationError = QuorateError

__all__ = [
    "LEGAL",
    "TABLES",
    "VIEWS",
    "CoordinationError",
    "Coordinator",
    "CoordinatorConfig",
    "CoordinatorEvent",
    "DistributedState",
    "LoadBalancerConfig",
    "NoAvailableWorkerError",
    "OptimisticLockError",
    "Progress",
    "QueueStats",
    "RetryPolicy",
    "StateRow",
    "Tables",
    "TaskAffinity",
    "TaskAssignment",
    "TaskDistributor",
    "TaskNotFoundError",
    "TaskQueue",
    "TaskRequest",
    "TaskStateError",
    "TaskTimeoutError",
    "Views",
    "WorkerHeartbeat",
    "WorkerManager",
    "WorkerNotFoundError",
    "WorkerRegistration",
    "WorkflowDefinition",
    "WorkflowOutcome",
    "WorkflowTask",
    "create_default_coordinator",
]


def create_default_coordinator(
    path: str | os.PathLike[str] = "coordinator", config: CoordinatorConfig | None = None
) -> Coordinator:
    """A coordinator over a database of one node in this process, whose data is in the directory
    *path*. ``start`` opens it and ``shutdown`` closes it; ``async with`` does both.

    Raises:
        InvalidArgumentError: *path* is empty.
    """
    return Coordinator(open_database(path), config, owns_db=True)
