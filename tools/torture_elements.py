"""The ways to crash and damage an element store; ``torture`` lists and runs them.

The rules are those of ``torture_store`` and ``torture_pages``, whose scripts, crashes and damages
are used here: a crash leaves the state before the write that was under way, or that after it; a
failing disk is a typed error; damage is refused, or it hit nothing that mattered.
"""

from __future__ import annotations

import errno
import itertools
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

from quorate.errors import DiskFullError, QuorateError, StorageError, StoreCorruptionError
from quorate.storage.durable import REJOIN
from quorate.storage.element_environment import ElementEnvironment
from quorate.storage.interfaces import Change
from quorate.storage.lmdb_elements import LmdbElementStore
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
from tools.torture_store import (
    MAP_BYTES,
    PAGE_BYTES,
    SECTOR_BYTES,
    changed_sectors,
    file_size_limit,
    overlay,
    random_steps,
    scratch,
    subsets,
)

Changes = dict[str, list[Change]]
Tables = dict[str, dict[bytes, bytes]]
TABLES = ("a", "b", "c", "d")
_LONG = b"L" * 1500
#: Two tables at once; spaces that come, are shared and go; large values; deletes.
FIXED: tuple[Changes, ...] = (
    {"a": [(b"k%02d" % n, b"v" * n) for n in range(40)], "b": [(_LONG + b"1", b"deep")]},
    {"a": [(b"k03", b"x" * 5000)], "b": [(_LONG + b"2", b"beside"), (_LONG[:700], b"half")]},
    {"a": [(b"k%02d" % n, None) for n in range(0, 40, 3)], "b": [(_LONG + b"1", None)]},
    {"b": [(_LONG + b"2", None), (b"z", b"\0" * 300)], "d": [(b"k", b"v")]},
)


def scripts(effort: Effort) -> Iterator[tuple[str, Sequence[Changes]]]:
    """The fixed script and some random ones."""
    yield "fixed", FIXED
    for seed in range(effort.seed, effort.seed + effort.rounds):
        steps = [step.changes for step in random_steps(seed, 8) if step.snapshot is None]
        yield f"random {seed}", steps


def after(held: Tables, changes: Changes) -> Tables:
    """What the store holds when *changes* were made."""
    tables = {name: dict(records) for name, records in held.items()}
    for name, of_table in changes.items():
        for key, value in of_table:
            if value is None:
                tables.get(name, {}).pop(key, None)
            else:
                tables.setdefault(name, {})[key] = value
    return {name: records for name, records in tables.items() if records}


def open_store(directory: Path, disk: WatchedFileSystem | None = None) -> LmdbElementStore:
    """The store of every test here."""
    return LmdbElementStore(directory, map_bytes=MAP_BYTES, files=disk)


def held_by(store: LmdbElementStore) -> Tables:
    """Everything that *store* gives out, in pages and by name."""
    tables: Tables = {}
    for name in TABLES:
        start, found = b"", tables.setdefault(name, {})
        while page := store.page(name, start, None, 7):
            found.update(page)
            start = page[-1][0] + b"\0"
        if any(store.get(name, key) != value for key, value in found.items()):
            tables["pages and names differ"] = {}
    return {name: records for name, records in tables.items() if records}


def check(state: State, allowed: Sequence[Tables], tally: Tally, replay: str) -> None:
    """Open what a crash left, and expect one of *allowed*, also after another write."""
    more: Changes = {"a": [(b"after", b"the crash")], "b": [(_LONG + b"3", b"the crash")]}
    with scratch() as folder:
        write_state(folder, state)
        try:
            store = open_store(folder)
            found = held_by(store)
            store.write(more)
            store.close()
            store = open_store(folder)
            again = held_by(store)
            store.close()
        except QuorateError as error:
            tally.violation(f"{replay}: refused: {type(error).__name__}: {error}")
            return
        tally.count("recovered")
        if found not in allowed:
            tally.violation(f"{replay}: holds neither what was there before nor after")
        elif again != after(found, more):
            tally.violation(f"{replay}: a write after the crash was not kept")


