"""A named maximum for everything that can grow, with what sets it.

Relations between them are checked at import.
"""

from __future__ import annotations

from typing import Final

from quorate.base.invariants import must

KIB: Final = 1024
MIB: Final = 1024 * KIB

KEY_BYTES_MAX: Final = 4 * KIB  # etcd users' keys are paths; longer ones are a mistake
VALUE_BYTES_MAX: Final = (
    1 * MIB
)  # larger values belong in an object store; etcd's request cap is 1.5 MiB
TXN_OPERATIONS_MAX: Final = 1024  # compares, or operations of one branch; bounds one apply step
RANGE_LIMIT_MAX: Final = 10_000  # records one range reply may hold; page by start key beyond it
RANGE_BYTES_MAX: Final = (
    4 * MIB
)  # a range reply ends early (``more=True``) rather than outgrow a frame

BATCH_COMMANDS_MAX: Final = 10_000  # commands in one client batch: some 15 ms of apply
BATCH_BYTES_MAX: Final = 4 * MIB  # bytes of commands in one client batch; one value always fits
#: Levels of nesting in one command; every decoder manages that, however deep its own stack is.
COMMAND_DEPTH_MAX: Final = 128
#: Values inside the long commands of one client batch; looking at them takes some 15 ms.
COMMAND_PARTS_MAX: Final = 100_000
ENTRY_BYTES_MAX: Final = 8 * MIB  # payload of one log entry: at least one whole batch
FRAME_BYTES_MAX: Final = 16 * MIB  # one frame on a connection; one append message always fits

SESSION_TTL_MS_DEFAULT: Final = 60_000
SESSION_TTL_MS_MAX: Final = 24 * 3600 * 1000
SESSIONS_MAX: Final = 100_000
SESSION_UNACKNOWLEDGED_MAX: Final = (
    4096  # replies kept per session until the client acknowledges them
)
REPLY_BYTES_MAX: Final = 8 * MIB  # results of one batch; larger ones are errors, not truncations

MEMBERS_MAX: Final = 31  # voters and learners together; beyond 7 voters latency only grows
MACHINE_NAME_MAX: Final = 64
INCARNATION_LENGTH_MAX: Final = 64  # what a member's data directory is known by: 32 hex digits

must(ENTRY_BYTES_MAX >= BATCH_BYTES_MAX + 64 * KIB, "one client batch fits into one log entry")
must(FRAME_BYTES_MAX >= ENTRY_BYTES_MAX + 64 * KIB, "one log entry fits into one frame")
must(
    BATCH_BYTES_MAX >= VALUE_BYTES_MAX + KEY_BYTES_MAX + KIB, "one largest put fits into one batch"
)
must(FRAME_BYTES_MAX >= REPLY_BYTES_MAX + 64 * KIB, "one reply fits into one frame")

LEASE_TTL_MS_MIN: Final = 1_000  # below it, one slow election ends the lease
LEASE_TTL_MS_MAX: Final = 24 * 3600 * 1000
LEASES_MAX: Final = 100_000
LEASE_KEYS_MAX: Final = 10_000  # keys bound to one lease: its end is one command's work
LEASE_BATCH_MAX: Final = 10_000  # leases that one keep-alive renews
FENCES_MAX: Final = 16  # grants that one fenced command names
#: A watch that hears of nothing is told this often how far it has come, if it wants that.
WATCH_PROGRESS_INTERVAL_S: Final = 5.0

#: Bytes of the keys that one command deletes, or one lease takes with it, and of previous values
#: that are kept for watchers of one revision: all events of a revision fit into one frame.
REVISION_KEY_BYTES_MAX: Final = 4 * MIB
REVISION_PREVIOUS_BYTES_MAX: Final = 4 * MIB

must(
    FRAME_BYTES_MAX
    >= BATCH_BYTES_MAX
    + REVISION_KEY_BYTES_MAX
    + REVISION_PREVIOUS_BYTES_MAX
    + 128 * RANGE_LIMIT_MAX
    + 64 * KIB,
    "all events of one revision fit into one frame",
)

LOCK_NAME_BYTES_MAX: Final = 1 * KIB  # names are paths, as keys are; a waiter's key holds one
LOCK_VALUE_BYTES_MAX: Final = 4 * KIB  # what a leader proclaims: an address, some JSON
LOCK_PERMITS_MAX: Final = 1_000_000  # of one semaphore; holders of a read lock count as such
LOCK_WAITERS_MAX: Final = 10_000  # for one name: as many readers are let in by one command
LOCKS_MAX: Final = 1_000_000  # grants and waiters, of all names together
LEASE_LOCKS_MAX: Final = 10_000  # grants and waiters of one lease: its end is one command's work
BARRIER_PARTIES_MAX: Final = 10_000  # of one barrier: all are let through by one command
BARRIERS_MAX: Final = 100_000  # parties that wait or are inside, of all barriers together

CRDT_KEY_BYTES_MAX: Final = KEY_BYTES_MAX  # an element of a set, a key of a map
CRDT_KEY_DEPTH_MAX: Final = 8  # tuples within tuples
CRDT_NESTING_MAX: Final = 16  # maps within maps
CRDT_OPERATIONS_MAX: Final = 1_000  # in one client frame: some 25 ms of work before its commit
CRDT_QUESTIONS_MAX: Final = 1_000  # in one client frame
CRDT_PAGE_BYTES_MAX: Final = 1 * MIB  # about as much of a large set or map is answered at once
CRDT_PAGE_ITEMS_MAX: Final = 5_000
CRDT_REPLACED_MAX: Final = 1_000  # updates of a text that one update takes the place of

TASK_NAME_MAX: Final = 200  # characters of a queue, type, worker, workflow or schedule
TASK_KEY_BYTES_MAX: Final = 200  # of a key of fairness or uniqueness: a tenant, an order
TASK_BATCH_MAX: Final = 1_000  # tasks in one command: some 10 ms of apply
TASKS_MAX: Final = 2_000_000  # that have not ended: about 1 GiB of memory
TASK_QUEUES_MAX: Final = 10_000
TASK_LINES_MAX: Final = 1_000  # of one queue: kinds of demands on a worker, times priorities
TASK_CAPABILITIES_MAX: Final = 64  # of one worker, or asked for by one task
TASK_EXCLUDED_MAX: Final = 64  # workers that one task must not run on
TASK_HEADER_MAX: Final = 8_192  # characters of one text that travels with a task
TASK_UNIQUE_MAX: Final = 2_000_000  # unique keys that tasks hold, also for a time after their end
TASK_ERROR_MAX: Final = 4_000  # characters of an error that is kept
TASK_RESULTS_KEPT_MAX: Final = 200_000  # tasks that ended and are still known, the oldest go first
TASK_DEAD_MAX: Final = 100_000  # in the dead-letter queue; the oldest go first
TASK_ASSIGNED_BYTES_MAX: Final = 2 * MIB  # payloads that one command or entry hands to one worker
WORKER_HELD_BYTES_MAX: Final = 8 * MIB  # of all that one worker has; the last one may go past it
WORKERS_MAX: Final = 10_000  # registered and not gone
WORKERS_GONE_MAX: Final = 1_000  # remembered after they have gone, the oldest go first
WORKER_LOAD_MAX: Final = 10_000  # tasks that one worker runs at once
