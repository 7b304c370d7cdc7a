"""Every error that quorate raises, in one tree.

Two questions matter to whoever catches one of these:

* *Did it happen?* ``error.definite`` is True when the command surely had no effect, so that a
  blind retry is safe. It is False when the command may have taken effect, or may yet.
* *What now?* The text says what was wrong, where, and what to do.

``InvariantViolationError`` is apart from the tree on purpose: it is a bug in quorate, and no
``except QuorateError`` may hide it.
"""

from __future__ import annotations

from typing import Any, ClassVar


class QuorateError(Exception):
    """Root of the operating errors: expected, and to be handled by callers."""

    #: True: surely no effect, a blind retry is safe. False: it may have happened, or may yet.
    definite: ClassVar[bool] = True
    #: Stable name of the error on the wire and in ``--json`` output; new classes get new codes.
    code: ClassVar[str] = "error"

    @property
    def details(self) -> dict[str, Any]:
        """What this error says besides its text, by name."""
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}


class InvariantViolationError(AssertionError):
    """A bug in quorate: a claim that the code relies on turned out false."""


# --- what the caller handed in ---------------------------------------------------------------


class InvalidArgumentError(QuorateError, ValueError):
    """An argument has the wrong type, shape or range; nothing was sent."""

    code = "invalid-argument"


class LimitExceededError(InvalidArgumentError):
    """A key, value, batch or frame is larger than the stated limit; nothing was sent."""

    code = "limit-exceeded"


class ConfigError(QuorateError, ValueError):
    """A configuration names an unknown key, or a value that cannot work."""

    code = "config"


# --- results of a command that the state machine refused (replicated, deterministic) ----------


class CommandError(QuorateError):
    """A state machine refused the command; it is recorded in the log and changed nothing."""

    code = "command-refused"


class UnknownMachineError(CommandError):
    """No machine of that name is registered on the node."""

    code = "unknown-machine"


class BadCommandError(CommandError):
    """The command or query could not be decoded for its machine."""

    code = "bad-command"


class MachineError(CommandError):
    """The machine raised something other than a ``CommandError``; its changes were undone."""

    code = "machine-error"


class SessionExpiredError(QuorateError):
    """The session's lease ran out; whether its last unanswered commands happened is unknown."""

    definite = False
    code = "session-expired"


class LeaseExpiredError(CommandError):
    """The lease was revoked or has run out; what was bound to it is gone."""

    code = "lease-expired"


class FencedError(CommandError):
    """The fencing token is stale: the grant behind it has ended, and another may stand."""

    code = "fenced"


class AlreadyHeldError(CommandError):
    """This holder has the lock already, or stands in line for it; waiting would be for itself."""

    code = "already-held"


class NotHeldError(CommandError):
    """There is no such grant: it was never acquired, was released, or went with its lease."""

    code = "not-held"


class LockMismatchError(CommandError):
    """The name is in use as something else, or with another number of permits or parties."""

    code = "lock-mismatch"


class TaskNotFoundError(CommandError):
    """No such task: it never was, or is forgotten, as results and dead tasks are after a while."""

    code = "task-not-found"


class WorkerNotFoundError(CommandError):
    """No such worker: it was unregistered, or its lease ended; register anew."""

    code = "worker-not-found"


class TaskStateError(CommandError):
    """The task is not in a state in which that can be done with it, or this attempt at it is not
    the present one; nothing was done. The text says how the task stands."""

    code = "task-state"


class NoAvailableWorkerError(CommandError):
    """No worker can take the task now: none has what it needs and room for it, or a limit stands in
    the way. What waits in a queue goes on waiting."""

    code = "no-available-worker"


class NotTogetherError(CommandError):
    """One of several commands that belong together did not do what it is for: none of them did."""

    code = "not-together"


class WorkflowNotFoundError(CommandError):
    """No such workflow: it never was, or is forgotten, as workflows are a while after their end."""

    code = "workflow-not-found"


class ScheduleNotFoundError(CommandError):
    """No such schedule: it was never put, or was removed."""

    code = "schedule-not-found"


class WorkflowError(CommandError):
    """The workflow is none: a name twice, a node that waits for one that is not there, a cycle."""

    code = "bad-workflow"


class QueueFullError(CommandError):
    """The queue, or all queues together, hold as many tasks as they may; nothing was enqueued."""

    code = "queue-full"


class TaskPayloadError(InvalidArgumentError):
    """Arguments of a task cannot be packed, or do not fit its function; nothing was enqueued. The
    text names the argument."""

    code = "task-payload"


