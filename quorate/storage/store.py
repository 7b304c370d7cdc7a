"""The state store on LMDB: checkpoints of the machines' tables, each one durable transaction.

Invariants owned here:

* A checkpoint's records, seals and meta are one LMDB transaction with both of its syncs on, so what
  is read back is one checkpoint whole, never parts of two (etcd 3.5 lost data by saving state and
  applied index apart: etcd#13766).
* What is served was checked: every record by its checksum, every table by its seal
  (``store_format``), and the pages' structure before LMDB, which trusts them blindly, sees them
  (``lmdb_pages``).
* A snapshot that is being received stands in a store of its own until it is durable and whole
  (``generations``).

It must not know what the records mean.

Threads: ``checkpoint``, ``load``, ``installer`` and ``close`` belong to one thread; ``snapshot``
and the readers it gives may be used from others, each reader by one thread at a time. LMDB gives
the GIL back around its own work, and the loops here are Python, so the longest that another thread
waits is the interpreter's switch interval. Never use a store across ``fork``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from threading import RLock

import msgspec

from quorate.base.invariants import must
from quorate.errors import (
    ClosedError,
    DiskFullError,
    InvalidArgumentError,
    StorageError,
)
from quorate.storage import store_format as form
from quorate.storage.allocator import give_back_memory
from quorate.storage.directory import DirectoryLock
from quorate.storage.durable import disk_errors
from quorate.storage.environment import (
    REPLAY_BELOW_BYTES,
    Build,
    Changes,
    Environment,
    MapFullError,
    View,
    grow,
)
from quorate.storage.files import FileSystem, OsFileSystem
from quorate.storage.generations import GenerationDirectory
from quorate.storage.interfaces import Change, StoreMeta
from quorate.storage.lmdb_opening import (
    MAP_BYTES_DEFAULT,
    lmdb_errors,
    open_lmdb,
    trust_only_the_disk,
)
from quorate.storage.lmdb_pages import check_data_file
from quorate.storage.snapshots import StoreSnapshotInstaller, StoreSnapshotReader
from quorate.storage.store_tables import write_changes


class StoreStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """Counters for metrics and for people; sizes in bytes."""

    generation: int
    map_bytes: int
    used_bytes: int
    file_bytes: int
    readers: int
    map_growths: int


def _open_environment(path: str, map_bytes: int, *, durable: bool = True) -> Environment:
    """See ``open_lmdb``."""
    opened = open_lmdb(path, map_bytes, databases_max=2 * form.TABLES_MAX + 1, durable=durable)
    return Environment(path, opened, lmdb_errors)


class LmdbStateStore:
    """``StateStore`` in the directory *directory*, which is created if need be.

    *size_bytes_max* bounds the data file (None: only the disk does); *map_bytes* is the address
    space reserved at first; *files* stands for the disk in tests (not for LMDB's own file).

    Raises:
        DirectoryInUseError: another process or store has it open.
        StoreCorruptionError: what is there is damaged.
        FormatVersionError: it was written by a newer quorate.
        StorageError: the disk failed.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        map_bytes: int = MAP_BYTES_DEFAULT,
        size_bytes_max: int | None = None,
        files: FileSystem | None = None,
    ) -> None:
        self.directory = os.path.abspath(directory)
        self._size_bytes_max = sys.maxsize if size_bytes_max is None else size_bytes_max
        self._map_bytes = min(map_bytes, self._size_bytes_max)
        self._lock = RLock()  # guards which environment is present, and the views of each
        self._pid = os.getpid()
        self._failed: StorageError | None = None
        self._closed = False
        self._build: Build | None = None
        self._growths = 0
        self._installer: StoreSnapshotInstaller | None = None
        self._retired: set[Environment] = set()
        self._files = files = OsFileSystem() if files is None else files
        with disk_errors(f"opening the state directory {self.directory}"):
            files.makedirs(self.directory)
        self._directory_lock = DirectoryLock(self.directory, files)
        try:
            with disk_errors(f"opening the state directory {self.directory}"):
                self._generations = GenerationDirectory(self.directory, files)
                self._generation = self._find_or_create()
                self._environment, self._meta = self._open_generation(self._generation)
        except BaseException:
            self._directory_lock.release()
            raise

    def meta(self) -> StoreMeta | None:
        """Of the last checkpoint, or None for a fresh store."""
        return self._meta

    def tables(self) -> list[str]:
        """Names of the tables that hold records, sorted."""
        with self._view() as view:
            return list(view.seals())

    def load(self, table: str) -> Iterator[tuple[bytes, bytes]]:
        """Every record of *table* in key order, as of the first one asked for.

        Raises:
            StoreCorruptionError: at the damaged record; or at the end, if records are missing or
                came back: what was loaded before is then not to be used either.
        """
        with self._view() as view:
            yield from view.records(table, None)

    def checkpoint(self, meta: StoreMeta, changes: Mapping[str, Iterable[Change]]) -> None:
        """Write all changes and *meta* in one durable transaction, or nothing.

        Changes in key order are written up to three times as fast as in random order.

        Raises:
            DiskFullError: no space; nothing was changed and the store stays usable.
            LimitExceededError: a key, a table's name or the number of tables; nothing was changed.
            StorageError: the disk failed; the store is unusable.
        """
        environment = self._usable()
        for name in changes:
            form.check_table_name(name)
        if self._meta is not None:
            must(
                meta.applied.index >= self._meta.applied.index,
                "checkpoints never go back",
                last=self._meta.applied,
                next=meta.applied,
            )
        room = environment.map_bytes - environment.used_bytes
        pending = Changes(changes, kept=room < REPLAY_BELOW_BYTES)
        with self._stopping_if_failed():
            while True:
                try:
                    self._write(environment, meta, pending)
                    break
                except MapFullError:
                    self._grow(environment)
                    pending.restart()
                except DiskFullError:
                    environment.probe()
                    raise
        self._meta = meta

    def snapshot(self) -> StoreSnapshotReader:
        """Open a consistent view of the last checkpoint, of which there must be one."""
        return StoreSnapshotReader(self._open_view())

    def installer(self) -> StoreSnapshotInstaller:
        """Start to receive a snapshot, giving up one that was begun before.

        Raises:
            DiskFullError: no space; nothing was changed.
            StorageError: the disk failed; the store is unusable.
        """
        self._usable()
        self._abandon_build()
        generation = self._generation + 1
        with self._stopping_if_failed(), disk_errors("starting to receive a snapshot"):
            path = self._generations.make_partial(generation)
            environment = _create_environment(path, self._map_bytes)
        build = self._build = Build(environment, generation, self._size_bytes_max)
        self._installer = StoreSnapshotInstaller(build, self._finish_build, self._abandon_build)
        return self._installer

    def release_pages(self) -> bool:
        """Give back the memory of pages that were read or written, by closing and opening the data
        file.

        For after ``load``: the pages stay in the system's cache, but no longer count as this
        process's memory. Returns False, having done nothing, if a view is open.
        """
        with self._lock:
            environment = self._usable()
            if environment.views or self._retired:
                return False
            environment.close()
            give_back_memory()
            with self._stopping_if_failed():
                self._environment = _open_environment(environment.path, self._map_bytes)
            return True

    def statistics(self) -> StoreStatistics:
        """Counters of this moment."""
        with self._lock:
            environment = self._usable()
            return StoreStatistics(
                generation=self._generation,
                map_bytes=environment.map_bytes,
                used_bytes=environment.used_bytes,
                file_bytes=self.size_bytes(),
                readers=len(environment.views),
                map_growths=self._growths,
            )

    def size_bytes(self) -> int:
        """Bytes on disk of the present store."""
        with disk_errors("measuring the state store"):
            return os.stat(os.path.join(self._usable().path, "data.mdb")).st_size

    def close(self) -> None:
        """End every view and release the files. Idempotent."""
        if self._closed:
            return
        self._abandon_build()
        with self._lock:
            self._closed = True
            present = self._environment
            views = [view for each in (present, *self._retired) for view in each.views]
        for view in views:
            view.close()  # waits for a reader in another thread to finish its chunk
        present.close()
        self._directory_lock.release()

    # --- the present environment and its views ----------------------------------------------------

    def _usable(self) -> Environment:
        if self._closed:
            raise ClosedError(f"the state store in {self.directory} was closed")
        if os.getpid() != self._pid:
            raise StorageError("a state store was used across fork: open it in the child instead")
        if self._failed is not None:
            raise StorageError(
                f"the state store in {self.directory} failed before and is not used again until"
                f" the node restarts: {self._failed}"
            ) from self._failed
        return self._environment

    @contextmanager
    def _stopping_if_failed(self) -> Iterator[None]:
        """After anything but a full disk the store is unusable: the page cache may have dropped
        what the disk refused, and a second attempt would find nothing left to fail on."""
        try:
            yield
        except DiskFullError:
            raise
        except StorageError as error:
            self._failed = error
            raise

    def _find_or_create(self) -> int:
        generations = self._generations
        generation = generations.find()
        generations.remove_all_but(generation)
        if generation is None:
            generation = 1
            path = generations.make_partial(generation)
            _create_environment(path, self._map_bytes).close()
            generations.promote(generation)
        if not generations.has_current():
            generations.switch(generations.prepare_switch(generation))
        return generation

    def _open_generation(self, generation: int) -> tuple[Environment, StoreMeta | None]:
        path = self._generations.store_path(generation)
        data_path = os.path.join(path, "data.mdb")
        if self._files.exists(data_path):
            trust_only_the_disk(self._files, data_path)
        check_data_file(data_path)
        environment = _open_environment(path, self._map_bytes)
        try:
            view = View(environment, lambda _: None)
            view.check_complete()
            meta = view.meta()
            view.close()
        except BaseException:
            environment.close()
            raise
        return environment, meta

    def _open_view(self) -> View:
        with self._lock, lmdb_errors("opening a view of the state store"):
            environment = self._usable()
            view = View(environment, self._on_view_closed)
            environment.views.add(view)
        return view

    @contextmanager
    def _view(self) -> Iterator[View]:
        view = self._open_view()
        try:
            yield view
        finally:
            view.close()

    def _on_view_closed(self, view: View) -> None:
        with self._lock:
            environment = view.environment
            environment.views.discard(view)
            if environment in self._retired and not environment.views:
                self._retired.discard(environment)
                self._discard(environment)

    def _discard(self, environment: Environment) -> None:
        """Close a store that was replaced, and remove it; the next opening tries again."""
        environment.close()
        with suppress(OSError):
            self._generations.remove(environment.path)

    # --- writing ----------------------------------------------------------------------------------

    def _write(self, environment: Environment, meta: StoreMeta, pending: Changes) -> None:
        """One attempt of a checkpoint."""
        with lmdb_errors("writing a checkpoint"):
            environment.ensure_tables(pending.names)
            with environment.writing() as transaction:
                for name in pending.names:
                    seal = environment.seal(transaction, name)
                    table = environment.table(name)
                    more = write_changes(transaction, table, pending.of(name))
                    environment.put_seal(transaction, name, seal.plus(*more))
                environment.put_meta(transaction, meta)

    def _grow(self, environment: Environment) -> None:
        with self._lock:
            grow(environment, self._size_bytes_max)
            self._growths += 1

    # --- installing a snapshot --------------------------------------------------------------------

    def _finish_build(self, meta: StoreMeta) -> None:
        """Make the build durable, then the present store. Up to the end of ``complete`` a full disk
        leaves the build as it was, to be tried again; later it costs the build, never the store."""
        self._usable()
        build = self._build
        must(build is not None, "only a live installer finishes")
        if build is None:
            return
        last = self._meta
        if last is not None and meta.applied.index < last.applied.index:
            raise InvalidArgumentError(
                f"the snapshot ends at {meta.applied}, this store is at"
                f" {last.applied} already: an older state is not installed over a newer one"
            )
        with self._stopping_if_failed(), disk_errors("installing a snapshot"):
            prepared = self._generations.prepare_switch(build.generation)
            build.complete(meta)
            try:
                environment = self._promote(build)
                self._switch(environment, prepared)
            except BaseException:
                self._abandon_build()
                raise
        self._replace_environment(environment, build.generation, meta)

    def _promote(self, build: Build) -> Environment:
        build.environment.close()
        self._generations.promote(build.generation)
        return self._open_generation(build.generation)[0]

    def _switch(self, environment: Environment, prepared: str) -> None:
        try:
            self._generations.switch(prepared)
        except OSError as error:
            # Even for want of space: which store is the present one is no longer known.
            environment.close()
            raise StorageError(f"the disk failed while switching stores: {error}") from error

    def _replace_environment(
        self, environment: Environment, generation: int, meta: StoreMeta
    ) -> None:
        with self._lock:
            old, self._environment = self._environment, environment
            self._generation, self._meta = generation, meta
            self._build = self._installer = None
            if old.views:
                self._retired.add(old)  # its last reader discards it
            else:
                self._discard(old)

    def _abandon_build(self) -> None:
        build, self._build = self._build, None
        installer, self._installer = self._installer, None
        if installer is not None:
            installer.detach()
        if build is not None:
            build.environment.close()
            with suppress(OSError):
                self._generations.remove(self._generations.partial_path(build.generation))


def _create_environment(path: str, map_bytes: int) -> Environment:
    """A new store that is durable but for its directory; later commits to it are not."""
    environment = _open_environment(path, map_bytes, durable=False)
    try:
        with lmdb_errors(f"creating {path}"):
            environment.put_layout()
            environment.sync()
    except BaseException:
        environment.close()
        raise
    return environment
