"""What a leader knows of one follower, and how much it may send it.

``PROBE``: the follower's log is not known to match; one append at a time, then wait.
``REPLICATE``: it matches; appends stream ahead of their acks, within bounds.
``SNAPSHOT``: it needs entries the leader has cut; nothing is appended until one is installed.
"""

from __future__ import annotations

import enum
from collections import deque
from typing import Final

from quorate.base.invariants import must
from quorate.base.types import LogIndex

#: Heartbeat rounds remembered per follower; one that answers later than so many tells nothing.
MARKS_MAX: Final = 64


class ProgressState(enum.Enum):
    """Probe: find where the logs agree. Replicate: stream. Snapshot: wait for one to arrive."""

    PROBE = "probe"
    REPLICATE = "replicate"
    SNAPSHOT = "snapshot"


class Progress:
    """Owned by the leader's state. ``match < next`` always (Raft figure 2, "volatile state")."""

    __slots__ = (
        "_inflight",
        "behind_at",
        "heard_tick",
        "inflight_bytes",
        "marks",
        "match",
        "next",
        "probe_bytes",
        "probe_last",
        "probe_round",
        "probe_sent",
        "snapshot_index",
        "state",
    )

    def __init__(self, next_index: LogIndex, tick: int) -> None:
        self.match = LogIndex(0)
        self.next = next_index
        self.state = ProgressState.PROBE
        self.probe_sent = False  # in PROBE: an append is out, its answer is awaited
        self.probe_round = 0  # the heartbeat round in which it left
        self.probe_last = LogIndex(0)  # and its last index; 0: nothing was really sent
        self.probe_bytes = 0
        self.snapshot_index = LogIndex(0)
        self.heard_tick = tick  # a fresh leader gives everybody one election timeout to speak
        self.behind_at = LogIndex(0)  # first entry that a heartbeat's answer missed, 0: none
        self.inflight_bytes = 0
        self._inflight: deque[tuple[LogIndex, int]] = deque()
        self.marks: deque[tuple[int, LogIndex]] = deque()  # heartbeat round -> last index sent then

    def become_probe(self, next_index: LogIndex) -> None:
        self.state = ProgressState.PROBE
        self.next = LogIndex(max(next_index, self.match + 1))
        self.probe_sent = False
        self._forget_inflight()

    def become_replicate(self) -> None:
        """It matches up to ``match``; a probe beyond it, not yet answered, is in flight."""
        out = self.probe_sent and self.probe_last > self.match
        self.state = ProgressState.REPLICATE
        self.next = LogIndex(self.match + 1)
        self.probe_sent = False
        self._forget_inflight()
        if out:
            self.sent(self.probe_last, self.probe_bytes, self.probe_round)

    def become_snapshot(self, index: LogIndex) -> None:
        self.state = ProgressState.SNAPSHOT
        self.snapshot_index = index
        self.probe_sent = False
        self._forget_inflight()

    def _forget_inflight(self) -> None:
        self._inflight.clear()
        self.marks.clear()
        self.behind_at = LogIndex(0)
        self.inflight_bytes = 0

    @property
    def inflight_count(self) -> int:
        """Appends sent and not answered."""
        return len(self._inflight)

    def hold(self) -> None:
        """In PROBE: send nothing until the follower speaks."""
        self.probe_sent, self.probe_round, self.probe_last = True, 0, LogIndex(0)

    def probe_overdue(self, round_number: int, verified: LogIndex) -> bool:
        """Whether the answer to that round's heartbeat, sent after the probe, shows that the probe
        did not arrive. If it did, its own answer only waits for the follower's disk."""
        return round_number > self.probe_round and not 0 < self.probe_last <= verified

    def sent(self, last: LogIndex, size_bytes: int, round_number: int) -> None:
        """An append up to *last* is on its way, after the heartbeat of *round_number*."""
        if self.state is ProgressState.REPLICATE:
            if last >= self.next:
                self._inflight.append((last, size_bytes))
                self.inflight_bytes += size_bytes
                self.next = LogIndex(last + 1)
        else:
            self.probe_sent, self.probe_round = True, round_number
            self.probe_last, self.probe_bytes = last, size_bytes

    def acked(self, index: LogIndex) -> bool:
        """The follower holds everything up to *index* on disk; True if that is news."""
        while self._inflight and self._inflight[0][0] <= index:
            self.inflight_bytes -= self._inflight.popleft()[1]
        if index <= self.match:
            return False
        self.match = index
        self.next = LogIndex(max(self.next, index + 1))
        must(self.match < self.next, "match stays below next", match=self.match, next=self.next)
        return True

    def paused(self, inflight_messages_max: int, inflight_bytes_max: int) -> bool:
        """Whether nothing more may be appended for now."""
        if self.state is ProgressState.REPLICATE:
            return (
                len(self._inflight) >= inflight_messages_max
                or self.inflight_bytes >= inflight_bytes_max
            )
        return self.probe_sent or self.state is ProgressState.SNAPSHOT

    def mark_round(self, round_number: int) -> None:
        """A heartbeat of *round_number* leaves: what was sent before it should arrive before it."""
        if self.state is ProgressState.REPLICATE:
            if len(self.marks) >= MARKS_MAX:
                self.marks.popleft()
            self.marks.append((round_number, LogIndex(self.next - 1)))

    def expected_at(self, round_number: int) -> LogIndex:
        """Last index sent before that round's heartbeat, 0 if not known; forgets older rounds."""
        expected = LogIndex(0)
        while self.marks and self.marks[0][0] <= round_number:
            at, last = self.marks.popleft()
            if at == round_number:
                expected = last
        return expected

    def lost_before(self, round_number: int, verified: LogIndex) -> bool:
        """Whether appends sent before that round's heartbeat were lost: two answers in a row find
        the follower at the same entry, short of them. One alone may only mean that the appends
        were read back from disk more slowly than the heartbeat travelled."""
        if verified >= self.expected_at(round_number):
            self.behind_at = LogIndex(0)
            return False
        if self.behind_at == verified + 1:
            return True
        self.behind_at = LogIndex(verified + 1)
        return False