class TaskFailedError(QuorateError):
    """The task whose result was awaited is dead: its last attempt failed, and there is no further
    one. *task*: its id; *kind*: name of the error; *error*: its text, and where it was raised."""

    code = "task-failed"

    def __init__(self, message: str, task: int = 0, kind: str = "", error: str = "") -> None:
        super().__init__(message)
        self.task = task
        self.kind = kind
        self.error = error


class TaskTimeoutError(TaskFailedError, TimeoutError):
    """The task whose result was awaited is dead: its last attempt did not end in time, or it did
    not begin before it was too late."""

    code = "task-timeout"


class TaskCancelledError(QuorateError):
    """The task whose result was awaited was cancelled."""

    code = "task-cancelled"


class TaskPendingError(QuorateError, TimeoutError):
    """The time to wait for a task passed before its end; the task goes on."""

    code = "task-pending"


class TaskRetryError(QuorateError):
    """Raised by a task: this attempt came to nothing, try again. *after*: in so many seconds, None:
    as the task's policy says. It counts as an error."""

    code = "task-retry"

    def __init__(self, message: str = "", after: float | None = None) -> None:
        super().__init__(message)
        self.after = after


class TaskGiveUpError(QuorateError):
    """Raised by a task: it failed, and trying again is useless."""

    code = "task-give-up"


class LeaseLostError(QuorateError):
    """The lease ended, or may have, while work went on under it; others may work on the same."""

    definite = False
    code = "lease-lost"


class LockLostError(LeaseLostError):
    """The lock went with its lease while work went on under it; another may have it by now."""

    code = "lock-lost"


class LockTimeoutError(QuorateError, TimeoutError):
    """The time to wait passed before the turn came; nothing is held, and nothing waits any more."""

    code = "lock-timeout"


class OptimisticLockError(QuorateError):
    """Somebody else has changed this meanwhile: nothing was written. Read it again, decide anew.
    *key*: of what; *expected*: the version that was to be changed; *actual*: the present one, 0 for
    what is not there."""

    code = "optimistic-lock"

    def __init__(self, message: str, key: str = "", expected: int = 0, actual: int = 0) -> None:
        super().__init__(message)
        self.key = key
        self.expected = expected
        self.actual = actual


class CompactedError(CommandError):
    """The history asked for lies before the window that is kept; read the state, then watch."""

    code = "compacted"

    def __init__(self, message: str, oldest: int = 0) -> None:
        super().__init__(message)
        #: Of a watch of keys: the first revision that can still be watched from.
        self.oldest = oldest


class WatchLaggingError(QuorateError):
    """The watcher did not take its events as fast as they came; begin again where it was."""

    code = "watch-lagging"


class SequenceError(QuorateError):
    """A batch came again after its client had acknowledged the reply; nothing was done again."""

    definite = False
    code = "sequence"


# --- data that converges (CRDTs) ------------------------------------------------------------------


class CrdtError(QuorateError):
    """An operation that this kind of data, or this replica of it, does not allow; nothing changed.
    What a two-phase set lost does not come back, and a bounded counter is not removed while others
    may hold rights to it."""

    code = "crdt-refused"


class TypeMismatchError(CrdtError):
    """The name or key is in use as another kind of data, or its kind has no such operation."""

    code = "type-mismatch"


class InsufficientRightsError(CrdtError):
    """A bounded counter cannot be lowered that far here: the rest of it belongs to other members.
    It takes *needed* rights, of which *available* are here: have some transferred, or lower it
    where they are."""

    code = "insufficient-rights"

    def __init__(self, message: str, needed: int = 0, available: int = 0) -> None:
        super().__init__(message)
        self.needed = needed
        self.available = available


class NotObservedError(CrdtError):
    """A removal speaks of what its caller saw elsewhere and this replica has not seen yet; repeat
    it when the replica has caught up, or where it was read."""

    code = "not-observed"


class CrdtFormatError(CrdtError):
    """Bytes are not the canonical form of replicated data or its elements; nothing was taken in."""

    code = "crdt-format"


class ClockDriftError(CrdtError):
    """A stamp lies further ahead of this node's clock than is taken over; one of two is wrong."""

    code = "clock-drift"


# --- the cluster could not, or not yet ---------------------------------------------------------


class NotLeaderError(QuorateError):
    """This node does not lead; the command was refused before it reached the log."""

    code = "not-leader"


class OverloadedError(QuorateError):
    """A bounded queue is full; nothing was queued. Wait ``retry_after_ms`` and try again."""

    code = "overloaded"

    def __init__(self, message: str, retry_after_ms: int = 100) -> None:
        super().__init__(message)
        self.retry_after_ms = retry_after_ms


