"""The machine that gives lives out, knows which are over, and says when they are folded away.

A *life* of a member is one run of its process: an actor of CRDT data, (member, epoch). Epochs come
from the log, so no two lives have one, whatever became of the member's disk in between. A member
that could not reach the log has begun a life by itself, and has it *adopted*. Once a life with a
later number is known, that is for lives that are over alone, and that no fold has passed by.

A new life closes those before it. Closed lives write no more, but what they wrote still spreads, so
they stay admitted until they are *folded*, which takes two entries. The first fixes which lives go,
and up to which record everybody must have theirs. The second says that everybody has, and much else
besides (``converging.folding`` says why): from then on their names are forgotten.

What a life did and no member has, because its member was removed, say, cannot be taken as it is any
more. An operator may have it *rescued*: the log gives it another life, of the member's *estate*,
which stands for it from then on (``crdt.renaming``), and which is closed when all is there.

Only leaders propose to this machine. What it is told of frontiers are facts about disks at some
moment, which stay true: frontiers only grow.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Final

import msgspec

from quorate.base.invariants import must
from quorate.crdt.dots import NUMBER_MAX, epoch_of, make_actor, member_of
from quorate.errors import CommandError
from quorate.replication.converging.life_records import (
    FoldedAway,
    FoldingRecord,
    LifeRecord,
    MarkRecord,
    Marks,
    MemberRecord,
    RescueRecord,
)
from quorate.replication.machine import Context, Machine
from quorate.replication.tables import Table, Tables

LIVES_MACHINE: Final = "lives"
#: Lives that are not folded yet, of all members: while one member is away, the others may restart
#: so often.
LIVES_MAX: Final = 100_000
#: Lives that go with one fold.
RETIRED_MAX: Final = 1_000
#: A life begun without the log has a number at most so far above the last one that is known; what
#: is beyond is nonsense, and would use the numbers up.
IMPROVISED_MAX: Final = 2**18
MEMBER_MAX: Final = 2**31 - 1
#: What members left is rescued under these numbers, which no member has: so much above its own.
ESTATES: Final = 2**31
#: Of so many lives of a member that were folded is known how much of them was.
FOLDED_MAX: Final = 64
#: Lives that were ever rescued.
RESCUES_MAX: Final = 100_000

_KEY: Final = b"state"

# --- commands and results -------------------------------------------------------------------------


class Begin(msgspec.Struct, frozen=True, array_like=True, tag=1, forbid_unknown_fields=True):
    """A new life of *member*. *nonce*: drawn by its process when that began; asked for twice, it is
    one life. Result: ``Begun``."""

    member: int
    nonce: int


class Adopt(msgspec.Struct, frozen=True, array_like=True, tag=2, forbid_unknown_fields=True):
    """Life *epoch* of *member* was begun without the log; *over*: nobody writes as it any more.
    Result: ``Begun``, or it is refused."""

    member: int
    epoch: int
    nonce: int
    over: bool = False


class Expel(msgspec.Struct, frozen=True, array_like=True, tag=3, forbid_unknown_fields=True):
    """These are members no more: their lives are over, and they begin no others."""

    members: tuple[int, ...]


class Stable(msgspec.Struct, frozen=True, array_like=True, tag=4, forbid_unknown_fields=True):
    """Every member has these records, of lives that are not folded, on its disk."""

    marks: Marks


class PrepareFold(msgspec.Struct, frozen=True, array_like=True, tag=5, forbid_unknown_fields=True):
    """The fold *generation* will take these lives: whoever has their records, up to these, has all
    of them. Proposed again, the lives are the same."""

    generation: int
    last: Marks


class FoldLives(msgspec.Struct, frozen=True, array_like=True, tag=6, forbid_unknown_fields=True):
    """Fold the lives that were prepared. *settled*: what every member has; *changes*: of lives, up
    to those that this was decided upon; if there were others, it is refused."""

    generation: int
    changes: int
    settled: Marks


class Rescue(msgspec.Struct, frozen=True, array_like=True, tag=7, forbid_unknown_fields=True):
    """What that life did beyond what the members have is to be had under another name. Result:
    ``Rescuing``, the same one until that is done, or it is refused."""

    actor: int


class Rescued(msgspec.Struct, frozen=True, array_like=True, tag=8, forbid_unknown_fields=True):
    """All records of the life up to *upto* have been rescued under the name *estate*; whoever has
    the records *after* has all of that."""

    actor: int
    estate: int
    upto: int
    after: Marks


class Begun(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """The life that is open now."""

    epoch: int


class Noted(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """It is so."""


class Rescuing(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """The members have the records up to *since*; what came after it goes by the name *estate*."""

    since: int
    estate: int


LivesResult = Begun | Noted | Rescuing
LivesCommand = Begin | Adopt | Expel | Stable | PrepareFold | FoldLives | Rescue | Rescued


# --- the machine ----------------------------------------------------------------------------------


class LivesMachine(Machine):
    """Machine "lives", part of every node. Version history: 1, first release."""

    name: ClassVar[str] = LIVES_MACHINE
    command_type: ClassVar[Any] = LivesCommand

    _lives: Table[LifeRecord]
    _members: Table[MemberRecord]
    _stable: Table[MarkRecord]
    _folding: Table[FoldingRecord]
    _rescues: Table[RescueRecord]

    def __init__(self) -> None:
        self._marks: dict[int, int] | None = None  # what ``stable`` gives
        self._present: tuple[int, ...] | None = None

    # --- the contract ---------------------------------------------------------------------------

    def attach(self, tables: Tables) -> None:
        self._lives = tables.table("lives.lives", LifeRecord, ordered=True)
        self._members = tables.table("lives.members", MemberRecord, ordered=True)
        self._stable = tables.table("lives.stable", MarkRecord, ordered=True)
        self._folding = tables.table("lives.folding", FoldingRecord)
        self._rescues = tables.table("lives.rescues", RescueRecord)

    def loaded(self) -> None:
        self._marks = self._present = None

    def rolled_back(self) -> None:
        self._marks = self._present = None

    def apply(self, command: Any, context: Context) -> LivesResult:  # noqa: ANN401, ARG002
        match command:
            case Begin():
                return self._begin(command)
            case Adopt():
                return self._adopt(command)
            case Expel():
                return self._expel(command)
            case Stable():
                return self._stabilise(command)
            case PrepareFold():
                return self._prepare(command)
            case Rescue():
                return self._rescue(command)
            case Rescued():
                return self._rescued(command)
        return self._fold(command)

    def frees_space(self, command: Any) -> bool:  # noqa: ANN401
        """Folding forgets; all else may add something."""
        return command.__class__ is FoldLives

    # --- what is so, as of the last applied entry -----------------------------------------------

    def is_admitted(self, actor: int) -> bool:
        """Whether records of that life may be joined: it is known, and not folded yet."""
        return _key(actor) in self._lives

    def is_retired(self, actor: int) -> bool:
        """Whether that life, or one with a later number of its member, has been folded."""
        return epoch_of(actor) <= self.retired_epoch(member_of(actor))

    def retired_epoch(self, member: int) -> int:
        """The number of the last life of *member* that was folded, 0 for none."""
        return self._member(member).retired

    def retired(self) -> Mapping[int, int]:
        """The same, of every member of which some was."""
        return {
            int.from_bytes(key, "big"): record.retired
            for key, record in self._members.items()
            if record.retired
        }

    def epoch_known(self, member: int) -> int:
        """The number of the last life of *member* that the log knows of, 0 for none."""
        return self._member(member).highest

    def present(self) -> tuple[int, ...]:
        """The open life of each member that has one, in order."""
        if self._present is None:
            found = ((int.from_bytes(key, "big"), each) for key, each in self._members.items())
            self._present = tuple(
                make_actor(member, each.open) for member, each in found if each.open
            )
        return self._present

    def open_epoch(self, member: int) -> int:
        """The life of *member* that is not over, 0 for none."""
        return self._member(member).open

    def holder(self, actor: int) -> int:
        """The nonce of the process whose life that is, 0 if it is not known, or folded."""
        record = self._lives.get(_key(actor))
        return 0 if record is None else record.nonce

    def is_expelled(self, member: int) -> bool:
        """Whether *member* was removed, after it had begun a life."""
        return self._member(member).expelled

    def known(self) -> tuple[int, ...]:
        """All lives that are not folded, in order."""
        return tuple(int.from_bytes(key, "big") for key, _record in self._lives.items())

    def closed(self) -> tuple[int, ...]:
        """Of these, all that are over; but for lives of an estate of which not all is there, and
        those behind them."""
        present = frozenset(self.present())
        found: list[int] = []
        waits: dict[int, None] = {}
        for key, record in self._lives.items():
            actor = int.from_bytes(key, "big")
            if record.rescuing:
                waits[member_of(actor)] = None
            elif actor not in present and member_of(actor) not in waits:
                found.append(actor)
        return tuple(found)

    def after(self, actor: int) -> Marks:
        """The records with which all of that life, of an estate, is there."""
        record = self._lives.get(_key(actor))
        return () if record is None else record.after

    def admits(self, actor: int, *, over: bool) -> bool:
        """Whether that life could be adopted, having been begun without the log. Its number must
        not have been given out, or folded with others."""
        member, epoch = self._member(member_of(actor)), epoch_of(actor)
        if member.expelled or _key(actor) in self._lives or _key(actor) in self._rescues:
            return False
        if epoch > member.highest:
            return epoch <= member.highest + IMPROVISED_MAX
        going = [epoch_of(each) for each, _ in self.preparing if member_of(each) == actor >> 32]
        return over and epoch > max(member.retired, *going, 0)

    def stable(self) -> Mapping[int, int]:
        """By life, up to which record every member has all; not to be changed."""
        if self._marks is None:
            self._marks = {
                int.from_bytes(key, "big"): record.sequence for key, record in self._stable.items()
            }
        return self._marks

    @property
    def generation(self) -> int:
        """How many folds there were."""
        return self._state().generation

    @property
    def changes(self) -> int:
        """How often lives began, or were closed by an expulsion."""
        return self._state().changes

    @property
    def preparing(self) -> Marks:
        """The lives that the next fold takes, and the last record of each; () if none is prepared.
        No fold takes less than one."""
        return self._state().preparing

    @property
    def fold(self) -> FoldedAway | None:
        """The last fold."""
        return self._state().fold

    # --- lives ----------------------------------------------------------------------------------

    def _begin(self, command: Begin) -> Begun:
        member = self._may_live(command.member)
        if member.open and self.holder(make_actor(command.member, member.open)) == command.nonce:
            return Begun(member.open)
        return self._open(command.member, member, member.highest + 1, command.nonce)

    def _adopt(self, command: Adopt) -> Begun:
        member = self._may_live(command.member)
        epoch = command.epoch
        actor = command.member << 32 | max(epoch, 0)
        again = 0 < epoch == member.open or command.over
        if again and self.holder(actor) == command.nonce:
            return Begun(epoch)
        if not 0 < epoch <= NUMBER_MAX or not self.admits(actor, over=command.over):
            raise CommandError(
                f"member {command.member} cannot have life {epoch}: its last known one is "
                f"{member.highest}"
            )
        if epoch > member.highest:
            return self._open(command.member, member, epoch, command.nonce)
        self._lives.put(_key(actor), LifeRecord(command.nonce))
        self._changed()
        return Begun(epoch)

    def _may_live(self, member: int) -> MemberRecord:
        if not 0 < member <= MEMBER_MAX:
            raise CommandError(f"{member} is no member's number")
        record = self._member(member)
        if record.expelled:
            raise CommandError(f"member {member} was removed; numbers are not used again")
        if len(self._lives) >= LIVES_MAX:
            raise CommandError(
                f"there are {LIVES_MAX} lives already that could not be folded: a member is away; "
                f"start it, or remove it"
            )
        return record

    def _open(self, number: int, member: MemberRecord, epoch: int, nonce: int) -> Begun:
        if epoch > NUMBER_MAX:
            raise CommandError(f"member {number} has used up its {NUMBER_MAX} lives")
        self._lives.put(_key(make_actor(number, epoch)), LifeRecord(nonce))
        self._put(number, msgspec.structs.replace(member, highest=epoch, open=epoch))
        self._changed()
        return Begun(epoch)

    def _expel(self, command: Expel) -> Noted:
        for number in command.members:
            member = self._member(number)
            if member.highest and not member.expelled:
                self._put(number, msgspec.structs.replace(member, open=0, expelled=True))
                self._changed()
        return Noted()

    # --- what everybody has ---------------------------------------------------------------------

    def _stabilise(self, command: Stable) -> Noted:
        for actor, sequence in command.marks:
            known = self._stable.get(_key(actor))
            if self.is_admitted(actor) and (known is None or sequence > known.sequence):
                self._stable.put(_key(actor), MarkRecord(sequence))
                self._marks = None
        return Noted()

    # --- folding --------------------------------------------------------------------------------

    def _prepare(self, command: PrepareFold) -> Noted:
        state = self._state()
        actors = [actor for actor, _sequence in command.last]
        if command.generation != state.generation + 1:
            raise CommandError(f"fold {command.generation} does not follow {state.generation}")
        if not 0 < len(actors) <= RETIRED_MAX:
            raise CommandError(f"a fold takes 1 to {RETIRED_MAX} lives, not {len(actors)}")
        if state.preparing and [actor for actor, _sequence in state.preparing] != actors:
            raise CommandError(f"fold {command.generation} was prepared with other lives")
        self._check_first(actors)
        self._set(msgspec.structs.replace(state, preparing=command.last))
        return Noted()

    def _check_first(self, actors: list[int]) -> None:
        """Of each member, its first closed lives, without a gap: one number says what is folded."""
        last = {member_of(actor): actor for actor in actors}
        first = [actor for actor in self.closed() if actor <= last.get(member_of(actor), 0)]
        if actors != first:
            raise CommandError(f"lives {actors!r:.200} are not the first closed ones")

    def _fold(self, command: FoldLives) -> Noted:
        state = self._state()
        if command.generation != state.generation + 1 or not state.preparing:
            raise CommandError(f"fold {command.generation} was not prepared")
        if command.changes != state.changes:
            raise CommandError("lives have begun or ended since this was decided upon")
        settled = dict(command.settled)
        if any(settled.get(actor, 0) < sequence for actor, sequence in state.preparing):
            raise CommandError("not everybody has all that the lives to be folded wrote")
        heirs = tuple((actor, self._heir(actor)) for actor, _sequence in state.preparing)
        for actor, _heir in heirs:
            member = self._member(member_of(actor))
            folded = (*member.folded, (epoch_of(actor), settled.get(actor, 0)))
            dropped = [epoch for epoch, _ in folded[:-FOLDED_MAX]]
            member = msgspec.structs.replace(
                member,
                retired=epoch_of(actor),
                folded=folded[-FOLDED_MAX:],
                forgotten=max([member.forgotten, *dropped]),
            )
            self._put(member_of(actor), member)
            self._lives.delete(_key(actor))
            self._stable.delete(_key(actor))
        self._marks = None
        fold = FoldedAway(command.generation, heirs, command.settled)
        self._set(
            msgspec.structs.replace(state, generation=fold.generation, preparing=(), fold=fold)
        )
        return Noted()

    def _heir(self, actor: int) -> int:
        """Who takes over the rights of a life that is over: the member's next, or somebody's."""
        own = self._member(member_of(actor)).open
        if own:
            return make_actor(member_of(actor), own)
        present = self.present()
        if not present:
            raise CommandError("no member has a life that could inherit")
        return present[0]

    # --- what members left ----------------------------------------------------------------------

    def since(self, actor: int) -> int:
        """Up to which record the members have, or had, what that life did; what came after it may
        be rescued.

        Raises:
            CommandError: that is not known, or may change: why, and what to do.
        """
        number, epoch = member_of(actor), epoch_of(actor)
        record = self._rescues.get(_key(actor))
        if record is not None:
            return record.upto or record.since
        if not 0 < number <= MEMBER_MAX or not epoch:
            raise CommandError(f"{actor} is no life of a member")
        member = self._member(number)
        if self.is_admitted(actor):
            raise CommandError(
                f"life {epoch} of member {number} is not folded yet: records of it may still come "
                f"from members that have them"
            )
        for known, sequence in member.folded:
            if known == epoch:
                return sequence
        if epoch <= member.forgotten:
            raise CommandError(
                f"life {epoch} of member {number} was folded too long ago: how much of it there "
                f"was is known no more"
            )
        return 0

    def is_rescuing(self, estate: int) -> bool:
        """Whether not all is there of the life that goes by that name."""
        record = self._lives.get(_key(estate))
        return record is not None and record.rescuing

    def estate(self, actor: int) -> int:
        """The name that what that life did goes by while it is being rescued, 0: it is not."""
        record = self._rescues.get(_key(actor))
        return 0 if record is None or record.upto else record.estate

    def _rescue(self, command: Rescue) -> Rescuing:
        since, estate = self.since(command.actor), self.estate(command.actor)
        if estate:
            return Rescuing(since, estate)
        if len(self._lives) >= LIVES_MAX or len(self._rescues) >= RESCUES_MAX:
            raise CommandError(f"{RESCUES_MAX} lives were rescued, or {LIVES_MAX} cannot be folded")
        number = member_of(command.actor) + ESTATES
        member = self._member(number)
        if member.highest >= NUMBER_MAX:
            raise CommandError(f"member {number - ESTATES} has used up its {NUMBER_MAX} rescues")
        estate = make_actor(number, member.highest + 1)
        self._lives.put(_key(estate), LifeRecord(0, rescuing=True))
        self._put(number, msgspec.structs.replace(member, highest=epoch_of(estate)))
        self._rescues.put(_key(command.actor), RescueRecord(since, estate))
        author, epoch = self._member(member_of(command.actor)), epoch_of(command.actor)
        if epoch > author.highest:  # a number that is never to be given out
            author = msgspec.structs.replace(author, highest=epoch)
            self._put(member_of(command.actor), author)
        self._changed()
        return Rescuing(since, estate)

    def _rescued(self, command: Rescued) -> Noted:
        record = self._rescues.get(_key(command.actor))
        if record is None or record.estate != command.estate:
            raise CommandError(f"life {command.actor} is not being rescued as {command.estate}")
        if not record.upto:
            if command.upto <= record.since:
                raise CommandError(f"nothing is rescued up to record {command.upto}")
            self._lives.put(_key(record.estate), LifeRecord(0, after=command.after))
            rescued = RescueRecord(record.since, record.estate, command.upto)
            self._rescues.put(_key(command.actor), rescued)
            self._changed()
        return Noted()

    # --- small things ---------------------------------------------------------------------------

    def _member(self, member: int) -> MemberRecord:
        return self._members.get(_key(member)) or _NOBODY

    def _put(self, member: int, record: MemberRecord) -> None:
        must(record.retired <= record.highest, "only lives that were are folded", member=member)
        self._members.put(_key(member), record)
        self._present = None

    def _state(self) -> FoldingRecord:
        return self._folding.get(_KEY) or _NEW

    def _set(self, state: FoldingRecord) -> None:
        self._folding.put(_KEY, state)

    def _changed(self) -> None:
        state = self._state()
        self._set(msgspec.structs.replace(state, changes=state.changes + 1))


_NOBODY: Final = MemberRecord()
_NEW: Final = FoldingRecord()


def to_marks(frontier: Mapping[int, int], actors: Iterable[int]) -> Marks:
    """What *frontier* says of *actors*, 0 for those that it does not know, as commands carry it."""
    return tuple((actor, frontier.get(actor, 0)) for actor in sorted(actors))


def _key(number: int) -> bytes:
    """Of an actor, or of a member; of what can be neither, a key that is in no table."""
    return number.to_bytes(8, "big") if 0 <= number < 1 << 64 else b""