def watch(steps: Sequence[Changes]) -> Iterator[tuple[Moment, list[Tables]]]:
    """Run *steps* and give every moment, with what a crash there may leave."""
    with scratch() as folder:
        directory = folder / "crdt"
        directory.mkdir()
        disk = WatchedFileSystem(directory)
        held: Tables = {}
        with lmdb_watched(disk, ElementEnvironment):
            store = open_store(directory, disk)
            yield from _taken(disk, [held])
            for number, step in enumerate(steps):
                following = after(held, step)
                store.write(step)
                disk.moment(f"after step {number}")
                done = disk.moments.pop()
                yield from _taken(disk, [held, following])
                yield done, [following]
                held = following
            store.close()


def _taken(disk: WatchedFileSystem, allowed: list[Tables]) -> Iterator[tuple[Moment, list[Tables]]]:
    moments, disk.moments = disk.moments, []
    for moment in moments:
        yield moment, allowed


def crash_everywhere(effort: Effort, tally: Tally) -> None:
    """A kill and every power cut before each operation of creation and writes."""
    for name, steps in scripts(effort):
        for moment, allowed in watch(steps):
            tally.count("crash points")
            replay = f"{name}: before {moment.operation}"
            check(after_kill(moment), allowed, tally, f"{replay}, killed")
            for choice, state in after_power_cuts(moment):
                tally.count("reorderings")
                check(state, allowed, tally, f"{replay}, {choice}")


