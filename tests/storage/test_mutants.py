"""Known bugs put into the storage code on purpose: the torture, or a test, must catch each."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent


class Mutant(NamedTuple):
    """In *file* the text *old*, which stands there once, becomes *new*; *catcher* is the torture's
    suite that must complain, or a test (with ``::``)."""

    file: str
    old: str
    new: str
    catcher: str


WAL, RECOVERY = "quorate/storage/wal.py", "quorate/storage/wal_recovery.py"
STORE, PAGES = "quorate/storage/store.py", "quorate/storage/lmdb_pages.py"
ELEMENTS = "quorate/storage/lmdb_elements.py"
TABLES, ENVIRONMENT = "quorate/storage/store_tables.py", "quorate/storage/environment.py"
GENERATIONS, NODE = "quorate/storage/generations.py", "tools/torture_node.py"

MUTANTS = {
    "an append is acknowledged without fdatasync": Mutant(
        WAL,
        """            segment.file.fdatasync()
        except OSError as error:
            self._poison(f"syncing""",
        """            pass
        except OSError as error:
            self._poison(f"syncing""",
        "wal: crash before",
    ),
    "a failed fdatasync is asked again": Mutant(
        WAL,
        '            self._poison(f"syncing an append at byte {offset} of {segment.path}", error)',
        "            segment.file.fdatasync()",
        "wal: every operation fails once",
    ),
    "a failed write is not undone on a full disk": Mutant(
        WAL,
        "for offset in fmt.written_sectors(data, 0):",
        "for offset in ():",
        "wal: every operation fails once",
    ),
    "a new segment's name is not made durable": Mutant(
        WAL,
        """            self._files.fsync_dir(self._directory)
        except OSError as error:
            file.close()""",
        """            pass
        except OSError as error:
            file.close()""",
        "wal: crash before",
    ),
    "a new segment gets its name before its first frame is durable": Mutant(
        WAL,
        "            file.fdatasync()\n            self._files.rename",
        "            self._files.rename",
        "wal: crash before",
    ),
    "the segments of a cut are removed newest first": Mutant(
        WAL,
        "        for segment in gone:\n            # One",
        "        for segment in reversed(gone):\n            # One",
        "wal: crash before",
    ),
    "a reset does not mark its segment": Mutant(
        WAL,
        "self._begin_segment(0, floor, hard_state, reset=True)",
        "self._begin_segment(0, floor, hard_state, reset=False)",
        "wal: crash before",
    ),
    "the chain of checksums is ignored": Mutant(
        RECOVERY,
        "return header.sequence == self._sequence + 1 and header.previous_crc == self._chain",
        "return header.sequence == self._sequence + 1",
        "wal: a record of an earlier life",
    ),
    "the body's checksum is ignored": Mutant(
        "quorate/storage/wal_format.py",
        "return crc32(view[offset + HEADER_BYTES : end]) == header.body_crc",
        "return True",
        "wal: every bit flipped",
    ),
    "a damaged record in the middle is cut off as a tail": Mutant(
        RECOVERY,
        "if valid is not None:",
        "if False:",
        "tests/storage/test_wal.py::test_a_damaged_record_is_never_cut_off",
    ),
    "a damaged last record is taken for unfinished": Mutant(
        RECOVERY,
        "if not fmt.looks_unfinished(header, data, offset) or",
        "if False and",
        "wal: every bit flipped",
    ),
    "sparse payloads are not masked": Mutant(
        "quorate/storage/wal_format.py",
        "            mask = _mask_sparse(buffer)",
        "            mask = 0",
        "tests/storage/test_wal.py::test_no_written_sector",
    ),
    "a torn tail is left as it is": Mutant(
        RECOVERY,
        "for offset in torn:",
        "for offset in ():",
        "wal: crash in recovery",
    ),
    "a torn tail is blanked and not synced": Mutant(
        RECOVERY,
        "                last.pwrite(bytes(SECTOR_BYTES), offset)\n            last.fdatasync()",
        "                last.pwrite(bytes(SECTOR_BYTES), offset)",
        "tests/storage/test_wal.py::test_a_torn_tail_is_blanked_durably",
    ),
    "recovery does not sync what it reads": Mutant(
        RECOVERY,
        "        file.fdatasync()\n        file.drop_cache()",
        "        file.drop_cache()",
        "wal: process killed",
    ),
    "recovery trusts the cache after a failed sync": Mutant(
        RECOVERY,
        "        file.drop_cache()",
        "        pass",
        "wal: every operation fails once",
    ),
    "a log that ends before its commit is accepted": Mutant(
        RECOVERY,
        "if last.index < commit:",
        "if False:",
        "tests/storage/test_wal.py::test_a_log_that_ends_before_its_commit_is_refused",
    ),
    "a checkpoint is two transactions": Mutant(
        STORE,
        "                environment.put_meta(transaction, meta)",
        """            with environment.writing() as transaction:
                environment.put_meta(transaction, meta)""",
        "store: crash before",
    ),
    "a record's checksum is ignored": Mutant(
        TABLES,
        'if to_int(stored[-4:], "little") != check:',
        "if False:",
        "tests/storage/test_store_lmdb.py::test_one_flipped_bit_of_a_value",
    ),
    "a table's seal is ignored": Mutant(
        TABLES,
        "if found != promised:",
        "if False:",
        "tests/storage/test_store_lmdb.py::test_a_record_that_came_back_is_found_by_the_seal",
    ),
    "LMDB's pages are not checked": Mutant(
        STORE,
        "        check_data_file(data_path)",
        "        pass",
        "store: bits flipped",
    ),
    "a name that went missing is not noticed": Mutant(
        STORE,
        "            view.check_complete()\n",
        "",
        "tests/storage/test_store_lmdb.py::test_a_name_that_went_missing_is_damage_and_no",
    ),
    "a sound run of overflow pages is refused": Mutant(
        PAGES,
        "flags != _OVERFLOW or count < needed",
        "flags != _OVERFLOW or count != needed",
        "store: sound files",
    ),
    "a received store's file has no durable name": Mutant(
        GENERATIONS,
        "        self._files.fsync_dir(self.partial_path(generation))\n",
        "",
        "store: crash before",
    ),
    "the switch of stores is not made durable": Mutant(
        GENERATIONS,
        "        self._files.rename(prepared, self._current_path)\n"
        "        self._files.fsync_dir(self.path)",
        "        self._files.rename(prepared, self._current_path)",
        "store: crash before",
    ),
    "the old store is removed before the switch is known to stay": Mutant(
        GENERATIONS,
        "        self._files.fsync_dir(self.path)\n        if self.has_current():",
        "        if self.has_current():",
        "store: crash in opening",
    ),
    "the new pointer is not synced before it gets its name": Mutant(
        "quorate/storage/durable.py",
        "        file.pwrite(content, 0)\n        file.fsync()",
        "        file.pwrite(content, 0)",
        "store: crash before",
    ),
    "a short write on a full disk stops the node": Mutant(
        ENVIRONMENT,
        'if getattr(error, "code", None) == errno.EIO and _disk_is_full(path):',
        "if False:",
        "store: no space",
    ),
    "a new element store's file has no durable name": Mutant(
        ELEMENTS,
        "    files.fsync_dir(partial)\n",
        "",
        "elements: crash before",
    ),
    "a new element store has its name before it is durable": Mutant(
        "quorate/storage/element_environment.py",
        "            self.sync()\n",
        "",
        "elements: crash before",
    ),
    "elements are written without their ledger": Mutant(
        "quorate/storage/element_environment.py",
        "            self._put_own(transaction, _LEDGER_NAME, msgspec.msgpack.encode(ledger))\n"
        "        self.ledger = ledger",
        "        with self.writing() as transaction:\n"
        "            self._put_own(transaction, _LEDGER_NAME, msgspec.msgpack.encode(ledger))\n"
        "        self.ledger = ledger",
        "elements: crash before",
    ),
    "the seals of elements are ignored": Mutant(
        "quorate/storage/element_environment.py",
        "            if found != promised:",
        "            if False:",
        "tests/storage/test_elements_lmdb.py::test_a_record_that_came_back",
    ),
    "an element's checksum is ignored when it is read by name": Mutant(
        "quorate/storage/element_tables.py",
        "    if crc32(stored, crc32(key, seed)) != RESIDUE:\n"
        "        raise form.damaged_record(table.name, key)\n"
        "    return stored[:-4]",
        "    return stored[:-4]",
        "tests/storage/test_elements_lmdb.py::test_one_flipped_bit",
    ),
    "a reader of elements outlives a commit": Mutant(
        ELEMENTS,
        "write(pending))\n            self._give_reader_back()",
        "write(pending))",
        "tests/storage/test_elements.py::test_readers_beside_a_writer",
    ),
    "a reader of elements outlives the map": Mutant(
        ELEMENTS,
        "            self._drop_reader()\n            self._environment.grow(",
        "            self._environment.grow(",
        "tests/storage/test_elements_lmdb.py::test_the_map_grows_beside_readers",
    ),
    "a failed write of elements is tried again": Mutant(
        ELEMENTS,
        "            self._failed = error\n",
        "",
        "tests/storage/test_elements_lmdb.py::test_a_failed_write_ends",
    ),
    "keys below a long one come before it ends": Mutant(
        "quorate/storage/element_tables.py",
        "end = end[PIECE_BYTES:] if end is not None and end.startswith(piece) else None",
        "end = None",
        "tests/storage/test_elements.py::test_every_range",
    ),
    "an empty space is left behind": Mutant(
        "quorate/storage/element_tables.py",
        "        while trail and self._is_empty(space):",
        "        while False:",
        "tests/storage/test_elements_lmdb.py::test_a_space_is_removed",
    ),
    "the log is reset before the snapshot is swapped in": Mutant(
        NODE,
        "        swap()\n        self.log.reset(floor, state)",
        "        self.log.reset(floor, state)\n        self._touch()\n        swap()",
        "node: crash between",
    ),
    "the log is cut before the checkpoint": Mutant(
        NODE,
        "        self._do(lambda: self.store.checkpoint(meta, changes), known.hard_state,"
        " known.last, index)\n"
        "        self._do(lambda: self.log.cut(_id(index, term)), known.hard_state, known.last,"
        " index)",
        "        self._do(lambda: self.log.cut(_id(index, term)), known.hard_state, known.last,"
        " index)\n"
        "        self._do(lambda: self.store.checkpoint(meta, changes), known.hard_state,"
        " known.last, index)",
        "node: crash between",
    ),
    "a swapped snapshot is forgotten when the node starts": Mutant(
        "quorate/replication/recovery.py",
        "if meta is not None and meta.installed is not None:",
        "if False:",
        "node: crash between",
    ),
}


