"""The ways to break a write-ahead log; ``torture`` lists and runs them.

Each suite runs a *script* of log operations on a disk in memory beside a model of what was
acknowledged, does its harm, recovers, and compares. The rules:

* a crash, however it tears and reorders, is always recovered from;
* what is recovered is the acknowledged state, or that of the one step that was under way;
* damage is refused with ``LogCorruptionError``, or it hit nothing that mattered.
"""

from __future__ import annotations

import errno
import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

from quorate.base.types import LogIndex, NodeId, Term
from quorate.consensus.messages import Entry, EntryId, HardState
from quorate.errors import DiskFullError, LogCorruptionError, StorageError
from quorate.storage.files import SECTOR_BYTES, FileSystem
from quorate.storage.interfaces import RecoveredLog
from quorate.storage.memory_files import (
    Hook,
    MemoryFileSystem,
    Operation,
    SimulatedCrashError,
    crash_before,
    fail_once,
)
from quorate.storage.wal import WriteAheadLog
from quorate.storage.wal_format import segment_name

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
    def bit_step(self) -> int: ...
    @property
    def rounds(self) -> int: ...
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
    step = append(model.last.index + 1, model.hard_state.term, 33, 600)
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
    absent = [everything[:i] + (0,) + everything[i + 1 :] for i in positions]
    sample = [tuple(rng.randrange(c) for c in counts) for _ in range(effort.samples)]
    return dict.fromkeys([nothing, everything, *alone, *absent, *sample])


# --- damage ---


def cut_off(effort: Effort, tally: Tally) -> None:
    """A segment of another length than its header says is never what a crash leaves."""
    for name, script in all_scripts(effort):
        run = perform(script)
        for path in segments(run.disk):
            size = len(run.disk.content(path))
            for length in range(size):
                disk = run.disk.after_kill()
                disk.damage(path, disk.content(path)[:length])
                tally.count("offsets")
                outcome, text = check_damage(disk, lambda _log, _found: "accepted")
                tally.count(outcome)
                if text:
                    tally.violation(f"{name}: {path} cut off at {length}: {text}")


def lose_tail(effort: Effort, tally: Tally) -> None:
    """The frame under way is there up to some byte. At a sector's border that is a crash; within
    a sector it is damage to unacknowledged data, so either outcome is right."""
    del effort
    for size in (10, 500, 1000, 1400):
        before, last = (*SMALL, append(5, 2, 20, size % 97)), append(7, 2, size)
        run = perform((*before, last))
        kept = perform(before).acknowledged
        path = segments(run.disk)[-1]
        begin = _frame_begin(run.disk, path)
        for length in range(begin, len(run.disk.content(path)) + 1):
            disk = run.disk.after_kill()
            content = disk.content(path)
            disk.damage(path, content[:length].ljust(len(content), b"\0"))
            tally.count("offsets")
            if length % SECTOR_BYTES == 0:
                check(disk, [kept, run.acknowledged], tally, f"tail of {size} lost from {length}")
                continue
            outcome, text = check_damage(disk, _one_of(kept, run.acknowledged))
            tally.count(outcome)
            if text:
                tally.violation(f"tail of {size} lost from {length}: {text}")


def _frame_begin(disk: MemoryFileSystem, path: str) -> int:
    return disk.content(path).rfind(b"QWAL")


def _one_of(*models: Model) -> Callable[[WriteAheadLog, RecoveredLog], str | None]:
    def accept(log: WriteAheadLog, found: RecoveredLog) -> str | None:
        differences = [difference(log, found, model) for model in models]
        return None if None in differences else str(differences)

    return accept


def lose_rest(effort: Effort, tally: Tally) -> None:
    """A disk that lied: the newest segment is blank from some sector on. What is left must be a
    state the log once had, and never one whose own commit index says that more was committed."""
    for name, script in all_scripts(effort):
        run = perform(script)
        states = list(itertools.accumulate(script, lambda m, step: step.after(m), initial=EMPTY))
        path = segments(run.disk)[-1]
        for offset in range(SECTOR_BYTES, SEGMENT_BYTES + 1, SECTOR_BYTES):
            disk = run.disk.after_kill()
            content = disk.content(path)
            disk.damage(path, content[:offset].ljust(len(content), b"\0"))
            tally.count("offsets")
            outcome, text = check_damage(disk, _one_of(*states))
            tally.count(outcome)
            if text:
                tally.violation(f"{name}: blank from {offset}: {text}")