def crash_in_commit(effort: Effort, tally: Tally) -> None:
    """A power cut inside of LMDB's commit: see ``torture_store.crash_in_commit``."""
    for name, steps in scripts(effort):
        for number, (before, behind, held, following) in enumerate(commits(steps)):
            rng = random.Random(f"{effort.seed} {name} {number}")
            metas, pages = changed_sectors(before, behind)
            for chosen in subsets(pages, effort.samples // 4, rng):
                tally.count("crash points")
                data = overlay(before, behind, chosen, len(before))
                replay = f"{name}: commit {number}, sectors {sorted(chosen)}"
                check({"elements": {"data.mdb": data}}, [held], tally, replay)
            for chosen in subsets(metas, effort.samples // 4, rng):
                tally.count("crash points")
                data = overlay(before, behind, pages | chosen, len(behind))
                replay = f"{name}: commit {number}, meta sectors {sorted(chosen)}"
                allowed = [following] if chosen == metas else [held, following]
                check({"elements": {"data.mdb": data}}, allowed, tally, replay)


def commits(steps: Sequence[Changes]) -> Iterator[tuple[bytes, bytes, Tables, Tables]]:
    """The data file before and after every commit, with what it holds then."""
    with scratch() as folder:
        store = open_store(folder)
        path = folder / "elements" / "data.mdb"
        held: Tables = {}
        for step in steps:
            before = path.read_bytes()
            store._create_missing(step)  # noqa: SLF001  a commit of its own
            following = after(held, step)
            between = path.read_bytes()
            store.write(step)
            if between != before:
                yield before, between, held, held
            yield between, path.read_bytes(), held, following
            held = following
        store.close()


def fail_everywhere(effort: Effort, tally: Tally) -> None:
    """Each operation fails once: refused, or for a full disk as if nothing was asked."""
    for name, steps in scripts(effort):
        for code in (errno.EIO, errno.ENOSPC):
            for number in itertools.count():
                replay = f"{name}: operation {number} fails with {errno.errorcode[code]}"
                if not _fail(steps, (number, code), tally, replay):
                    break


def _fail(steps: Sequence[Changes], fail: tuple[int, int], tally: Tally, replay: str) -> bool:
    """Run with one failing operation; False if it was never reached. All of them belong to the
    opening: LMDB's own are met in ``no_space`` and in tests."""
    handles = open_handles()
    with scratch() as folder:
        disk = WatchedFileSystem(folder, record=False, fail=fail)
        store: LmdbElementStore | None = None
        held: Tables = {}
        try:
            store = open_store(folder, disk)
        except DiskFullError:
            tally.count("disk full")
            if fail[1] != errno.ENOSPC:
                tally.violation(f"{replay}: taken for a full disk")
        except StorageError:
            tally.count("reported")
        except Exception as error:  # noqa: BLE001  any other error is a finding
            tally.violation(f"{replay}: {type(error).__name__}: {error}")
        if store is None:
            if open_handles() != handles:
                tally.violation(f"{replay}: {open_handles() - handles} handles stay open")
            store = open_store(folder)
        for step in steps:
            store.write(step)
            held = after(held, step)
        if held_by(store) != held:
            tally.violation(f"{replay}: other records than were written")
        store.close()
    return disk.operations > fail[0]


def no_space(effort: Effort, tally: Tally) -> None:
    """The disk is full at every size of the data file: nothing changed, and it works on."""
    limits = range(0, 40 * PAGE_BYTES, PAGE_BYTES if effort.rounds > 1 else 4 * PAGE_BYTES)
    for name, steps in scripts(effort):
        for limit in limits:
            with scratch() as folder:
                store = open_store(folder)
                held: Tables = {}
                for number, step in enumerate(steps):
                    tally.count("tries")
                    try:
                        with file_size_limit(limit):
                            store.write(step)
                    except DiskFullError:
                        tally.count("disk full")
                        if held_by(store) != held:
                            tally.violation(f"{name}: step {number} at {limit}: changed")
                        store.write(step)
                    held = after(held, step)
                    if held_by(store) != held:
                        tally.violation(f"{name}: step {number} at {limit}: lost")
                store.close()


def damage(effort: Effort, tally: Tally) -> None:
    """One bit is wrong, a sector is blank, or a page is as it was one commit before."""
    with scratch() as folder:
        store = open_store(folder)
        held: Tables = {}
        path = folder / "elements" / "data.mdb"
        older, older_held = b"", held
        last: Changes = {"a": [(b"k01", b"again"), (b"k04", b"y" * 200)], "b": []}
        for step in (*FIXED, last):
            older, older_held = path.read_bytes(), held
            store.write(step)
            held = after(held, step)
        store.close()
        sound = path.read_bytes()
        for what, place, data in _damages(sound, older, effort.store_step):
            path.write_bytes(data)
            tally.count("damages")
            try:
                store = open_store(folder)
                try:
                    found = held_by(store)
                finally:
                    store.close()
            except QuorateError as error:
                tally.count("refused")
                says = REJOIN in str(error) or "newer quorate" in str(error)
                if isinstance(error, StoreCorruptionError) and not says:
                    tally.violation(f"{what} at {place}: the refusal does not say enough: {error}")
                continue
            if found == held:
                tally.count("recovered")
            elif place < 2 * PAGE_BYTES and found == older_held:
                tally.count("a commit older")
            else:
                tally.violation(f"{what} at {place}: other records, and nothing is said")


def _damages(sound: bytes, older: bytes, step: int) -> Iterator[tuple[str, int, bytes]]:
    for bit in range(0, 8 * len(sound), 1 if step == 1 else 4 * step + 1):
        data = bytearray(sound)
        data[bit // 8] ^= 1 << bit % 8
        yield "bit", bit // 8, bytes(data)
    for size, what in ((SECTOR_BYTES, "blank"), (PAGE_BYTES, "page")):
        for place in range(0, len(sound), size):
            data = bytearray(sound)
            past = older[place : place + size].ljust(size, b"\0")
            data[place : place + size] = bytes(size) if what == "blank" else past
            yield what, place, bytes(data)
