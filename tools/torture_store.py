"""The ways to crash a state store; ``torture`` lists and runs them. Damage is ``torture_pages``.

A script of checkpoints and installed snapshots runs on a real directory beside a model. The rules:

* a crash is always recovered from, and leaves the acknowledged state or that of the step that was
  under way, whole, never parts of two;
* a failing disk is a typed error; after a full disk the store works on as if nothing was asked.
"""

from __future__ import annotations

import errno
import itertools
import random
import resource
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from quorate.base.types import LogIndex, Term
from quorate.consensus.messages import EntryId
from quorate.errors import DiskFullError, QuorateError, StorageError
from quorate.storage.interfaces import Change, SnapshotChunk, StoreMeta
from quorate.storage.store import LmdbStateStore
from tools.torture_disk import (
    Moment,
    State,
    WatchedFileSystem,
    after_kill,
    after_power_cuts,
    lmdb_watched,
    open_handles,
    write_state,
)
from tools.torture_model import Effort, Tally

#: Small, so that it has to grow in every run.
MAP_BYTES = 64 * 1024
SECTOR_BYTES = 512
PAGE_BYTES = 4096

Tables = dict[str, dict[bytes, bytes]]


class Held(msgspec.Struct, frozen=True):
    """What a store holds: the index of its last checkpoint (0: none), and the records."""

    index: int
    tables: Tables


class Step(msgspec.Struct, frozen=True):
    """A checkpoint of *changes* at *index*, or an installed snapshot of *snapshot*."""

    index: int
    changes: dict[str, list[Change]]
    snapshot: Tables | None = None

    def perform(self, store: LmdbStateStore) -> None:
        """Make the call."""
        if self.snapshot is None:
            store.checkpoint(meta_at(self.index), self.changes)
            return
        installer = store.installer()
        count = 0
        for table in sorted(self.snapshot):
            for pair in sorted(self.snapshot[table].items()):
                installer.add(SnapshotChunk(table, (pair,), b""))
                count += 1
        installer.finish(meta_at(self.index, installed=True), count)

    def after(self, held: Held) -> Held:
        """What the store holds when the call has returned."""
        if self.snapshot is not None:
            return Held(self.index, self.snapshot)
        tables = {name: dict(records) for name, records in held.tables.items()}
        for name, changes in self.changes.items():
            for key, value in changes:
                if value is None:
                    tables.get(name, {}).pop(key, None)
                else:
                    tables.setdefault(name, {})[key] = value
        return Held(self.index, {name: records for name, records in tables.items() if records})


NOTHING = Held(0, {})


def meta_at(index: int, *, installed: bool = False) -> StoreMeta:
    """The meta of a checkpoint at *index*."""
    applied = EntryId(LogIndex(index), Term(1))
    return StoreMeta(
        applied=applied,
        time_ms=index,
        membership=b"members",
        state_hash=b"12345678",
        installed=applied if installed else None,
    )


def random_steps(seed: int, count: int) -> tuple[Step, ...]:
    """Steps with small, large and deleted records, short and long keys, and snapshots between."""
    rng = random.Random(seed)
    steps: list[Step] = []
    for index in range(1, count + 1):
        if index > 1 and rng.random() < 0.3:
            tables = {name: dict(_records(rng)) for name in rng.sample("abc", rng.randint(0, 2))}
            steps.append(Step(index, {}, {name: held for name, held in tables.items() if held}))
            continue
        changes: dict[str, list[Change]] = {}
        for name in rng.sample("abc", rng.randint(0, 3)):
            changes[name] = [
                (key, None if rng.random() < 0.25 else value) for key, value in _records(rng)
            ]
        steps.append(Step(index, changes))
    return tuple(steps)


def _records(rng: random.Random) -> list[tuple[bytes, bytes]]:
    keys = [b"%d" % rng.randint(0, 40) for _ in range(rng.randint(1, 30))]
    keys += [b"L" * 600 + key for key in keys[:2]]
    return [(key, rng.randbytes(rng.choice((0, 5, 60, 300, 5000)))) for key in keys]


