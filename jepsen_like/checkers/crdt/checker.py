"""Converging data: nothing acknowledged is lost, reads show what the updates say that they hold,
each level keeps its promise, and nodes that are cut off go on taking writes."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import Any, Final

from msgspec.structs import replace

from jepsen_like.checkers.base import Findings, show
from jepsen_like.checkers.crdt.acts import (
    AWAY,
    FINAL,
    READ,
    REMOVED,
    UNREACHED,
    WRITE,
    Act,
    Story,
    parse_place,
)
from jepsen_like.checkers.crdt.folds import FOLDS, Marks, Seen, life_of
from jepsen_like.checkers.crdt.values import Values
from jepsen_like.checkers.crdt.visibility import Visibility
from jepsen_like.checkers.levels import LevelsChecker
from jepsen_like.history import Event
from jepsen_like.verdict import Verdict, merge

#: A node that was away takes writes again after so long; its first write may wait for the log.
SETTLE_S: Final = 3.0
#: What a client that was killed in the middle of a call says.
CLIENT_CRASHED: Final = "the client crashed"
#: Refusals that say something of the operation, and nothing of the node.
_REFUSALS: Final = ("not-observed", "type-mismatch", "insufficient-rights")
_KV: Final = {"kv-write": "write", "kv-read": "read"}


class CrdtChecker:
    """For histories with these operations, the name of the data as their key. An invocation has
    {"number": its own, "node", "level", "kind"} and a write also {"verb", "cell", "what"}; see
    ``acts.PUTS`` and ``acts.TAKES``. A removal of what was observed says in "seen" by which call,
    as its number. The answer has {"after": the token of what
    the node was told to wait for, "place": the token of what it had come to}, a read {"shows"} too,
    and a write {"unconfirmed": True} if fewer members than the level asks for have confirmed it.

    =========  ======================================================================
    write      one update
    read       shows a number, a list of elements, a value, a list of values, a bool, or
               a map of numbers, by kind
    final      a read at the end, when all nodes have come to the same
    lives      which lives a node has folded away, and how often it did that
    digests    the same of all nodes at the end, each with a digest of all that it holds
    kv-write   of the log's tier, as ``LevelsChecker`` has it
    kv-read    likewise
    =========  ======================================================================
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def check(self, history: Sequence[Event]) -> Verdict:
        """Unknown if nothing was written and read."""
        story = Story(self.name, history)
        findings = Findings()
        visibility = Visibility(story)
        facts: dict[str, Any] = dict.fromkeys(
            ("writes", "unknown_writes", "reads", "finals", "decided"), 0
        )
        by_key: dict[str, list[Act]] = {}
        for act in story.acts:
            by_key.setdefault(act.key, []).append(act)
            facts["writes"] += act.f == WRITE
            facts["unknown_writes"] += act.f == WRITE and act.outcome == "info"
            facts["reads"] += act.f == READ and act.place is not None
            facts["finals"] += act.f == FINAL and act.place is not None
        for acts in by_key.values():
            values = Values(findings, visibility, acts)
            values.check()
            facts["decided"] += values.decided
            _check_kept(findings, story, visibility, acts)
            _check_fresh(findings, story, visibility, acts)
        _check_places(findings, story)
        _check_finals(findings, story)
        facts |= _check_digests(findings, story)
        facts |= Availability(findings, story).check()
        proves = facts["reads"] + facts["finals"] > 0 and facts["writes"] > facts["unknown_writes"]
        mine = findings.verdict(self.name, proves=proves, **facts)
        log = LevelsChecker().check(_kv_history(history))
        return mine if log.valid == "unknown" else merge(self.name, [mine, log])


# --- nothing is lost ------------------------------------------------------------------------------


def _check_kept(findings: Findings, story: Story, visibility: Visibility, acts: list[Act]) -> None:
    """Every final state covers every acknowledged write, but for what only a lost disk had."""
    writes = [act for act in acts if act.f == WRITE and act.outcome == "ok"]
    for final in (act for act in acts if act.f == FINAL and act.place is not None):
        for write in writes:
            lost = story.lost_after(write.node, write.begun)
            if lost and not write.wide:
                continue
            if _lacks(visibility, write, final, whole=not lost):
                level = write.wide or "durable at its node"
                findings.add(f"{write}, acknowledged ({level}), is lost: {final} does not cover it")


def _lacks(visibility: Visibility, write: Act, final: Act, *, whole: bool) -> bool:
    """Whether *final* surely does not cover *write*, which may have been folded away. *whole*:
    nor what its node told beside it."""
    marks = final.place or {}
    if visibility.covered(write, marks, final.ended) is Seen.NO:
        return True
    bounds = visibility.bounds(write)
    if bounds is None or not whole:
        return False
    return visibility.lacks(marks, bounds.high)


# --- levels ---------------------------------------------------------------------------------------


