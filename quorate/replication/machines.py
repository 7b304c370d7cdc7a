"""All machines of a node behind one door: check, apply, query, checkpoint, restore.

What a log entry does to the state is decided here and must come out the same on every replica,
whatever its bytes are and whatever the machines raise:

* A command that raises is undone and becomes a ``Failure`` (``refusals.py``).
* A command that does not decode becomes a ``Failure`` for itself alone, in words of ours: the
  decoder's own differ between its versions. (The gateway, ``prepare``, says more: it answers
  before anything enters the log.)
* ``MemoryError``, a broken invariant and exits pass through. They are not functions of the log, so
  the node has to stop, and this object refuses to go on.

The *state hash* rolls over every entry: index, time, all records that changed, all results.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final

import msgspec

from quorate.base.fencing import Fence
from quorate.base.frames import Run, Submit
from quorate.base.invariants import must
from quorate.base.limits import (
    BATCH_COMMANDS_MAX,
)
from quorate.base.results import Failure
from quorate.base.types import LogIndex, Term
from quorate.consensus.messages import EntryId
from quorate.errors import (
    BadCommandError,
    LimitExceededError,
    WireFormatError,
)
from quorate.replication.batch import Batch, decode_batch
from quorate.replication.gateway import Prepared, frees_space, prepare
from quorate.replication.leases import LeaseMachine
from quorate.replication.machine import Context, Effect, Machine, all_heard
from quorate.replication.refusals import Refusals, pass_through
from quorate.replication.registry import NOT_IN_FORCE, Registry
from quorate.replication.replies import (
    FULL,
    RESULTS_BYTES_MAX,
    ReplyFullError,
    array_header,
    refuse_full,
)
from quorate.replication.runs import (
    Runnable,
    decode_queries,
    runnable,
)
from quorate.replication.sessions import Outcome, SessionMachine
from quorate.replication.tables import Dirty, Tables, encode_dirty
from quorate.replication.together import TogetherMachine
from quorate.storage.interfaces import Change, StateStore, StoreMeta

_logger = logging.getLogger(__name__)

EXPIRE_RETRY_MS: Final = 1000  # after a machine's ``expire`` raised, its deadlines wait so long
STATE_HASH_BYTES: Final = 8

#: Takes what the submissions of an entry came to, in their order.
Answers = Callable[[Sequence[Outcome]], None]


class Applied(msgspec.Struct, frozen=True):
    """What an entry came to: one outcome per submission, in order, and what watchers may hear."""

    index: int
    outcomes: tuple[Outcome, ...] = ()
    command_count: int = 0
    effects: Sequence[Effect] = ()


class Checkpoint(msgspec.Struct, frozen=True):
    """A captured state: everything that changed since the capture before it."""

    meta: StoreMeta
    dirty: Mapping[str, Dirty]

    def changes(self) -> dict[str, Iterator[Change]]:
        """For ``StateStore.checkpoint``; encoded as they are consumed, on whatever thread."""
        return {name: encode_dirty(dirty) for name, dirty in self.dirty.items()}


class Machines:
    """The machines of a node. Sessions, leases and "together" are always the first of them.
    *machines* are in force from the beginning of the log, *later* once the log says so
    (``registry``).

    Raises:
        ConfigError: a bad or repeated machine name, or a table outside a machine's own names.
    """

    def __init__(self, machines: Sequence[Machine] = (), later: Sequence[Machine] = ()) -> None:
        self.tables = Tables()
        self.sessions = SessionMachine()
        self.leases = LeaseMachine()
        together = TogetherMachine(lambda: self.registry.in_force)
        self.registry = Registry(
            self.tables, (self.sessions, self.leases, together, *machines), later
        )
        everyone = self.registry.everyone
        # A call that does nothing costs 60 ns per machine and entry: only those that override.
        self._expiring = [each for each in everyone if _overrides(each, "expire")]
        self._finishing = [each for each in everyone if _overrides(each, "finish")]
        self._timed = [each for each in everyone if _overrides(each, "next_deadline_ms")]
        self._bereaved = [each for each in everyone if _overrides(each, "on_session_end")]
        self._bound = [each for each in everyone if _overrides(each, "on_lease_end")]
        self._granting = [each for each in everyone if _overrides(each, "holds")]
        self.sessions.on_end(self._tell_session_end)
        self.leases.on_end(self._tell_lease_end)
        #: Whether anybody watches such keys: for ``Context``.
        self.heard: Callable[[str, Iterable[bytes]], bool] = all_heard
        self._index = 0
        self._term = 0
        self._time_ms = 0
        self._state_hash = bytes(STATE_HASH_BYTES)
        self._whole = True
        self._reply_full = False
        self._muted_until_ms: dict[str, int] = {}
        self._refusals = Refusals()
        self._encoder = msgspec.msgpack.Encoder(order="deterministic")
        for machine in everyone:
            machine.loaded()

    # --- where the log has come to --------------------------------------------------------------

    @property
    def index(self) -> int:
        """Of the last applied entry."""
        return self._index

    @property
    def term(self) -> int:
        """Of the last applied entry."""
        return self._term

    @property
    def time_ms(self) -> int:
        """Cluster time of the last applied entry."""
        return self._time_ms

    @property
    def state_hash(self) -> bytes:
        """Rolling hash of everything applied, 8 bytes."""
        return self._state_hash

    def machine(self, name: str) -> Machine:
        """One in force. Raises UnknownMachineError, OverloadedError: as ``Registry.slot``."""
        return self.registry.slot(name).machine

    def machine_versions(self) -> dict[str, int]:
        """Version in force of each machine, by name."""
        return self.registry.versions()

    def next_deadline_ms(self) -> int | None:
        """The earliest cluster time at which a machine has something to expire."""
        earliest: int | None = None
        in_force = self.registry.in_force
        for machine in self._timed:
            deadline_ms = self._deadline_of(machine) if machine.name in in_force else None
            if deadline_ms is None:
                continue
            deadline_ms = max(
                deadline_ms,
                self._muted_until_ms.get(machine.name, 0),
                self.sessions.calm_until_ms,
            )
            if earliest is None or deadline_ms < earliest:
                earliest = deadline_ms
        return earliest

    def _deadline_of(self, machine: Machine) -> int | None:
        try:
            deadline_ms = machine.next_deadline_ms()
            return None if deadline_ms is None else int(deadline_ms)
        except Exception as error:  # noqa: BLE001  what a machine may raise is anything
            pass_through(error)
            self._refusals.log(machine.name, "next_deadline_ms", error)
            return None

    # --- the gateway ----------------------------------------------------------------------------

    def prepare(self, submit: Submit) -> Prepared:
        """Check a submission before it enters the log, and decode it.

        Raises:
            UnknownMachineError, BadCommandError, LimitExceededError: nothing was done.
            OverloadedError: a machine is not in force yet.
        """
        return prepare(submit, self.registry)

    def frees_space(self, prepared: Prepared) -> bool:
        """Whether a submission may run while the disk is full: all its commands only free space,
        or keep sessions, as their machines say."""
        return frees_space(prepared, self.registry, self._refusals)

    # --- applying an entry ----------------------------------------------------------------------

    def apply(
        self,
        index: int,
        term: int,
        payload: bytes | None,
        prepared: Sequence[Prepared] | None = None,
        answers: Answers | None = None,
    ) -> Applied:
        """Apply the next entry of the log. *payload*: an encoded ``Batch``, or None for an entry
        that is not for machines. *prepared*: of exactly its submissions, on the node that made it.
        *answers*: gets the outcomes as soon as they stand, before the entry is finished and hashed,
        which changes none of them.

        Raises:
            InvariantViolationError, MemoryError: the state is not to be trusted; stop the node.
            FormatVersionError: from here on the log needs newer code than this.
        """
        must(self._whole, "an entry was applied in part; restart the node", index=self._index)
        must(index == self._index + 1, "entries are applied in order", got=index, at=self._index)
        self._whole = False
        applied = Applied(index)
        batch = None if payload is None else _decode_payload(index, payload)
        if batch is not None:
            applied = self._apply_batch(index, term, batch, prepared, answers)
            if self.registry.missing is not None:
                raise self.registry.missing
        self._index = index
        self._term = term
        self._whole = True
        return applied

    def _apply_batch(
        self,
        index: int,
        term: int,
        batch: Batch,
        prepared: Sequence[Prepared] | None,
        answers: Answers | None,
    ) -> Applied:
        must(
            prepared is None or len(prepared) == len(batch.submissions),
            "what was prepared is what was proposed",
            index=index,
        )
        before_ms = self._time_ms
        self._time_ms = max(before_ms, batch.time_ms)  # the log's clock never goes back
        due_ms = self.sessions.due_ms(term, self._time_ms, before_ms)
        context = Context(
            index=index,
            term=term,
            time_ms=self._time_ms,
            wall_ms=batch.wall_ms,
            seed=batch.seed,
            position=0,
            session=0,
            due_ms=due_ms,
            heard=self.heard,
            lease_alive=partial(self.leases.alive, due_ms=due_ms),
            fence_holds=self._fence_holds,
        )
        if due_ms == self._time_ms:
            for machine in self._expiring:
                if not self._guarded(machine, "expire", machine.expire, context):
                    self._muted_until_ms[machine.name] = self._time_ms + EXPIRE_RETRY_MS
        # What was done between commands stands: none of them may take it back with its own changes.
        self.tables.journal.clear()
        outcomes = []
        for at, submit in enumerate(batch.submissions):
            known = None if prepared is None else prepared[at]
            outcomes.append(self._apply_submission(submit, known, context))
        if answers is not None:
            answers(outcomes)
        context.session = 0
        for machine in self._finishing:
            self._guarded(machine, "finish", machine.finish, context)
        self._roll_hash(index, outcomes)
        return Applied(index, tuple(outcomes), context.position, context.effects)

    def _apply_submission(
        self, submit: Submit, known: Prepared | None, context: Context
    ) -> Outcome:
        session = submit.session
        context.session = session
        if session:
            settled = self.sessions.admit(submit, context)
            self.tables.journal.clear()
            if settled is not None:
                return settled
        try:
            runnables = self._runnables(submit, known)
        except BadCommandError as error:
            return Outcome(context.index, b"", error.code, str(error))
        buffer = bytearray(array_header(len(runnables)))
        self._reply_full = False
        for run, each in zip(submit.runs, runnables, strict=True):
            buffer += array_header(len(each[1]))
            self._apply_run(run.machine, each, context, buffer)
        outcome = Outcome(context.index, bytes(buffer))
        if session:
            self.sessions.keep(submit, outcome)
            self.tables.journal.clear()
        return outcome

    def _apply_run(
        self, machine: str, commands_of_run: Runnable, context: Context, buffer: bytearray
    ) -> None:
        """The inner loop: all of it is paid once per command (0.2 us beside the machine's own)."""
        apply, commands = commands_of_run
        slot = self.registry.in_force.get(machine)
        context.version = NOT_IN_FORCE if slot is None else slot.version
        if self._reply_full:
            apply = refuse_full
        journal = self.tables.journal
        encode_into = self._encoder.encode_into
        effects = context.effects
        position = context.position
        size = len(buffer)
        for command in commands:
            context.position = position
            position += 1
            told = len(effects)
            try:
                result = apply(command, context)
                if result.__class__ is Failure:
                    del effects[told:]
                    if journal:
                        self._undo()
                encode_into(result, buffer, size)
                if len(buffer) > RESULTS_BYTES_MAX:
                    raise ReplyFullError  # noqa: TRY301
            except Exception as error:  # noqa: BLE001  what a machine may raise is anything
                del buffer[size:]
                if error.__class__ is ReplyFullError:
                    # Running the rest to throw each result away could take minutes.
                    self._reply_full = True
                    apply = refuse_full
                del effects[told:]
                self._undo()
                encode_into(self._failure(machine, command, error), buffer, -1)
            if journal:
                journal.clear()
            size = len(buffer)
        context.position = position

    def _runnables(self, submit: Submit, known: Prepared | None) -> Sequence[Runnable]:
        """Raises BadCommandError: a run is not even an array, so nobody can say of how many."""
        in_force = self.registry.in_force
        if known is not None and known.generation == self.registry.generation:
            return [
                (in_force[run.machine].apply, commands)
                for run, commands in zip(submit.runs, known.runs, strict=True)
            ]
        return [runnable(in_force.get(run.machine), run) for run in submit.runs]

    # --- what goes wrong ------------------------------------------------------------------------

    def _failure(self, machine: str, command: Any, error: Exception) -> Failure:  # noqa: ANN401
        if error.__class__ is ReplyFullError:
            return FULL
        return self._refusals.failure(machine, command, error)

    def _undo(self, mark: int = 0) -> None:
        """Undo the journal behind *mark*, and tell the machines whose tables it touched."""
        if len(self.tables.journal) > mark:
            touched = self.tables.rollback(mark)
            for name in dict.fromkeys(each.partition(".")[0] for each in touched):
                try:
                    self.registry.machine(name).rolled_back()
                except Exception as error:  # noqa: BLE001  what a machine may raise is anything
                    pass_through(error)
                    self._refusals.log(name, "rolled_back", error)
            self.tables.rollback(mark)  # should one of them have changed a table

    def _guarded(
        self, machine: Machine, what: str, call: Callable[..., None], *arguments: object
    ) -> bool:
        """Call a hook of a machine; if it raises, its changes are undone. True if it did not."""
        slot = self.registry.in_force.get(machine.name)
        if slot is None:
            return True
        mark = len(self.tables.journal)
        context: Any = arguments[-1]
        effects: list[Effect] = context.effects
        told = len(effects)
        version, context.version = context.version, slot.version
        try:
            call(*arguments)
            context.version = version
        except Exception as error:  # noqa: BLE001  what a machine may raise is anything
            pass_through(error)
            context.version = version
            del effects[told:]
            self._undo(mark)
            self._refusals.log(machine.name, what, error)
            return False
        return True

    def _tell_session_end(self, session: int, context: Context) -> None:
        for machine in self._bereaved:
            self._guarded(machine, "on_session_end", machine.on_session_end, session, context)

    def _tell_lease_end(self, lease: int, context: Context) -> int:
        """How much was let go of."""
        count = 0

        def let_go(machine: Machine, context: Context) -> None:
            nonlocal count
            count += machine.on_lease_end(lease, context)

        for machine in self._bound:
            self._guarded(machine, "on_lease_end", let_go, machine, context)
        return count

    def _fence_holds(self, fence: Fence) -> bool:
        for machine in self._granting:
            held = machine.holds(fence)
            if held is not None:
                return held
        return False

    def _roll_hash(self, index: int, outcomes: Sequence[Outcome]) -> None:
        buffer = bytearray(self._state_hash)
        buffer += index.to_bytes(8, "big")
        buffer += self._time_ms.to_bytes(8, "big", signed=True)
        self.tables.seal(buffer)
        rolling = hashlib.blake2b(buffer, digest_size=STATE_HASH_BYTES)
        for outcome in outcomes:
            rolling.update(outcome.results)
            rolling.update(outcome.code.encode())
        self._state_hash = rolling.digest()

    # --- queries --------------------------------------------------------------------------------

    def query(self, machine: str, items: msgspec.Raw | bytes) -> bytes:
        """Answer a run of queries from the state as it stands: an encoded array of results, a
        ``Failure`` for each query that is wrong or that raised.

        Raises:
            UnknownMachineError: no such machine.
            BadCommandError: *items* is not an array.
            LimitExceededError: there are more than ``BATCH_COMMANDS_MAX`` queries.
        """
        buffer = bytearray()
        self._query_run(Run(machine, msgspec.Raw(items)), buffer, 0)
        return bytes(buffer)

    def query_runs(self, runs: Sequence[Run]) -> bytes:
        """As ``query``, of all runs of a ``Query`` frame: one array per run, in one array."""
        buffer = bytearray(array_header(len(runs)))
        if len(runs) > BATCH_COMMANDS_MAX:
            raise LimitExceededError(
                f"{len(runs)} runs of queries are over the limit of {BATCH_COMMANDS_MAX}"
            )
        count = 0
        for run in runs:
            count = self._query_run(run, buffer, count)
        return bytes(buffer)

    def _query_run(self, run: Run, buffer: bytearray, count_before: int) -> int:
        slot = self.registry.slot(run.machine)
        queries = decode_queries(slot, run)
        buffer += array_header(len(queries))
        must(self._whole, "queries run between entries", machine=slot.name)
        count = count_before + len(queries)
        if count > BATCH_COMMANDS_MAX:
            raise LimitExceededError(
                f"{count} queries at once are over the limit of {BATCH_COMMANDS_MAX}"
            )
        answer: Callable[[Any], Any] = slot.machine.query
        encode_into = self._encoder.encode_into
        for query in queries:
            size = len(buffer)
            try:
                if size > RESULTS_BYTES_MAX:
                    raise ReplyFullError  # noqa: TRY301
                encode_into(query if query.__class__ is Failure else answer(query), buffer, -1)
                if self.tables.journal:
                    raise RuntimeError("a query changed a table")  # noqa: TRY301
                if len(buffer) > RESULTS_BYTES_MAX:
                    raise ReplyFullError  # noqa: TRY301
            except Exception as error:  # noqa: BLE001  as in _apply_run
                del buffer[size:]
                self._undo()
                encode_into(self._failure(slot.name, query, error), buffer, -1)
        return count

    # --- checkpoints ----------------------------------------------------------------------------

    def take_checkpoint(self, membership: bytes) -> Checkpoint:
        """Capture what changed since the last capture, in constant time; between entries only."""
        must(self._whole, "a checkpoint is of whole entries", index=self._index)
        meta = StoreMeta(
            applied=EntryId(LogIndex(self._index), Term(self._term)),
            time_ms=self._time_ms,
            membership=membership,
            state_hash=self._state_hash,
            machine_versions=self.machine_versions(),
        )
        return Checkpoint(meta, self.tables.take_dirty())

    def checkpoint_failed(self, checkpoint: Checkpoint) -> None:
        """It was not written: its changes go into the next one."""
        self.tables.restore_dirty(checkpoint.dirty)

    def restore(self, store: StateStore) -> Iterator[int]:
        """Replace the whole state by the store's last checkpoint (or by nothing, if there is
        none). A generator that yields counts of records, so that the caller can give the event
        loop a turn; nothing else may be called until it is exhausted.

        Raises:
            FormatVersionError: a newer version of a machine wrote the store.
            ConfigError: the store belongs to a machine that is not registered.
            StoreCorruptionError: a record does not decode.
        """
        meta = store.meta()
        names = store.tables()
        if meta is not None:
            self.registry.check_versions(meta)
        for name in names:
            self.registry.check_table(name)
        self._whole = False
        yield from self.tables.clear()
        for name in names:
            yield from self.tables[name].load(store.load(name))
        self._index = 0 if meta is None else meta.applied.index
        self._term = 0 if meta is None else meta.applied.term
        self._time_ms = 0 if meta is None else meta.time_ms
        self._state_hash = bytes(STATE_HASH_BYTES) if meta is None else meta.state_hash
        self._muted_until_ms.clear()
        self.registry.derive()
        for machine in self.registry.everyone:
            machine.loaded()
        self._whole = True


def _overrides(machine: Machine, method: str) -> bool:
    return getattr(type(machine), method) is not getattr(Machine, method)


def _decode_payload(index: int, payload: bytes) -> Batch | None:
    """An entry that is no batch changes nothing, on any replica."""
    try:
        return decode_batch(payload)
    except WireFormatError:
        _logger.exception("entry %d is not a batch; it changes nothing", index)
        return None
