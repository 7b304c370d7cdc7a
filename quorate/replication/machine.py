"""The contract between quorate and a replicated state machine, its own or a user's.

A machine is a function of the log. Every replica applies the same commands in the same order and
must come to the same state, so ``apply`` reads no clock, no randomness, no environment and no
unordered collection: all it may look at is its tables, the command, and the context.

State lives in ``Table`` objects (see ``tables.py``) as frozen records that are replaced, never
changed. That one rule pays four times: a command that raises is undone exactly, a checkpoint
captures a consistent state without copying it, only what changed is written, and a rolling hash
of the changes shows at once when two replicas differ.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import msgspec

if TYPE_CHECKING:
    from quorate.replication.tables import Tables


class Context(msgspec.Struct, kw_only=True):
    """Everything but the command that a machine may look at; equal on every replica.

    One object is reused for the commands of an entry: read it, do not keep it.
    """

    index: int  #: log index of the entry
    term: int  #: term of the entry
    time_ms: int  #: cluster time: monotonic over the log, decides every expiry
    wall_ms: int  #: the leader's wall clock, Unix milliseconds: display and cron only
    seed: int  #: 64 random bits, drawn by the leader for this entry
    position: int  #: of the command within the entry, from 0; with *seed* a source of chance
    session: int  #: of the submitting client, 0 if none


class Machine:
    """Base class of replicated state machines.

    Class attributes: *name* is the machine's address in commands and the prefix of its tables;
    *version* grows whenever the same command would act differently; *command_type* and
    *query_type* are tagged, array-like ``msgspec.Struct`` unions, which msgspec validates when
    it decodes.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    command_type: ClassVar[Any]
    query_type: ClassVar[Any] = None

    def attach(self, tables: Tables) -> None:
        """Declare the tables. Called once, before anything is loaded or applied."""
        raise NotImplementedError

    def loaded(self) -> None:
        """The tables now hold a checkpoint or snapshot (or are empty): derive what is derived.

        May be called again when a snapshot replaces the state.
        """

    def apply(self, command: Any, context: Context) -> Any:  # noqa: ANN401
        """Apply one command and return its result, an encodable tagged struct.

        Validate first, then change. A ``CommandError`` becomes a ``Failure`` with its code; any
        other exception becomes a ``Failure`` with code ``machine-error``; in both cases the
        changes of this command are undone and the node goes on.
        """
        raise NotImplementedError

    def query(self, query: Any) -> Any:  # noqa: ANN401
        """Answer one query from the tables; must not change anything."""
        raise NotImplementedError

    def frees_space(self, command: Any) -> bool:  # noqa: ANN401, ARG002
        """Whether *command* can only make the state smaller, so that it may run while the disk is
        full. Asked on the leader, before the command enters the log; must not change anything."""
        return False

    def next_deadline_ms(self) -> int | None:
        """Cluster time at which ``expire`` has something to do, or None. The leader makes sure
        that an entry with at least that time is proposed."""
        return None

    def expire(self, context: Context) -> None:
        """Called at the start of every entry: act on all that is due at ``context.time_ms``."""

    def finish(self, context: Context) -> None:
        """Called at the end of every entry: write back what is kept outside tables."""

    def on_session_end(self, session: int, context: Context) -> None:
        """*session* was closed or has expired: let go of what it held. Called inside the apply that
        ends it, on every machine in the order of registration."""

    def rolled_back(self) -> None:
        """Changes to this machine's tables were just undone, so that they stand as before the
        command (or ``expire``, ``finish``, ``on_session_end``): mend what is kept outside tables.

        Called after ``apply`` raised, and also when its result could not be delivered.
        """