def _check_fresh(findings: Findings, story: Story, visibility: Visibility, acts: list[Act]) -> None:
    """Reads at quorum and strong cover all that was acknowledged so before they began; and what was
    acknowledged as strong is everywhere."""
    confirmed = [act for act in acts if act.f == WRITE and act.wide]
    for read in acts:
        if read.f not in {READ, FINAL} or read.place is None:
            continue
        for write in confirmed:
            if not story.promised(write, read):
                continue
            if visibility.covered(write, read.place, read.ended) is Seen.NO:
                findings.add(
                    f"{read} at {read.level} does not see {write}, acknowledged at {write.wide} "
                    "before it began: a stale read"
                )


def _check_places(findings: Findings, story: Story) -> None:
    """Whoever brings a token is answered by a state that has come so far."""
    for act in story.acts:
        if act.place is None or act.level == "eventual":
            continue
        lacking = any(
            story.folds.covers(act.place, actor, sequence) is Seen.NO
            for actor, sequence in act.after.items()
        )
        if lacking or act.index < act.after_index:
            findings.add(
                f"{act} was answered at {_marks(act.place)}, log {act.index}, although its session "
                f"had seen {_marks(act.after)}, log {act.after_index}"
            )


def _check_finals(findings: Findings, story: Story) -> None:
    """At the end all nodes show the same."""
    first: dict[str, Act] = {}
    for final in (act for act in story.acts if act.f == FINAL and act.place is not None):
        other = first.setdefault(final.key, final)
        if other.shows != final.shows:
            findings.add(
                f"nodes {other.node} and {final.node} show {show(other.shows)} and "
                f"{show(final.shows)} for {final.key!r} at the end"
            )


def _check_digests(findings: Findings, story: Story) -> dict[str, bool]:
    """At the end all nodes hold the same, byte by byte; and they have folded the same."""
    for folds in story.disputed:
        findings.add(f"nodes that folded lives {folds} times did not fold the same ones")
    if not story.digests:
        return {}
    first, said = story.digests[0]
    for node, other in story.digests[1:]:
        if other != said:
            findings.add(
                f"nodes {first} and {node} do not hold the same at the end: {show(said)} and "
                f"{show(other)}"
            )
    return {"digest_equal": all(other == said for _node, other in story.digests)}


# --- availability ---------------------------------------------------------------------------------


class Availability:
    """Nodes that run take writes and answer reads at "eventual", whoever else is in reach."""

    def __init__(self, findings: Findings, story: Story) -> None:
        self._findings = findings
        self._story = story
        self._back: dict[int, list[int]] = {}  # by node: when it ended to be away, in ns
        self._answered: dict[int, list[int]] = {}  # by node: when it answered
        for told in story.told:
            if told.kind in {AWAY, REMOVED}:
                insort(self._back.setdefault(told.node, []), told.end_ns)
        for act in story.acts:
            if act.place is not None:
                insort(self._answered.setdefault(act.node, []), act.ended_ns)

    def check(self) -> dict[str, int]:
        """Every operation at "eventual" that was not answered. Returns how many writes nodes took
        that had no other in reach, and how many at "eventual" they did not, though they ran."""
        alone = refused = 0
        for act in self._story.acts:
            cut_off = act.f == WRITE and self._story.alone(act)
            alone += cut_off and act.outcome == "ok"
            if act.level != "eventual" or act.f == FINAL or act.outcome == "ok":
                continue
            if act.error == CLIENT_CRASHED or act.error.startswith(_REFUSALS):
                continue
            if self._surely_up(act):
                refused += cut_off
                self._findings.add(
                    f"{act} at eventual was not taken by a node that ran all the time"
                    f"{', cut off from all others' if cut_off else ''}: {act.error}"
                )
        return {"isolated_writes": alone, "isolated_refused": refused}

    def _surely_up(self, act: Act) -> bool:
        story = self._story
        since_ns = act.begun_ns - int(SETTLE_S * 1e9)
        for told in story.told:
            if told.kind not in {AWAY, REMOVED, UNREACHED} or told.node != act.node:
                continue
            if told.begin_ns <= act.ended_ns and since_ns <= told.end_ns:
                return False
        # It has answered since it was back.
        backs = self._back.get(act.node, [])
        back_ns = backs[bisect_left(backs, act.begun_ns) - 1] if backs else 0
        answers = self._answered.get(act.node, [])
        at = bisect_left(answers, back_ns)
        return at < len(answers) and answers[at] < act.begun_ns


def _kv_history(history: Sequence[Event]) -> list[Event]:
    """The operations of the log's tier alone."""
    return [_kv_event(event) for event in history if event.f in _KV]


def _kv_event(event: Event) -> Event:
    value = event.value
    if event.type == "invoke":
        value = {**value, "token": parse_place(value["header"])[0]}
    return replace(event, f=_KV[event.f], value=value)


def _marks(marks: Marks) -> str:
    lives = [(life_of(actor), marks[actor]) for actor in sorted(marks) if actor != FOLDS]
    shown = [f"{member}.{epoch}:{count}" for (member, epoch), count in lives]
    if FOLDS in marks:
        shown.append(f"all of {marks[FOLDS]} folds")
    return ", ".join(shown) or "nothing"