def copy_of_the_code(folder: Path) -> None:
    skip = shutil.ignore_patterns("__pycache__", "*.pyc")
    for part in ("quorate", "jepsen_like", "tools", "tests"):
        shutil.copytree(ROOT / part, folder / part, ignore=skip)
    shutil.copy(ROOT / "pyproject.toml", folder)


def run(folder: Path, catcher: str) -> subprocess.CompletedProcess[str]:
    command = ["tools.torture", "--quick", "--only", catcher]
    if "::" in catcher:
        command = ["pytest", "-q", "-p", "no:cacheprovider", "-k", catcher.partition("::")[2]]
        command.append(catcher.partition("::")[0])
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [sys.executable, "-m", *command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_changes_what_stands_in_the_code_once(name: str) -> None:
    mutant = MUTANTS[name]
    assert (ROOT / mutant.file).read_text("utf-8").count(mutant.old) == 1


@pytest.mark.deep
def test_the_code_as_it_is_passes_every_catcher(tmp_path: Path) -> None:
    """On a red suite every mutant would look caught."""
    copy_of_the_code(tmp_path)
    for catcher in sorted({mutant.catcher for mutant in MUTANTS.values()}):
        done = run(tmp_path, catcher)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.deep
@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_is_caught(name: str, tmp_path: Path) -> None:
    mutant = MUTANTS[name]
    copy_of_the_code(tmp_path)
    path = tmp_path / mutant.file
    path.write_text(path.read_text("utf-8").replace(mutant.old, mutant.new), "utf-8")
    done = run(tmp_path, mutant.catcher)
    assert done.returncode == 1, f"not caught by {mutant.catcher}: {done.stdout}"
    assert "VIOLATIONS" in done.stdout or "FAILED" in done.stdout, done.stdout + done.stderr
