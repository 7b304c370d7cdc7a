"""Bugs of the client library: what it sends again, and what it says became of it."""

from __future__ import annotations

from jepsen_like.mutants import profiles
from jepsen_like.mutants.mutant import Mutant, one

_SUBMITTER = "quorate.client.submitter:Submitter"

MUTANTS = (
    Mutant(
        name="retry-as-new",
        bug="a batch without an answer is sent again under a new sequence number",
        source="etcd 14890, jetcd (trap 19)",
        rewrites=one(
            f"{_SUBMITTER}._send_again",
            "                    frame = msgspec.structs.replace("
            "frame, acknowledged=self.acknowledged)\n",
            "                    self._sequence += 1\n"
            "                    done = self.acknowledged\n"
            "                    frame = msgspec.structs.replace(\n"
            "                        frame, sequence=self._sequence, acknowledged=done\n"
            "                    )\n"
            "                    del self._unanswered[sequence]\n"
            "                    batch.frame = frame\n"
            "                    self._unanswered[self._sequence] = batch\n",
        ),
        profile=profiles.LOST_REPLIES,
    ),
    Mutant(
        name="unknown-called-undone",
        bug="the client says of a command without an answer that it did not happen",
        source="PySyncObj defect I (trap 19); FoundationDB commit_unknown_result",
        rewrites=one(
            f"{_SUBMITTER}.expire",
            "now, late, undone if batch.undone else None",
            "now, undone, undone",
        ),
        profile=profiles.DEAF_LEADERS,
        budget=40,
    ),
    Mutant(
        name="expired-session-runs-again",
        bug="after its session expired, a doubtful batch goes on under a new one",
        source="thesis 6.3 (trap 20); RabbitMQ, jetcd",
        rewrites=one(f"{_SUBMITTER}._expired", "if batch.doubtful:", "if False:"),
        profile=profiles.LOST_REPLIES,
        budget=40,
    ),
)
