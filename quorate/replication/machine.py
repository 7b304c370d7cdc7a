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

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec

from quorate.base.chance import Chance
from quorate.base.declaring import Declaration
from quorate.base.fencing import Fence
from quorate.replication import declared

if TYPE_CHECKING:
    from quorate.errors import CommandError, QuorateError
    from quorate.replication.tables import Tables

#: What a machine wants told to whoever watches: (machine, key, event). With key None, *event* is an
#: iterable of (keys, event), which is looked at only if somebody watches the machine: each event is
#: for whoever watches one of its keys, and told once; if it has ``topics`` (first bytes of its
#: keys), only if somebody watches such keys. See ``Context.effects``.
Effect = tuple[str, bytes | None, Any]


class Encoded(bytes):
    """An event that ``Interest.select`` has encoded already: once for all who are told the same."""

    __slots__ = ()


def _nothing_alive(lease: int) -> bool:  # noqa: ARG001
    return False


def _nothing_held(fence: Fence) -> bool:  # noqa: ARG001
    return False


def all_heard(machine: str, initials: Iterable[bytes]) -> bool:  # noqa: ARG001
    """For who does not know."""
    return True


class Context(msgspec.Struct, kw_only=True):
    """Everything but the command that a machine may look at; equal on every replica, but *heard*.

    One object is reused for the commands of an entry: read it, do not keep it.
    """

    index: int  #: log index of the entry
    term: int  #: term of the entry
    time_ms: int  #: cluster time: monotonic over the log, decides every expiry
    wall_ms: int  #: the leader's wall clock, Unix milliseconds: display and cron only
    seed: int  #: 64 random bits, drawn by the leader for this entry
    position: int  #: of the command within the entry, from 0; with *seed* a source of chance
    session: int  #: of the submitting client, 0 if none
    version: int = 1  #: of this machine, as the log has it: code of a later one acts like this one
    #: Whatever has a deadline up to here is over. Cluster time, but in the first second of a term
    #: it stands still, so that clients find the new leader before it judges their leases.
    due_ms: int = 0
    #: What watchers shall hear: ``effects.append((self.name, key, event))``. Not state: each node
    #: delivers it to its own clients, and what a refused command appended is dropped.
    effects: list[Effect] = msgspec.field(default_factory=list)
    #: Whether anybody here watches a machine's keys that begin with one of these bytes: effects
    #: for nobody may be left out. Other on every node, so nothing else may depend on it.
    heard: Callable[[str, Iterable[bytes]], bool] = all_heard
    lease_alive: Callable[[int], bool] = _nothing_alive  #: whether a lease stands, by id
    fence_holds: Callable[[Fence], bool] = _nothing_held  #: whether a grant is the present one
    _chance: Chance | None = None
    _chance_position: int = -1

    def random(self) -> Chance:
        """Chance that is equal on every replica, and other for every command. One stream for each
        command: a second call goes on where the first one stopped."""
        chance = self._chance
        if chance is None or self._chance_position != self.position:
            chance = self._chance = Chance(self.seed, self.index, self.position)
            self._chance_position = self.position
        return chance


class Interest(msgspec.Struct, frozen=True):
    """Which events a watch is for. *keys*: exactly these; *prefix*: all that begin with it;
    neither: *start* up to but not including *end* (None: to the last). *select*: from key (of an
    event with several keys, the first) and event to what is sent, None for nothing. *backlog*: to
    be sent first, of the past. *ends*: that is all, and why. *progress*: what to send when there
    was nothing for a while."""

    select: Callable[[bytes, Any], Any]
    keys: tuple[bytes, ...] = ()
    prefix: bytes | None = None
    start: bytes = b""
    end: bytes | None = None
    backlog: Sequence[Any] = ()
    ends: QuorateError | None = None
    progress: Callable[[], Any] | None = None


class Machine:
    """Base class of replicated state machines.

    The comfortable way is to mark methods as ``command`` and ``query`` and to annotate tables; then
    the rest is derived (``base.declaring``), and *context* is that of the command that runs. What
    follows is what it is derived to, for machines that want to do it themselves.

    Class attributes: *name* is the machine's address in commands and the prefix of its tables;
    *version* grows whenever the same command would act differently; *command_type* and
    *query_type* are tagged, array-like ``msgspec.Struct`` unions, which msgspec validates when
    it decodes.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    command_type: ClassVar[Any]
    query_type: ClassVar[Any] = None
    watch_type: ClassVar[Any] = None  #: of a ``Watch`` request, if the machine has events

    declaration: ClassVar[Declaration | None] = None  #: of a machine with marked methods
    #: Classes below ``CommandError`` that marked methods raise; clients get them back as such.
    errors: ClassVar[tuple[type[CommandError], ...]] = ()
    context: Context  #: of the command that runs; marked methods read it

    def __init_subclass__(cls, *, untyped: bool = False, **rest: Any) -> None:  # noqa: ANN401
        super().__init_subclass__(**rest)
        declared.read_class(cls, untyped=untyped)

    def commands_at(self, version: int) -> Any:  # noqa: ANN401, ARG002
        """The commands that there are under *version*, one of 1 to *version* of the class: nodes
        with newer code must refuse what nodes with older code do not know."""
        return self.command_type

    def queries_at(self, version: int) -> Any:  # noqa: ANN401, ARG002
        """As ``commands_at``, of queries."""
        return self.query_type

    def upgraded(self, before: int, context: Context) -> None:
        """The log raised the version in force from *before* to ``context.version``: convert what
        must be converted. Part of the entry: what takes long had better be done bit by bit later.
        If it raises, the upgrade is refused."""

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

    def watch(self, request: Any) -> Interest:  # noqa: ANN401
        """Which events *request*, a ``watch_type``, asks for; called between entries. A
        ``CommandError`` refuses it."""
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
        """Called at the start of every entry, except in the first second of a term: act on all
        that is due at ``context.due_ms``."""

    def finish(self, context: Context) -> None:
        """Called at the end of every entry: write back what is kept outside tables."""

    def on_session_end(self, session: int, context: Context) -> None:
        """*session* was closed or has expired: let go of what it held. Called inside the apply that
        ends it, on every machine in the order of registration."""

    def on_lease_end(self, lease: int, context: Context) -> int:  # noqa: ARG002
        """*lease* was revoked or has expired: let go of what was bound to it, and say of how much.
        Otherwise as ``on_session_end``."""
        return 0

    def holds(self, fence: Fence) -> bool | None:  # noqa: ARG002
        """Whether the grant that *fence* names is the present one; None: not of this machine."""
        return None

    def rolled_back(self) -> None:
        """Changes to this machine's tables were just undone, so that they stand as before the
        command (or ``expire``, ``finish``, ``on_session_end``): mend what is kept outside tables.

        Called after ``apply`` raised, and also when its result could not be delivered.
        """