#: One table, then another; an overwrite that frees pages; a long value, a long key; a delete.
FIXED: tuple[Step, ...] = (
    Step(1, {"a": [(b"k%02d" % n, b"v" * n) for n in range(40)]}),
    Step(2, {"a": [(b"k03", b"x" * 5000)], "b": [(b"L" * 700, b"long"), (b"", b"empty key")]}),
    Step(3, {"a": [(b"k%02d" % n, None) for n in range(0, 40, 3)], "b": [(b"z", b"\0" * 300)]}),
    Step(4, {}, {"b": {b"one": b"1", b"two": b"2" * 4500}}),
    Step(5, {"b": [(b"three", b"3")], "c": [(b"k", b"v")]}),
)


def scripts(effort: Effort) -> Iterator[tuple[str, tuple[Step, ...]]]:
    """The fixed script and some random ones."""
    yield "fixed", FIXED
    for seed in range(effort.seed, effort.seed + effort.rounds):
        yield f"random {seed}", random_steps(seed, 6)


@contextmanager
def scratch() -> Iterator[Path]:
    """A fresh directory, in memory where the system has one: syncs are not what is tested here."""
    memory = Path("/dev/shm")  # noqa: S108  a fresh name is made in it
    folder = Path(tempfile.mkdtemp(prefix="quorate-", dir=memory if memory.is_dir() else None))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def open_store(directory: Path, disk: WatchedFileSystem | None = None) -> LmdbStateStore:
    """The store of every test here."""
    return LmdbStateStore(directory, map_bytes=MAP_BYTES, files=disk)


def held_by(store: LmdbStateStore) -> Held:
    """Everything that *store* gives out."""
    meta = store.meta()
    tables = {name: dict(store.load(name)) for name in store.tables()}
    return Held(0 if meta is None else meta.applied.index, tables)


def check(state: State, allowed: Sequence[Held], tally: Tally, replay: str) -> None:
    """Open what a crash left, and expect one of *allowed*, also when it is opened once more and
    after another checkpoint."""
    with scratch() as folder:
        write_state(folder, state)
        try:
            store = open_store(folder)
            found = held_by(store)
            step = Step(found.index + 1, {"a": [(b"after", b"the crash")]})
            step.perform(store)
            store.close()
            store = open_store(folder)
            again = held_by(store)
            store.close()
        except QuorateError as error:
            tally.violation(f"{replay}: refused: {type(error).__name__}: {error}")
            return
        tally.count("recovered")
        if found not in allowed:
            wanted = [held.index for held in allowed]
            tally.violation(f"{replay}: holds {found.index}, {_sizes(found)}; allowed {wanted}")
        elif again != step.after(found):
            tally.violation(f"{replay}: a checkpoint after the crash was not kept")


def _sizes(held: Held) -> dict[str, int]:
    return {name: len(records) for name, records in held.tables.items()}


# --- crashes between the operations of a directory ---


def watch(steps: Sequence[Step]) -> Iterator[tuple[Moment, list[Held]]]:
    """Run *steps* and give every moment, with what a crash there may leave."""
    with scratch() as folder:
        directory = folder / "state"
        directory.mkdir()
        disk = WatchedFileSystem(directory)
        held = NOTHING
        with lmdb_watched(disk):
            store = open_store(directory, disk)
            yield from _taken(disk, [NOTHING])
            for step in steps:
                following = step.after(held)
                step.perform(store)
                disk.moment(f"after step {step.index}")
                done = disk.moments.pop()
                yield from _taken(disk, [held, following])
                yield done, [following]
                held = following
            store.close()


def _taken(disk: WatchedFileSystem, allowed: list[Held]) -> Iterator[tuple[Moment, list[Held]]]:
    moments, disk.moments = disk.moments, []
    for moment in moments:
        yield moment, allowed


def crash_everywhere(effort: Effort, tally: Tally) -> None:
    """A kill and every power cut before each operation of creation, checkpoints and installs."""
    for name, steps in scripts(effort):
        for moment, allowed in watch(steps):
            tally.count("crash points")
            replay = f"{name}: before {moment.operation}"
            check(after_kill(moment), allowed, tally, f"{replay}, killed")
            for choice, state in after_power_cuts(moment):
                tally.count("reorderings")
                check(state, allowed, tally, f"{replay}, {choice}")


