"""What a write-ahead log must hold, step by step; ``torture_wal`` breaks logs and compares.

A *script* is a list of log operations. It runs on a disk in memory beside a model of what was
acknowledged.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

from quorate.base.types import LogIndex, NodeId, Term
from quorate.consensus.messages import Entry, EntryId, HardState
from quorate.errors import LogCorruptionError, StorageError
from quorate.storage.files import SECTOR_BYTES, FileSystem
from quorate.storage.interfaces import RecoveredLog
from quorate.storage.memory_files import (
    Hook,
    MemoryFileSystem,
    SimulatedCrashError,
)
from quorate.storage.wal import WriteAheadLog

DIRECTORY = "log"
IDENTITY = 7
SEGMENT_BYTES = 3 * SECTOR_BYTES
READ_ALL = 1 << 30
#: Up to this many outcomes of a crash are tried all; of more, a sample.
CRASHES_ALL_MAX = 64


class Effort(Protocol):
    """See ``torture.Effort``."""

    @property
    def samples(self) -> int: ...
    @property
    def rounds(self) -> int: ...
    @property
    def store_step(self) -> int: ...
    @property
    def kills(self) -> int: ...
    @property
    def seed(self) -> int: ...


class Tally(Protocol):
    """See ``torture.Tally``."""

    def count(self, what: str, times: int = 1) -> None: ...
    def violation(self, text: str) -> None: ...


# --- model and scripts ---


class Model(NamedTuple):
    """What a log must hold: *entries* are those above *floor*, the floor last asked for."""

    hard_state: HardState
    floor: EntryId
    entries: tuple[Entry, ...]

    @property
    def last(self) -> EntryId:
        return (
            EntryId(self.entries[-1].index, self.entries[-1].term) if self.entries else self.floor
        )


class Step(NamedTuple):
    """One call: *kind* append, cut, reset or prepare, with its arguments."""

    kind: str
    entries: tuple[Entry, ...] = ()
    hard_state: HardState | None = None
    floor: EntryId = EntryId(LogIndex(0), Term(0))

    def perform(self, log: WriteAheadLog) -> None:
        """Make the call."""
        if self.kind == "append":
            log.append(self.entries, self.hard_state)
        elif self.kind == "cut":
            log.cut(self.floor)
        elif self.kind == "reset":
            log.reset(self.floor, self.hard_state or EMPTY.hard_state)
        else:
            log.prepare()

    def after(self, model: Model) -> Model:
        """What the log holds when the call has returned."""
        if self.kind == "append":
            kept = model.entries
            if self.entries:
                kept = tuple(e for e in kept if e.index < self.entries[0].index) + self.entries
            return model._replace(hard_state=self.hard_state or model.hard_state, entries=kept)
        if self.kind == "cut":
            kept = tuple(e for e in model.entries if e.index > self.floor.index)
            return model._replace(floor=self.floor, entries=kept)
        if self.kind == "reset":
            return Model(self.hard_state or EMPTY.hard_state, self.floor, ())
        return model


Script = tuple[Step, ...]
EMPTY = Model(HardState(Term(0), NodeId(0), LogIndex(0)), EntryId(LogIndex(0), Term(0)), ())


def payload(index: int, term: int, size: int) -> bytes:
    """Bytes that differ by entry; every third is blank, every fourth sparse: the awkward ones."""
    if index % 3 == 0:
        return bytes(size)
    if index % 4 == 0 and size:
        return bytes(size - 1) + b"\x01"
    return random.Random(index << 20 | term << 8 | size % 251).randbytes(size)


def entry(index: int, term: int, size: int) -> Entry:
    """An entry of *size* payload bytes."""
    return Entry(LogIndex(index), Term(term), index % 3, payload(index, term, size))


def append(first: int, term: int, *sizes: int, state: tuple[int, int, int] | None = None) -> Step:
    """A step that appends entries of these sizes; *state* is (term, vote, commit)."""
    entries = tuple(entry(first + i, term, size) for i, size in enumerate(sizes))
    return Step("append", entries, state and hard(*state))


def hard(term: int, vote: int, commit: int) -> HardState:
    """A hard state."""
    return HardState(Term(term), NodeId(vote), LogIndex(commit))


def cut(index: int, term: int) -> Step:
    """A step that cuts the log."""
    return Step("cut", floor=EntryId(LogIndex(index), Term(term)))


def reset(index: int, term: int, state: tuple[int, int, int]) -> Step:
    """A step that resets the log."""
    return Step("reset", hard_state=hard(*state), floor=EntryId(LogIndex(index), Term(term)))


#: Appends of all shapes, within and across segments; blank and sparse payloads.
APPENDS: Script = (
    append(1, 1, 20, state=(1, 2, 0)),
    append(2, 1, 30, 700),
    append(4, 1, 0, state=(1, 2, 3)),
    append(5, 2, 1100, state=(2, 3, 4)),
    append(6, 2, 90),
    Step("append", hard_state=hard(3, 1, 6)),
    append(7, 3, 10, 10, 10, state=(3, 1, 6)),
)
#: Truncation within a segment, across segments and at its border; cuts and resets between.
CHANGES: Script = (
    append(1, 1, 200, 200, state=(1, 1, 1)),
    append(3, 1, 400),
    Step("prepare"),
    append(4, 1, 60, 60),
    append(4, 2, 300, state=(2, 0, 2)),
    append(3, 3, 500, state=(3, 2, 2)),
    cut(2, 1),
    append(4, 3, 450, state=(3, 2, 3)),
    cut(4, 3),
    append(5, 3, 100),
    reset(20, 4, (4, 1, 20)),
    append(21, 4, 600, state=(4, 1, 20)),
    append(22, 4, 100, state=(4, 1, 21)),
    append(22, 5, 450, state=(5, 1, 21)),
    cut(22, 5),
    Step("append", hard_state=hard(6, 3, 22)),
)
#: Small enough that each of its bits can be tried all the time.
SMALL: Script = (
    append(1, 1, 40, state=(1, 2, 0)),
    append(2, 1, 30, 30, state=(1, 2, 1)),
    append(2, 2, 100, state=(2, 1, 1)),
    append(3, 2, 400),
    append(4, 2, 9),
)
SCRIPTS: dict[str, Script] = {"appends": APPENDS, "changes": CHANGES, "small": SMALL}


def random_script(seed: int) -> Script:
    """A script of random but lawful steps."""
    rng = random.Random(seed)
    model = EMPTY
    steps: list[Step] = []
    for _ in range(rng.randint(4, 14)):
        state, last = model.hard_state, model.last
        term = state.term + (rng.random() < 0.3)
        roll = rng.random()
        if roll < 0.7 or last.index == model.floor.index:
            first = rng.randint(max(state.commit, model.floor.index) + 1, last.index + 1)
            sizes = [rng.choice((0, 10, 100, 450, 513, 1500)) for _ in range(rng.randint(1, 3))]
            commit = rng.randint(state.commit, first + len(sizes) - 1)
            step = append(first, term, *sizes, state=(term, rng.randint(0, 3), commit))
        elif roll < 0.85:
            floor = rng.choice(model.entries)
            step = cut(floor.index, floor.term)
        elif roll < 0.92:
            index = rng.randint(model.floor.index, last.index + 30)
            index = max(index, state.commit)
            step = reset(index, term, (term, 1, index))
        else:
            step = Step("prepare")
        steps.append(step)
        model = step.after(model)
    return tuple(steps)


def all_scripts(effort: Effort) -> Iterator[tuple[str, Script]]:
    """The fixed scripts, and some random ones."""
    yield from SCRIPTS.items()
    for seed in range(effort.seed, effort.seed + effort.rounds):
        yield f"random {seed}", random_script(seed)


# --- running and comparing ---


class Run(NamedTuple):
    """A script run as far as it came. *acknowledged* is what returned; *pending* what the step
    under way would have made of it (the same if none was)."""

    disk: MemoryFileSystem
    acknowledged: Model
    pending: Model
    error: BaseException | None


def open_log(disk: FileSystem) -> WriteAheadLog:
    """The log of every test here; not yet recovered."""
    return WriteAheadLog(DIRECTORY, files=disk, segment_bytes=SEGMENT_BYTES, identity=IDENTITY)


def perform(script: Script, hook: Hook | None = None) -> Run:
    """Run *script* on a fresh disk until it ends, crashes or fails."""
    disk = MemoryFileSystem(hook)
    log = open_log(disk)
    model = pending = EMPTY
    try:
        log.recover()
        for step in script:
            pending = step.after(model)
            step.perform(log)
            model = pending
    except (SimulatedCrashError, StorageError) as error:
        disk.hook = None
        return Run(disk, model, pending, error)
    return Run(disk, model, model, None)


def difference(log: WriteAheadLog, found: RecoveredLog, model: Model) -> str | None:
    """In what the recovered log differs from *model*, or None.

    Its floor may be lower than the model's: cuts remove whole segments only.
    """
    last = found.floor.index + len(found.metas)
    if found.hard_state != model.hard_state:
        return f"hard state {found.hard_state}, not {model.hard_state}"
    if last != model.last.index or found.floor.index > model.floor.index:
        return f"entries {found.floor.index + 1} to {last}, not {model.floor} to {model.last}"
    if found.floor.index == model.floor.index and found.floor != model.floor:
        return f"floor {found.floor}, not {model.floor}"
    if last == found.floor.index:
        return None
    entries = log.read(LogIndex(found.floor.index + 1), LogIndex(last), READ_ALL)
    metas = [(meta.term, meta.kind, meta.size_bytes) for meta in found.metas]
    if metas != [(e.term, e.kind, len(e.payload)) for e in entries]:
        return "the entries read are not those described"
    above = tuple(e for e in entries if e.index > model.floor.index)
    return None if above == model.entries else "other entries than were appended"


def check(disk: MemoryFileSystem, models: Sequence[Model], tally: Tally, replay: str) -> bool:
    """Recover, and expect one of *models*; then append, lose power, and expect that too."""
    log = open_log(disk)
    try:
        found = log.recover()
        differences = [difference(log, found, model) for model in models]
    except StorageError as error:
        tally.violation(f"{replay}: refused: {type(error).__name__}: {error}")
        return False
    tally.count("recovered")
    if None not in differences:
        tally.violation(f"{replay}: {differences}")
        return False
    model = models[differences.index(None)]
    step = append(model.last.index + 1, model.hard_state.term, 33)
    step.perform(log)
    again = disk.after_crash([0] * len(disk.uncertain()))
    log = open_log(again)
    try:
        text = difference(log, log.recover(), step.after(model))
    except StorageError as error:
        text = str(error)
    if text is not None:
        tally.violation(f"{replay}, then an append and a power loss: {text}")
    return text is None


def check_damage(
    disk: MemoryFileSystem, accept: Callable[[WriteAheadLog, RecoveredLog], str | None]
) -> tuple[str, str | None]:
    """Recover a damaged log: the outcome (refused or recovered), and what is wrong with it."""
    log = open_log(disk)
    try:
        found = log.recover()
        text = accept(log, found)
    except LogCorruptionError as error:
        complete = "byte" in str(error) and "log index" in str(error) and "rejoin" in str(error)
        return "refused", None if complete else f"the refusal does not say enough: {error}"
    except Exception as error:  # noqa: BLE001  any other error is a finding, not a failure of the tool
        return "failed", f"{type(error).__name__}: {error}"
    log.close()
    return "recovered", text


def segments(disk: MemoryFileSystem) -> list[str]:
    """Paths of the log's segments, oldest first."""
    return [f"{DIRECTORY}/{name}" for name in disk.listdir(DIRECTORY) if name.endswith(".wal")]


def crashes(disk: MemoryFileSystem, effort: Effort, salt: str) -> Iterable[tuple[int, ...]]:
    """Outcomes of a crash now: all of them if they are few, else the two extremes, every single
    survivor, every single loss, and a random sample."""
    if disk.crash_count() <= CRASHES_ALL_MAX:
        return disk.crashes()
    counts = disk.uncertain()
    nothing, everything = (0,) * len(counts), tuple(count - 1 for count in counts)
    rng = random.Random(f"{effort.seed} {salt}")
    positions = range(len(counts))
    alone = [nothing[:i] + everything[i : i + 1] + nothing[i + 1 :] for i in positions]
    absent = [(*everything[:i], 0, *everything[i + 1 :]) for i in positions]
    sample = [tuple(rng.randrange(c) for c in counts) for _ in range(effort.samples)]
    return dict.fromkeys([nothing, everything, *alone, *absent, *sample])
