"""Bugs of the write-ahead log."""

from __future__ import annotations

from jepsen_like.mutants import profiles
from jepsen_like.mutants.mutant import Mutant, one

_WAL = "quorate.storage.wal:WriteAheadLog"
_RECOVERY = "quorate.storage.wal_recovery:Recovery"

MUTANTS = (
    Mutant(
        name="no-fsync",
        bug="appends are acknowledged without an fsync",
        source="PySyncObj defect F (trap 1): no fsync in 2000 entries",
        rewrites=one(
            f"{_WAL}.append", "            segment.file.fdatasync()\n", "            pass\n"
        ),
    ),
    Mutant(
        name="fsync-error-ignored",
        bug="a failed fsync is taken for a passing trouble, and the log goes on",
        source="PostgreSQL 2018 (trap 15)",
        rewrites=one(
            f"{_WAL}.append",
            'self._poison(f"syncing an append at byte {offset} of {segment.path}", error)',
            "pass",
        ),
        profile=profiles.SICK_DISKS,
    ),
    Mutant(
        name="vote-not-written",
        bug="a term or vote without entries is not written to the log",
        source="PySyncObj 98 (trap 1)",
        rewrites=one(f"{_WAL}.append", "if not entries and hard_state is None:", "if not entries:"),
        profile=profiles.CRASHING_VOTERS,
    ),
    Mutant(
        name="torn-tail-accepted",
        bug="the torn record at the end of the log is taken for a whole one",
        source="FAST 2018, protocol-aware recovery (trap 16)",
        rewrites=one(
            f"{_RECOVERY}._replay",
            "if not self._follows(header) or not fmt.body_valid(header, data, offset):",
            "if not self._follows(header):",
        ),
        profile=profiles.TORN_WRITES,
        budget=40,
    ),
    Mutant(
        name="damage-cut-off",
        bug="the log is cut at the first damaged record, as if it were its torn end",
        source="FAST 2018, protocol-aware recovery: LogCabin, ZooKeeper (trap 16)",
        rewrites=one(f"{_RECOVERY}._judge_end", "if valid is not None:", "if False:")
        + one(
            f"{_RECOVERY}._judge_end",
            "if not fmt.looks_unfinished(header, data, offset) or (header and start > len(data)):",
            "if False:",
        )
        + one(f"{_RECOVERY}._run", "if last.index < commit:", "if False:"),
        profile=profiles.DAMAGE,
        budget=40,
    ),
    Mutant(
        name="name-not-durable",
        bug="the name of a new segment is not made durable before it is written to",
        source="ALICE; badger 153 (trap 17)",
        rewrites=one(
            f"{_WAL}._begin_segment",
            "            self._files.fsync_dir(self._directory)\n",
            "            pass\n",
        ),
        profile=profiles.SMALL_SEGMENTS,
        budget=40,
    ),
)
