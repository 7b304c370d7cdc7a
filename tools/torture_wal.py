"""The ways to break a write-ahead log; ``torture`` lists and runs them.

Each suite runs a script of log operations (``torture_model``) on a disk in memory, does its harm,
recovers, and compares. The rules:

* a crash, however it tears and reorders, is always recovered from;
* what is recovered is the acknowledged state, or that of the one step that was under way;
* damage is refused with ``LogCorruptionError``, or it hit nothing that mattered.
"""

from __future__ import annotations

import errno
import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Sequence

from quorate.base.types import LogIndex
from quorate.consensus.messages import EntryId
from quorate.errors import DiskFullError, LogCorruptionError, StorageError
from quorate.storage.files import SECTOR_BYTES
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
from tools.torture_model import (
    APPENDS,
    DIRECTORY,
    EMPTY,
    SCRIPTS,
    SEGMENT_BYTES,
    SMALL,
    Effort,
    Model,
    Run,
    Script,
    Tally,
    all_scripts,
    append,
    check,
    check_damage,
    crashes,
    difference,
    hard,
    open_log,
    perform,
    reset,
    segments,
)

# --- damage ---


def cut_off(effort: Effort, tally: Tally) -> None:
    """A segment of another length than its header says is never what a crash leaves."""
    small = [("small", SMALL)]
    for name, script in all_scripts(effort) if effort.rounds > 1 else small:
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
            outcome, text = check_damage(disk, _one_of_cut(states))
            tally.count(outcome)
            if text:
                tally.violation(f"{name}: blank from {offset}: {text}")


def _one_of_cut(
    states: Sequence[Model],
) -> Callable[[WriteAheadLog, RecoveredLog], str | None]:
    """One of *states*, without the entries at or below the floor that is found: a cut may have
    removed them since."""

    def accept(log: WriteAheadLog, found: RecoveredLog) -> str | None:
        differences = [difference(log, found, _above(state, found.floor)) for state in states]
        return None if None in differences else str(differences)

    return accept


def _above(state: Model, floor: EntryId) -> Model:
    held = {(entry.index, entry.term) for entry in state.entries}
    if (floor.index, floor.term) not in held:
        return state
    kept = tuple(entry for entry in state.entries if entry.index > floor.index)
    return state._replace(floor=floor, entries=kept)


def flip_bits(effort: Effort, tally: Tally) -> None:
    """Every bit of an acknowledged log: refused, or recovered whole."""
    chosen = {"small": SMALL} if effort.rounds == 1 else {"small": SMALL, "appends": APPENDS}
    for name, script in (chosen if effort.rounds < 9 else SCRIPTS).items():
        run = perform(script)
        accept = _one_of(run.acknowledged)
        for path in segments(run.disk):
            content = bytearray(run.disk.content(path))
            for bit in range(8 * len(content)):
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
            for attempt in range(3 * effort.samples):
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


def come_back(effort: Effort, tally: Tally) -> None:
    """A record that was never acknowledged, and was lost in a crash, comes back in place of the
    one that was written there since. It is sound and in its place; only the chain tells."""
    for name, script in all_scripts(effort):
        model = perform(script).acknowledged
        # A fresh segment, with room for the two records that follow.
        index, state = model.last.index + 5, model.hard_state
        fresh = reset(index, state.term, (state.term, state.vote, index))
        first, second = (append(index + at, state.term, 70) for at in (1, 2))
        lost = perform((*script, fresh, append(index + 1, state.term, 90)))
        run = perform((*script, fresh, first, second))
        path = segments(run.disk)[-1]
        content = bytearray(run.disk.content(path))
        place = slice(SECTOR_BYTES, 2 * SECTOR_BYTES)
        content[place] = lost.disk.content(path)[place]
        run.disk.damage(path, content)
        disk = run.disk.after_kill()
        _expect_refusal(disk, _one_of(run.acknowledged), tally, f"{name}: a record came back")


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
                for second in itertools.count(0, 1 if effort.rounds > 1 else 2):
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
            models = [run.acknowledged, run.pending]
            replay = f"{name}: killed before operation {number}"
            _recover_then_crash(run.disk.after_kill(), models, effort, tally, replay)


def _recover_then_crash(
    disk: MemoryFileSystem, models: Sequence[Model], effort: Effort, tally: Tally, replay: str
) -> None:
    log = open_log(disk)
    try:
        found = log.recover()
        promised = [m for m in models if difference(log, found, m) is None]
    except StorageError as error:
        tally.violation(f"{replay}: {error}")
        return
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
    met: list[Operation] = []

    def noting(operation: Operation) -> None:
        try:
            hook(operation)
        except OSError:
            met.append(operation)
            raise

    disk.hook = noting
    model = EMPTY
    for step in script:
        pending = step.after(model)
        try:
            step.perform(log)
        except DiskFullError:
            tally.count("disk full")
            if code != errno.ENOSPC:
                tally.violation(f"{replay}: an I/O error taken for a full disk")
            # A shorter append first: nothing of the longer one may stand behind it.
            log.append((), model.hard_state)
            for picks in _some(crashes(disk, effort, replay), effort):
                check(disk.after_crash(picks), [model], tally, f"{replay}, full {picks}")
            step.perform(log)  # the space came back: the log is as usable as before
        except StorageError:
            tally.count("poisoned")
            disk.hook = None
            _expect_poisoned(log, tally, replay)
            for picks in _some(crashes(disk, effort, replay), effort):
                check(disk.after_crash(picks), [model, pending], tally, f"{replay} {picks}")
            for landed in (False, True):
                again = disk.after_kill(landed=landed)
                text = f"{replay}, killed, landed={landed}"
                _recover_then_crash(again, [model, pending], effort, tally, text)
            return True
        model = pending
    disk.hook = None
    if met:
        check(disk.after_crash([0] * len(disk.uncertain())), [model], tally, replay)
    return bool(met)


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
                for operation in itertools.count(0, 1 if effort.rounds > 1 else 4):
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
