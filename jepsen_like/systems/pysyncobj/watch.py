"""What Raft promises, checked after every step of every member; knows nothing of its subject.

The members are seen through ``View``. A breach is recorded under a name that stays the same, with
what is needed to believe it: when, on which member, what it was doing, and the logs around it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple, Protocol

import msgspec

#: Of the logs, evidence shows this many entries on each side of the one in question.
LOG_CONTEXT_ENTRIES: Final = 2
#: Lines of the trace that evidence shows.
TRACE_LINES: Final = 14
#: Characters of a command that evidence shows.
COMMAND_CHARACTERS: Final = 60


class Entry(msgspec.Struct, frozen=True):
    """One entry of a log. *membership*: it changes who belongs to the cluster."""

    index: int
    term: int
    content: bytes
    membership: bool


class View(Protocol):
    """One member, as an onlooker who may look into it sees it."""

    name: str
    running: bool

    @property
    def term(self) -> int: ...
    @property
    def leads(self) -> bool: ...
    @property
    def commit(self) -> int: ...
    @property
    def applied(self) -> int: ...
    @property
    def first(self) -> int:
        """Index of the oldest entry in its log."""
        ...

    @property
    def last(self) -> int: ...
    @property
    def members(self) -> tuple[str, ...]:
        """The configuration that it goes by, sorted."""
        ...

    @property
    def members_count(self) -> int:
        """How many these are."""
        ...

    @property
    def lineage(self) -> Mapping[int, bytes]:
        """What its state is made of: index and content of every command executed on it."""
        ...

    def entry(self, index: int) -> Entry | None:
        """From its log, or from its disk while it is down; None if there is none."""
        ...


class Photo(NamedTuple):
    """A member before a step."""

    term: int
    leads: bool
    commit: int
    applied: int
    last: int


class Violation(msgspec.Struct, kw_only=True):
    """A promise that was broken. *count*: how often in this run; the rest is of the first time."""

    name: str
    count: int
    time_s: float
    text: str
    evidence: dict[str, Any]


def photo(view: View) -> Photo:
    """To be taken before each step."""
    return Photo(view.term, view.leads, view.commit, view.applied, view.last)


class Watch:
    """The checkers. *views*: every member that there ever was; others may be added."""

    def __init__(self, views: Sequence[View]) -> None:
        self.views: list[View] = []
        self.violations: dict[str, Violation] = {}
        self.now_s = 0.0
        self.trace: list[str] = []
        #: Commands in words, for those who read the evidence.
        self.words: dict[bytes, str] = {}
        self._quorum_min = 1 << 30
        self._decided: dict[int, tuple[bytes, str]] = {}
        self._leaders: dict[int, str] = {}
        self._granted: dict[tuple[str, int], list[str]] = {}  # (candidate, term): voters
        self._arrived: dict[tuple[str, int], list[str]] = {}
        self._votes: dict[tuple[str, int], str] = {}  # (voter, term): candidate
        self._acknowledged: dict[int, Entry] = {}
        for view in views:
            self.add(view)

    def add(self, view: View) -> None:
        """A member that may run from now on."""
        self.views.append(view)
        self._quorum_min = min(self._quorum_min, view.members_count // 2 + 1)

    # --- what happens ---------------------------------------------------------------------------

    def note(self, line: str) -> None:
        """For the trace."""
        self.trace.append(f"{self.now_s:9.4f} {line}")
        if len(self.trace) > 40 * TRACE_LINES:
            del self.trace[: 20 * TRACE_LINES]

    def voted(self, voter: str, candidate: str, term: int) -> None:
        """It gave its vote, perhaps to itself."""
        earlier = self._votes.setdefault((voter, term), candidate)
        if earlier != candidate:
            view = next(each for each in self.views if each.name == voter)
            text = f"{voter} votes for {candidate} in term {term}, after voting for {earlier}"
            self.report("voted-twice-in-one-term", view, text, view.last)

    def vote_sent(self, voter: str, candidate: str, term: int) -> None:
        """The message with a vote left the voter."""
        self._granted.setdefault((candidate, term), []).append(voter)

    def vote_arrived(self, voter: str, candidate: str, term: int) -> None:
        """The message with the vote reached the candidate, perhaps not for the first time."""
        self._arrived.setdefault((candidate, term), []).append(voter)

    def executed(self, view: View, index: int, content: bytes) -> None:
        """The state machine begins with a command; before it is part of the lineage."""
        if view.lineage.get(index) is not None:
            self.report(
                "entry-executed-again",
                view,
                f"{view.name} executes entry {index} again, on a state that has it already",
                index,
            )
        first = self._decided.setdefault(index, (content, view.name))
        if first[0] != content:
            self.report(
                "state-machines-diverge",
                view,
                f"{view.name} executes {self._shown(content)} as entry {index}, where {first[1]} "
                f"executed {self._shown(first[0])}",
                index,
            )

    def acknowledged(self, view: View, entry: Entry, asked: bytes) -> None:
        """A client was told that *asked* succeeded, when *entry* was executed."""
        if entry.content != asked:
            self.report(
                "acknowledged-another-command",
                view,
                f"{view.name} acknowledges {self._shown(asked)} when "
                f"{self._shown(entry.content)} was executed as entry {entry.index}",
                entry.index,
            )
            return
        self._acknowledged[entry.index] = entry
        holders = self.holders(entry)
        if len(holders) < self._quorum_min:
            self.report(
                "acknowledged-without-quorum",
                view,
                f"{view.name} acknowledges entry {self._told(entry)}, which is on "
                f"{_names(holders)} only, of "
                f"{len(self.views)} members",
                entry.index,
            )

    def removed(self, view: View, entries: Sequence[Entry], applied: int, cause: str) -> None:
        """A step took *entries* out of the end of a log and did not put them back."""
        gone = [entry for entry in entries if entry.index <= applied]
        if gone:
            lost = [each for each in gone if self._acknowledged.get(each.index) == each]
            self.report(
                "applied-entries-truncated",
                view,
                f"{view.name} removes entries {gone[0].index} to {gone[-1].index} from its log "
                f"after having applied {applied}; {len(lost)} of them were acknowledged to "
                f"clients; it was at {cause}",
                gone[0].index,
            )
        for entry in entries:
            if self._acknowledged.get(entry.index) == entry:
                holders = self.holders(entry)
                if len(holders) < self._quorum_min:
                    self.report(
                        "acknowledged-write-below-quorum",
                        view,
                        f"acknowledged entry {self._told(entry)} is left on "
                        f"{_names(holders)} only, of "
                        f"{len(self.views)} members, after {cause}",
                        entry.index,
                    )

    def restarted(self, view: View, before: Photo, kept: Sequence[Entry], cause: str) -> None:
        """A member runs again; *before* and *kept* are of the moment when it stopped: its term,
        commit index, and the entries up to that in its log."""
        lost = [each for each in kept if not _holds(view, each)]
        if lost:
            self.report(
                f"committed-entries-lost-by-{cause}",
                view,
                f"{view.name} had committed up to entry {before.commit}; after {cause} "
                f"{len(lost)} of them are gone, from {self._told(lost[0])} on",
                lost[0].index,
            )
        if view.term < before.term:
            self.report(
                f"term-forgotten-by-{cause}",
                view,
                f"{view.name} was in term {before.term}, and after {cause} is in {view.term}",
                view.last,
            )

    def stepped(self, view: View, before: Photo, cause: str) -> None:
        """After each step of a member that still runs."""
        self._quorum_min = min(self._quorum_min, view.members_count // 2 + 1)
        if view.leads and (not before.leads or view.term != before.term):
            self._elected(view, cause)
        for name, was, now in (
            ("term-decreases", before.term, view.term),
            ("commit-index-decreases", before.commit, view.commit),
            ("applied-index-decreases", before.applied, view.applied),
        ):
            if now < was:
                what = name.removesuffix("-decreases").replace("-", " ")
                text = f"the {what} of {view.name} goes from {was} to {now} at {cause}"
                self.report(name, view, text, now)
        for index in range(before.commit + 1, view.commit + 1):
            self._committed(view, index, cause)
        if view.leads and view.last != before.last:
            self._check_membership(view)

    # --- at the end -----------------------------------------------------------------------------

    def finished(self) -> None:
        """All faults are healed: what is acknowledged must be there."""
        for entry in self._acknowledged.values():
            if not self.holders(entry):
                at = next(iter(self.views))
                self.report(
                    "acknowledged-write-on-no-replica",
                    at,
                    f"entry {self._told(entry)} was acknowledged, and no member has it, neither "
                    "in its log nor in its state",
                    entry.index,
                )

    def settled(self) -> None:
        """The healed cluster serves, and had time to tell everybody everything."""
        newest = max(view.applied for view in self.views)
        running = [view for view in self.views if view.running and view.applied == newest]
        for one in running:
            for other in running:
                if (
                    one.name < other.name
                    and one.last == other.last == newest
                    and one.entry(one.last) == other.entry(other.last)
                    and one.members != other.members
                ):
                    self.report(
                        "configurations-differ",
                        one,
                        f"at entry {one.last}, {one.name} goes by the members "
                        f"{_names(one.members)}, {other.name} by {_names(other.members)}",
                        one.last,
                    )

    def holders(self, entry: Entry) -> list[str]:
        """Who has it: in the log, or behind a snapshot in the state; disks of dead members too."""
        return [view.name for view in self.views if _holds(view, entry)]

    def report(
        self, name: str, view: View, text: str, index: int, more: Mapping[str, Any] | None = None
    ) -> None:
        """Record a breach; of its kind the first of a run is kept whole, the others counted."""
        known = self.violations.get(name)
        if known is not None:
            known.count += 1
            return
        evidence: dict[str, Any] = {
            "member": view.name,
            "members": {each.name: _state(each) for each in self.views},
            "logs": {each.name: self._around(each, index) for each in self.views},
            "trace": self.trace[-TRACE_LINES:],
        }
        evidence.update(more or {})
        self.violations[name] = Violation(
            name=name, count=1, time_s=round(self.now_s, 6), text=text, evidence=evidence
        )

    # --- single checks --------------------------------------------------------------------------

    def _elected(self, view: View, cause: str) -> None:
        term = view.term
        granted = sorted({view.name, *self._granted.get((view.name, term), [])})
        if 2 * len(granted) <= len(view.members):
            self.report(
                "leader-without-quorum",
                view,
                f"{view.name} leads term {term} of {_names(view.members)} with the votes of "
                f"{_names(granted)} only, at {cause}; votes arrived from "
                f"{_names(self._arrived.get((view.name, term), []))}",
                view.last,
                {"votes_arrived": self._arrived.get((view.name, term), [])},
            )
        earlier = self._leaders.setdefault(term, view.name)
        if earlier != view.name:
            text = f"{view.name} leads term {term}, which {earlier} led already"
            self.report("two-leaders-in-one-term", view, text, view.last)

    def _committed(self, view: View, index: int, cause: str) -> None:
        entry = view.entry(index)
        if entry is None:
            return  # a snapshot brought it: its maker was checked
        holders = self.holders(entry)
        if len(holders) < self._quorum_min:
            self.report(
                "committed-without-quorum",
                view,
                f"{view.name} counts entry {self._told(entry)} as committed, which is on "
                f"{_names(holders)} "
                f"only, of {len(self.views)} members, at {cause}",
                index,
            )

    def _check_membership(self, view: View) -> None:
        entries = (view.entry(index) for index in range(view.commit + 1, view.last + 1))
        pending = [entry for entry in entries if entry is not None and entry.membership]
        if len(pending) > 1:
            self.report(
                "concurrent-membership-changes",
                view,
                f"{view.name} leads with {len(pending)} changes of the membership that are not "
                f"committed (committed up to {view.commit}), the members are now "
                f"{_names(view.members)}: {'; '.join(self._told(each) for each in pending)}",
                pending[0].index,
            )

    # --- words ----------------------------------------------------------------------------------

    def _shown(self, content: bytes) -> str:
        text = self.words.get(content) or repr(content)
        return text if len(text) <= COMMAND_CHARACTERS else text[:COMMAND_CHARACTERS] + "..."

    def at(self, view: View, index: int) -> str:
        """The entry that it has there, in words."""
        entry = view.entry(index)
        return f"{index}, which it has not" if entry is None else self._told(entry)

    def _told(self, entry: Entry) -> str:
        return f"{entry.index}@{entry.term} {self._shown(entry.content)}"

    def _around(self, view: View, index: int) -> list[str]:
        wanted = range(index - LOG_CONTEXT_ENTRIES, index + LOG_CONTEXT_ENTRIES + 1)
        return [self._told(entry) for entry in map(view.entry, wanted) if entry is not None]


def _holds(view: View, entry: Entry) -> bool:
    if entry.index < view.first:
        return view.lineage.get(entry.index) == entry.content
    return view.entry(entry.index) == entry


def _names(names: Sequence[str]) -> str:
    return ", ".join(names) or "no member"


def _state(view: View) -> dict[str, Any]:
    return {
        "running": view.running,
        "leads": view.leads,
        "term": view.term,
        "commit": view.commit,
        "applied": view.applied,
        "log": [view.first, view.last],
        "members": list(view.members),
    }