def crash_twice(effort: Effort, tally: Tally) -> None:
    """A kill, and then a power cut before each operation of the opening that follows: what the
    restarted node served must still be there."""
    for name, steps in itertools.islice(scripts(effort), 1 + effort.rounds // 4):
        for moment, _ in watch(steps):
            if effort.rounds == 1 and " lmdb " in moment.operation:
                continue
            with scratch() as folder:
                directory = folder / "state"
                directory.mkdir()
                write_state(directory, after_kill(moment))
                disk = _undurable(directory, moment)
                with lmdb_watched(disk):
                    store = open_store(directory, disk)
                    served = held_by(store)
                    disk.moment("after opening")
                    store.close()
                for second in disk.moments:
                    tally.count("crash points")
                    for choice, state in after_power_cuts(second):
                        replay = f"{name}: killed before {moment.operation}, power cut before"
                        allowed = [served]
                        if second is not disk.moments[-1]:
                            allowed = _possible(steps)
                        tally.count("reorderings")
                        check(state, allowed, tally, f"{replay} {second.operation}, {choice}")


def _undurable(directory: Path, moment: Moment) -> WatchedFileSystem:
    """The disk below a killed process: what it had not synced is still not."""
    disk = WatchedFileSystem(directory)
    disk.adopt(moment)
    return disk


def _possible(steps: Sequence[Step]) -> list[Held]:
    return list(itertools.accumulate(steps, lambda held, step: step.after(held), initial=NOTHING))


# --- crashes inside of a commit ---


def crash_in_commit(effort: Effort, tally: Tally) -> None:
    """A power cut inside of LMDB's commit: pages first, synced, then the one sector of the meta
    page. Before that sector any part of the pages may be there; after it all of them."""
    for name, steps in scripts(effort):
        for before, after, held, following in commits(steps):
            rng = random.Random(f"{effort.seed} {name} {following.index}")
            metas, pages = changed_sectors(before, after)
            for chosen in subsets(pages, effort.samples // 4, rng):
                for length in {len(before), len(after)}:
                    tally.count("crash points")
                    data = overlay(before, after, chosen, length)
                    replay = f"{name}: commit {following.index}, sectors {sorted(chosen)}, {length}"
                    check({"store-00000001": {"data.mdb": data}}, [held], tally, replay)
            for chosen in subsets(metas, effort.samples // 4, rng):
                tally.count("crash points")
                data = overlay(before, after, pages | chosen, len(after))
                replay = f"{name}: commit {following.index}, meta sectors {sorted(chosen)}"
                allowed = [following] if chosen == metas else [held, following]
                check({"store-00000001": {"data.mdb": data}}, allowed, tally, replay)


def commits(steps: Sequence[Step]) -> Iterator[tuple[bytes, bytes, Held, Held]]:
    """The data file before and after every commit, with what it holds then."""
    with scratch() as folder:
        store = open_store(folder)
        held = NOTHING
        for step in steps:
            path = Path(store._environment.path) / "data.mdb"  # noqa: SLF001  the file itself
            following = step.after(held)
            if step.snapshot is None:
                before = path.read_bytes()
                store._environment.ensure_tables(step.changes)  # noqa: SLF001  its own commit
                between = path.read_bytes()
                if between != before:
                    yield before, between, held, held
                step.perform(store)
                yield between, path.read_bytes(), held, following
            else:
                step.perform(store)
            held = following
        store.close()


def changed_sectors(before: bytes, after: bytes) -> tuple[set[int], set[int]]:
    """The sectors that a commit changed: those of the two meta pages, and the others."""
    padded = before.ljust(len(after), b"\0")
    changed = {
        start
        for start in range(0, len(after), SECTOR_BYTES)
        if padded[start : start + SECTOR_BYTES] != after[start : start + SECTOR_BYTES]
    }
    metas = {start for start in changed if start < 2 * PAGE_BYTES}
    return metas, changed - metas


def subsets(sectors: set[int], samples: int, rng: random.Random) -> list[set[int]]:
    """All subsets if they are few, else none, all, each alone, each missing, and a sample."""
    ordered = sorted(sectors)
    if len(ordered) <= 3:
        return [
            set(chosen)
            for count in range(len(ordered) + 1)
            for chosen in itertools.combinations(ordered, count)
        ]
    sample = [{start for start in ordered if rng.random() < 0.5} for _ in range(samples)]
    single = rng.sample(ordered, min(len(ordered), samples))
    return [
        set(),
        set(ordered),
        *({start} for start in single),
        *(sectors - {start} for start in single),
        *sample,
    ]


def overlay(before: bytes, after: bytes, sectors: set[int], length: int) -> bytes:
    """*before* with some sectors as they are in *after*, at least *length* long."""
    data = bytearray(before.ljust(length, b"\0"))
    for start in sorted(sectors):
        new = after[start : start + SECTOR_BYTES]
        if len(data) < start:
            data.extend(bytes(start - len(data)))
        data[start : start + len(new)] = new
    return bytes(data)


# --- failing operations ---


def fail_everywhere(effort: Effort, tally: Tally) -> None:
    """Each operation fails once: poisoned for good, or for a full disk as if nothing was asked."""
    for name, steps in scripts(effort):
        for code in (errno.EIO, errno.ENOSPC):
            for number in itertools.count():
                replay = f"{name}: operation {number} fails with {errno.errorcode[code]}"
                if not _fail(steps, (number, code), tally, replay):
                    break


def _fail(steps: Sequence[Step], fail: tuple[int, int], tally: Tally, replay: str) -> bool:
    """Run with one failing operation; False if it was never reached."""
    handles = open_handles()
    with scratch() as folder:
        directory = folder / "state"
        directory.mkdir()
        disk = WatchedFileSystem(directory, record=False, fail=fail)
        held = following = NOTHING
        store: LmdbStateStore | None = None
        try:
            store = open_store(directory, disk)
            for step in steps:
                following = step.after(held)
                try:
                    step.perform(store)
                except DiskFullError as error:
                    tally.count("disk full")
                    if fail[1] != errno.ENOSPC:
                        tally.violation(f"{replay}: taken for a full disk: {error}")
                    if held_by(store) != held:
                        tally.violation(f"{replay}: a full disk changed something")
                    step.perform(store)
                held = following
        except StorageError as error:
            tally.count("reported")
            if store is not None and not isinstance(error, DiskFullError):
                _expect_poisoned(store, tally, replay)
        except Exception as error:  # noqa: BLE001  any other error is a finding
            tally.violation(f"{replay}: {type(error).__name__}: {error}")
        if store is not None:
            store.close()
        if open_handles() != handles:
            tally.violation(f"{replay}: {open_handles() - handles} handles stay open")
        store = open_store(directory)
        if held_by(store) not in (held, following):
            tally.violation(f"{replay}: neither the state before nor that after")
        store.close()
    return disk.operations > fail[0]


def _expect_poisoned(store: LmdbStateStore, tally: Tally, replay: str) -> None:
    calls: dict[str, Callable[[], object]] = {
        "checkpoint": lambda: store.checkpoint(meta_at(99), {}),
        "snapshot": store.snapshot,
        "installer": store.installer,
        "tables": store.tables,
    }
    for name, call in calls.items():
        try:
            call()
        except StorageError:
            continue
        tally.violation(f"{replay}: {name} works on after a failed write")


def no_space(effort: Effort, tally: Tally) -> None:
    """The disk is full at every size of the data file: nothing changed, and it works on."""
    limits = range(0, 40 * PAGE_BYTES, PAGE_BYTES if effort.rounds > 1 else 4 * PAGE_BYTES)
    for name, steps in scripts(effort):
        for limit in limits:
            with scratch() as folder:
                store = open_store(folder)
                held = NOTHING
                for step in steps:
                    tally.count("tries")
                    try:
                        with file_size_limit(limit):
                            step.perform(store)
                    except DiskFullError:
                        tally.count("disk full")
                        if held_by(store) != held:
                            tally.violation(f"{name}: step {step.index} at {limit}: changed")
                        step.perform(store)
                    except Exception as error:  # noqa: BLE001  any other error is a finding
                        tally.violation(f"{name}: step {step.index} at {limit}: {error!r}")
                        break
                    held = step.after(held)
                    if held_by(store) != held:
                        tally.violation(f"{name}: step {step.index} at {limit}: lost")
                store.close()


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Files may not grow beyond *size*: as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