def flip_bits(effort: Effort, tally: Tally) -> None:
    """Every bit of an acknowledged log: refused, or recovered whole."""
    chosen = SCRIPTS.items() if effort.rounds > 1 else [("small", SMALL)]
    for name, script in chosen:
        run = perform(script)
        accept = _one_of(run.acknowledged)
        for path in segments(run.disk):
            content = bytearray(run.disk.content(path))
            for bit in range(0, 8 * len(content), effort.bit_step):
                disk = run.disk.after_kill()
                content[bit // 8] ^= 1 << bit % 8
                disk.damage(path, content)
                content[bit // 8] ^= 1 << bit % 8
                tally.count("bits")
                outcome, text = check_damage(disk, accept)
                tally.count(outcome)
                if text:
                    tally.violation(f"{name}: bit {bit} of {path}: {text}")


def damage_bytes(effort: Effort, tally: Tally) -> None:
    """One to eight bytes of one sector set to anything, zero above all."""
    for name, script in all_scripts(effort):
        run = perform(script)
        accept = _one_of(run.acknowledged)
        rng = random.Random(f"{effort.seed} {name}")
        sectors = [
            (path, start)
            for path in segments(run.disk)
            for start in range(0, len(run.disk.content(path)), SECTOR_BYTES)
        ]
        for path, start in sectors:
            for attempt in range(10 * effort.samples):
                disk = run.disk.after_kill()
                content = bytearray(disk.content(path))
                written = [i for i in range(start, start + SECTOR_BYTES) if content[i]]
                count = rng.randint(1, 8)
                if attempt % 2 or len(written) < count:
                    written = list(range(start, start + SECTOR_BYTES))
                for position in rng.sample(written, count):
                    content[position] = 0 if attempt % 2 == 0 else rng.randrange(256)
                disk.damage(path, content)
                tally.count("damages")
                outcome, text = check_damage(disk, accept)
                tally.count(outcome)
                if text:
                    tally.violation(f"{name}: {path} sector at {start}, attempt {attempt}: {text}")


def misplace_segments(effort: Effort, tally: Tally) -> None:
    """Segments that are missing in the middle, or stand under another's name."""
    for name, script in all_scripts(effort):
        run = perform(script)
        paths = segments(run.disk)
        accept = _one_of(run.acknowledged)
        for path in paths[1:-1]:
            disk = run.disk.after_kill()
            disk.unlink(path)
            _expect_refusal(disk, accept, tally, f"{name}: {path} deleted")
        for one, other in itertools.combinations(paths, 2):
            disk = run.disk.after_kill()
            first, second = disk.content(one), disk.content(other)
            disk.damage(one, second)
            disk.damage(other, first)
            _expect_refusal(disk, accept, tally, f"{name}: {one} and {other} swapped")
        disk = run.disk.after_kill()
        number = int(paths[-1].rpartition("/")[2].partition(".")[0]) + 1
        copy = disk.create(f"{DIRECTORY}/{segment_name(number)}")
        copy.pwrite(disk.content(paths[-1]), 0)
        _expect_refusal(disk, accept, tally, f"{name}: {paths[-1]} duplicated")


def _expect_refusal(
    disk: MemoryFileSystem,
    accept: Callable[[WriteAheadLog, RecoveredLog], str | None],
    tally: Tally,
    replay: str,
) -> None:
    tally.count("files")
    outcome, text = check_damage(disk, accept)
    tally.count(outcome)
    if text or outcome != "refused":
        tally.violation(f"{replay}: {outcome}: {text}")


# --- crashes ---


def crash_points(script: Script) -> Iterator[tuple[int, Run]]:
    """The script crashed before each of its changing operations in turn, and after the last."""
    for number in itertools.count():
        run = perform(script, crash_before(number))
        yield number, run
        if run.error is None:
            return


def crash_everywhere(effort: Effort, tally: Tally) -> None:
    """Power loss at every operation, with every loss and reordering of what was not synced."""
    for name, script in all_scripts(effort):
        for number, run in crash_points(script):
            tally.count("crash points")
            for picks in crashes(run.disk, effort, f"{name} {number}"):
                tally.count("reorderings")
                replay = f"{name}: crash before operation {number}, outcome {picks}"
                check(run.disk.after_crash(picks), [run.acknowledged, run.pending], tally, replay)


def crash_twice(effort: Effort, tally: Tally) -> None:
    """Power loss at every operation of the recovery from a power loss."""
    for name, script in all_scripts(effort):
        for number, run in crash_points(script):
            for picks in _some(crashes(run.disk, effort, f"{name} {number}"), effort):
                for second in itertools.count():
                    disk = run.disk.after_crash(picks)
                    disk.hook = crash_before(second)
                    finished = _recover_until_crash(disk)
                    tally.count("crash points")
                    replay = f"{name}: crashes at {number} {picks} and in recovery at {second}"
                    models = [run.acknowledged, run.pending]
                    for again in _some(crashes(disk, effort, replay), effort):
                        tally.count("reorderings")
                        check(disk.after_crash(again), models, tally, f"{replay} {again}")
                    if finished:
                        break


def _some(outcomes: Iterable[tuple[int, ...]], effort: Effort) -> list[tuple[int, ...]]:
    """A spread of the outcomes: crashes of crashes would be too many otherwise."""
    found = list(outcomes)
    return found[:: max(1, len(found) // max(4, effort.samples // 10))]


def _recover_until_crash(disk: MemoryFileSystem) -> bool:
    try:
        open_log(disk).recover()
    except SimulatedCrashError:
        return False
    finally:
        disk.hook = None
    return True


def kill_then_crash(effort: Effort, tally: Tally) -> None:
    """The process dies and the page cache lives: what the restarted node reads and promises must
    be on disk by then, for next the power fails and takes all that was not synced."""
    for name, script in all_scripts(effort):
        for number, run in crash_points(script):
            tally.count("crash points")
            disk = run.disk.after_kill()
            log = open_log(disk)
            models = [run.acknowledged, run.pending]
            replay = f"{name}: killed before operation {number}"
            try:
                found = log.recover()
                promised = [m for m in models if difference(log, found, m) is None]
            except StorageError as error:
                tally.violation(f"{replay}: {error}")
                continue
            if not promised:
                tally.violation(f"{replay}: neither the acknowledged state nor the next")
            for picks in crashes(disk, effort, replay):
                tally.count("reorderings")
                check(disk.after_crash(picks), promised, tally, f"{replay}, power lost {picks}")


# --- failing operations ---

FAILING = ("create", "pwrite", "fdatasync", "fsync", "rename", "unlink", "fsync_dir")


def fail_everywhere(effort: Effort, tally: Tally) -> None:
    """Each operation fails once: poisoned for good, or for a full disk as if nothing was asked."""
    for name, script in all_scripts(effort):
        for kind, code in itertools.product(FAILING, (errno.EIO, errno.ENOSPC)):
            for number in itertools.count():
                hook = fail_once(kind, number, code)
                if not _fail(script, hook, code, effort, tally, f"{name}: {kind} {number} {code}"):
                    break


def _fail(script: Script, hook: Hook, code: int, effort: Effort, tally: Tally, replay: str) -> bool:
    """Run with one failure; False if the script ended without meeting it."""
    disk = MemoryFileSystem()
    log = open_log(disk)
    log.recover()
    disk.hook = hook
    model = EMPTY
    failed = False
    for step in script:
        pending = step.after(model)
        try:
            step.perform(log)
        except DiskFullError:
            failed = True
            tally.count("disk full")
            if code != errno.ENOSPC:
                tally.violation(f"{replay}: an I/O error taken for a full disk")
            step.perform(log)  # the space came back: the log is as usable as before
        except StorageError:
            tally.count("poisoned")
            disk.hook = None
            _expect_poisoned(log, tally, replay)
            for picks in _some(crashes(disk, effort, replay), effort):
                check(disk.after_crash(picks), [model, pending], tally, f"{replay} {picks}")
            return True
        model = pending
    disk.hook = None
    if failed:
        check(disk.after_crash([0] * len(disk.uncertain())), [model], tally, replay)
    return failed


def _expect_poisoned(log: WriteAheadLog, tally: Tally, replay: str) -> None:
    calls: dict[str, Callable[[], object]] = {
        "append": lambda: log.append((), hard(99, 0, 0)),
        "read": lambda: log.read(LogIndex(1), LogIndex(1), 1),
        "cut": lambda: log.cut(EMPTY.floor),
        "reset": lambda: log.reset(EMPTY.floor, hard(99, 0, 0)),
        "size_bytes": log.size_bytes,
    }
    for name, call in calls.items():
        try:
            call()
        except DiskFullError:
            tally.violation(f"{replay}: {name} works on after a failed write")
        except StorageError:
            continue
        else:
            tally.violation(f"{replay}: {name} works on after a failed write")


def fail_recovery(effort: Effort, tally: Tally) -> None:
    """Each operation of a recovery fails once: a typed error, and the next attempt succeeds."""
    for name, script in all_scripts(effort):
        for number, run in crash_points(script):
            models = [run.acknowledged, run.pending]
            for picks in _some(crashes(run.disk, effort, f"{name} {number}"), effort):
                for operation in itertools.count():
                    disk = run.disk.after_crash(picks)
                    disk.hook = _fail_any(operation)
                    replay = f"{name}: crash at {number} {picks}, recovery fails at {operation}"
                    tally.count("failures")
                    if not _recovery_fails(disk, tally, replay):
                        break
                    check(disk, models, tally, replay)


def _fail_any(number: int) -> Hook:
    def hook(operation: Operation) -> None:
        if operation.number == number:
            raise OSError(errno.EIO, "injected", operation.path)

    return hook


def _recovery_fails(disk: MemoryFileSystem, tally: Tally, replay: str) -> bool:
    try:
        open_log(disk).recover()
    except LogCorruptionError as error:
        tally.violation(f"{replay}: a failing disk taken for damage: {error}")
    except StorageError:
        tally.count("reported")
    except Exception as error:  # noqa: BLE001  any other error is a finding
        tally.violation(f"{replay}: {type(error).__name__}: {error}")
    else:
        return False
    finally:
        disk.hook = None
    return True
