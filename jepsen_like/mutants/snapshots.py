"""Bugs of snapshots and checkpoints."""

from __future__ import annotations

from jepsen_like.mutants import profiles
from jepsen_like.mutants.mutant import Mutant, one
from jepsen_like.mutants.patching import Rewrite

_FOLLOWER = "quorate.consensus.follower"
_CHECKPOINTS = "quorate.replication.checkpoints:Checkpointer"
_SNAPSHOTS = "quorate.replication.snapshots"

MUTANTS = (
    Mutant(
        name="snapshot-commits-diverged-log",
        bug="a snapshot advances the commit index over entries that only this log has",
        source="PySyncObj defect A (trap 4)",
        rewrites=one(
            f"{_FOLLOWER}:on_snapshot_offered",
            "    if state.log.term_at(index) == offer.id.term:\n",
            "    if state.log.last_index > state.commit:\n"
            "        index = LogIndex(min(index, state.log.last_index))\n",
        ),
        profile=profiles.OVERTAKEN_LEADERS,
        budget=40,
    ),
    Mutant(
        name="snapshot-acked-before-disk",
        bug="a snapshot is acknowledged before it is durable",
        source="trap 17",
        rewrites=one(
            f"{_FOLLOWER}:_answer_offer", "state.out_after.append(", "state.out_messages.append("
        ),
        profile=profiles.OVERTAKEN_LEADERS,
    ),
    Mutant(
        name="snapshot-without-sessions",
        bug="a snapshot leaves out the replies that sessions keep",
        source="thesis 6.3 (trap 20); dragonboat 356",
        rewrites=(
            Rewrite(
                f"{_SNAPSHOTS}:SnapshotSender._stream",
                "SnapshotBegin(term, sender, reader.meta, reader.record_count)",
                "SnapshotBegin(\n"
                "            term, sender, reader.meta, sum(\n"
                "                len(each.records) for each in reader.chunks(b'', CHUNK_BYTES)\n"
                "                if each.table != 'sessions.replies'\n"
                "            )\n"
                "        )",
            ),
            Rewrite(
                f"{_SNAPSHOTS}:_next_data",
                "    if chunk is None:\n",
                "    while chunk is not None and chunk.table == 'sessions.replies':\n"
                "        chunk = next(chunks, None)\n"
                "    if chunk is None:\n",
            ),
        ),
        profile=profiles.OVERTAKEN_LEADERS,
    ),
    Mutant(
        name="checkpoint-without-sessions",
        bug="checkpoints leave out the replies that sessions keep",
        source="etcd 13766 (traps 18, 20)",
        rewrites=one(
            f"{_CHECKPOINTS}._write_store",
            "captured.changes()",
            "{name: each for name, each in captured.changes().items()"
            ' if name != "sessions.replies"}',
        ),
    ),
    Mutant(
        name="checkpoint-loses-failed-changes",
        bug="what a failed checkpoint was to write is missing from the next one",
        source="trap 18",
        rewrites=one(
            f"{_CHECKPOINTS}._write",
            "            replica.machines.checkpoint_failed(captured)\n",
            "",
        ),
        profile=profiles.FULL_DISKS,
        budget=40,
    ),
    Mutant(
        name="checkpoint-ahead-of-log",
        bug="a checkpoint is written before the own log is durable up to it",
        source="trap 17",
        rewrites=one(
            f"{_CHECKPOINTS}._write",
            "while replica.core.state.persisted < replica.applied:",
            "while False:",
        ),
        profile=profiles.SICK_DISKS,
        budget=40,
    ),
    Mutant(
        name="log-cut-too-far",
        bug="the log is cut behind what is applied, not behind what is in a checkpoint",
        source="PySyncObj defect F (trap 17)",
        rewrites=one(
            f"{_CHECKPOINTS}._cut_target",
            "        target = self._before_last\n",
            "        state = self._replica.core.state\n"
            "        at = LogIndex(min(self._replica.applied, state.persisted))\n"
            "        target = EntryId(at, state.log.term_at(at) or Term(0))\n",
        ),
        profile=profiles.OVERTAKEN_LEADERS,
    ),
)