class ReadOnlyError(QuorateError):
    """The node's disk is full: it serves reads and deletes, and refuses what would grow."""

    code = "read-only"


class DeadlineExceededError(QuorateError, TimeoutError):
    """The deadline passed without an answer; the command may have happened, or may yet."""

    definite = False
    code = "deadline-exceeded"


class NotSentError(QuorateError, TimeoutError):
    """The deadline passed before the command left this process; it had no effect."""

    code = "not-sent"


class OutcomeUnknownError(QuorateError):
    """The command was handed to a node that did not live to answer; it may have happened."""

    definite = False
    code = "outcome-unknown"


class UnconfirmedError(QuorateError):
    """A ``strong`` write took effect, and is committed in the entry at *index*, but not every voter
    has confirmed in time that it has applied it: *members* have not. They will, once they can be
    reached. Do not repeat the write: it has happened. *result* is what it came to.

    Of CRDT data: a ``strong`` or ``quorum`` write took effect on the node that took it, and of all
    others that the level asks for, *members* have not confirmed it. *result* is None.
    """

    definite = False
    code = "unconfirmed"

    def __init__(
        self,
        message: str,
        index: int = 0,
        members: tuple[int, ...] = (),
        result: Any = None,  # noqa: ANN401  what the machine returned
    ) -> None:
        super().__init__(message)
        self.index = index
        self.members = members
        self.result = result


class TokenError(InvalidArgumentError):
    """A session token is malformed, of a newer version, or of another cluster."""

    code = "token"


class ClosedError(QuorateError):
    """The handle or node was closed; what was not yet sent was not sent."""

    code = "closed"


class ExecutorShutdownError(ClosedError, RuntimeError):
    """The executor was shut down, or the interpreter is about to end; nothing was submitted."""

    code = "executor-shutdown"


class UnavailableError(QuorateError):
    """No endpoint could be reached, or the reachable ones know no leader."""

    code = "unavailable"


class MembershipError(QuorateError):
    """A membership change was refused; the text says which guard refused it."""

    code = "membership"


class UpgradeError(QuorateError):
    """A machine was not upgraded; the text names the members whose code stands in the way."""

    code = "upgrade"


class TransferError(QuorateError):
    """Leadership could not be handed over; the old leader still leads, or an election runs."""

    definite = False
    code = "transfer"


class TransferRefusedError(TransferError):
    """The leader did not begin to hand over: the target is no voter, or cannot be reached."""

    definite = True
    code = "transfer-refused"


# --- the wire ------------------------------------------------------------------------------------


class WireFormatError(QuorateError):
    """Bytes on a connection are not a frame of this protocol; the connection is closed."""

    code = "wire-format"


class RefusedError(QuorateError):
    """The other side refused the connection: another cluster, a newer version, an old identity."""

    code = "refused"


# --- the disk ------------------------------------------------------------------------------------


class StorageError(QuorateError):
    """The disk failed, or holds what it should not. The node stops rather than guess."""

    definite = False
    code = "storage"


class LogCorruptionError(StorageError):
    """The write-ahead log holds a damaged record that is no torn tail of an unfinished write."""

    code = "log-corruption"


class StoreCorruptionError(StorageError):
    """The state store, or a snapshot of it, does not hold what its checksums promise."""

    code = "store-corruption"


class FormatVersionError(StorageError):
    """A file was written by a newer quorate than this one."""

    code = "format-version"


class DirectoryInUseError(StorageError):
    """Another process, or another node of this process, holds the data directory."""

    definite = True
    code = "directory-in-use"


class DiskFullError(StorageError):
    """The disk or the allowed space is used up; nothing of the failed write was kept."""

    definite = True
    code = "disk-full"


# --- tests on virtual time -----------------------------------------------------------------------


class StuckError(QuorateError):
    """A test on virtual time waits for what never comes; the text says where."""

    definite = False
    code = "stuck"


class VirtualTimeError(QuorateError, NotImplementedError):
    """Code of a test asked for what there is not on virtual time, such as a socket."""

    code = "virtual-time"


def _tree(root: type[QuorateError]) -> dict[str, type[QuorateError]]:
    found = {root.code: root}
    for child in root.__subclasses__():
        found.update(_tree(child))
    return found


def error_from_code(code: str, message: str) -> QuorateError:
    """The error that a peer named by *code* on the wire; an unknown code gives the root class."""
    return _BY_CODE.get(code, QuorateError)(message)


_BY_CODE = _tree(QuorateError)
