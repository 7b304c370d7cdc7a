"""Schedules: each tick counts once, fires no more than once, and what was missed is dealt with as
the schedule says, whoever leads.

Two looks at one schedule say which ticks were dealt with in between: those of its grid from the
next tick of the first look to that of the second. So many came, or fewer where some were missed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Final

from jepsen_like.checkers.base import Findings, readable
from jepsen_like.history import Event, Operation, operations
from jepsen_like.verdict import Verdict

#: Of ticks that were missed, so many are made up for (``schedule_commands.CATCH_UP_MAX``).
CATCH_UP_MAX: Final = 1000


class TicksChecker:
    """For these operations, among others:

    ==========  =======================================================================
    put         a schedule, of a name that is used once: {"name", "misfire", "overlap", "step_ms"},
                and "paused" if it is so from the beginning
    remove      {"name"}
    pause       {"name"}: nothing fires by itself; resume: again
    trigger     {"name"}: it fires once, which is no tick; answered with {"task"}
    schedules   answered with all: "name", "every_ms" (0: by wall clock), "paused", "revision",
                "next_ms", "last_task", "fired", "skipped"
    ticking     at the end: {"left": schedules by cluster time that do not tick}
    freeze      at the end: all are paused
    ticked      every task of schedules: "task", "value" (the name), "state", "enqueued_ms",
                "ended_ms"
    ==========  =======================================================================
    """

    name = "ticks"

    def check(self, history: Sequence[Event]) -> Verdict:
        """Unknown if the end was not looked at."""
        with readable(self.name):
            findings = Findings()
            run = _Run(findings, operations(history))
            if not run.looked:
                return findings.verdict(self.name, proves=False)
            run.check_looks()
            run.check_tasks()
            return findings.verdict(self.name, **run.facts)


class _Run:
    """One history."""

    def __init__(self, findings: Findings, found: Sequence[Operation]) -> None:
        self._add = findings.add
        by_f: dict[str, list[Operation]] = {}
        for each in found:
            by_f.setdefault(each.invoked.f, []).append(each)
        self._puts = by_f.get("put", [])
        self.asked = {each.invoked.value["name"]: each.invoked.value for each in self._puts}
        self._removals: dict[str, list[Operation]] = {}
        for each in by_f.get("remove", ()):
            if each.outcome != "fail":
                self._removals.setdefault(each.invoked.value["name"], []).append(each)
        #: By schedule: what pauses it, or lets it go on; and what fires it out of its turn.
        self._switches = _by_name(by_f, "pause", "resume")
        self._triggers = _by_name(by_f, "trigger")
        self._freezes = by_f.get("freeze", [])
        self._looks = [each for each in by_f.get("schedules", ()) if each.outcome == "ok"]
        ticked = [each for each in by_f.get("ticked", ()) if each.outcome == "ok"]
        self.looked = bool(ticked and self._looks)
        if not self.looked:
            return
        self._tasks: dict[str, list[Mapping[str, Any]]] = {}
        for task in _value(ticked[-1]):
            self._tasks.setdefault(task["value"], []).append(task)
        self.facts: dict[str, Any] = {
            "ticks": 0,
            "ticks_missed": 0,
            "tick_tasks": len(_value(ticked[-1])),
            "pauses": sum(map(len, self._switches.values())),
            "triggered": sum(len(self._fired_by_hand(name)) for name in self._triggers),
        }
        for each in by_f.get("ticking", ()):
            if each.outcome == "ok" and _value(each)["left"]:
                said = _value(each)
                self._add(f"{said['left']} do not tick within {said['seconds']} s after healing")

    # --- what looks show --------------------------------------------------------------------------

    def check_looks(self) -> None:
        """Each shows what was put and not removed; from one to the next, ticks are accounted for:
        they fired, were passed over, or missed."""
        self._grids: dict[str, int] = {}
        before: dict[str, tuple[Operation, Mapping[str, Any]]] = {}
        for look in sorted(self._looks, key=lambda each: each.invoked_at):
            shown = {each["name"]: each for each in _value(look)}
            self._check_there(look, shown)
            for name, info in shown.items():
                if name not in self.asked:
                    self._add(f"schedule {name!r} is there, and nobody asked for it")
                    continue
                self._check_fired(name, info)
                self._check_paused(look, name, info)
                if info["every_ms"]:  # the first look is of before it was put again to end it
                    self._grids.setdefault(name, info["next_ms"])
                if name in before and before[name][0].completed_at < look.invoked_at:
                    self._check_between(name, before[name][1], info)
                if name not in before or before[name][0].completed_at < look.completed_at:
                    before[name] = (look, info)

    def _check_there(self, look: Operation, shown: Mapping[str, Any]) -> None:
        for put in self._puts:
            name = put.invoked.value["name"]
            removals = self._removals.get(name, [])
            if put.outcome == "fail" and name in shown:
                self._add(f"schedule {name!r} was refused, and is there")
            gone = any(each.invoked_at < look.completed_at for each in removals)
            known = put.outcome == "ok" and put.completed_at < look.invoked_at
            if known and not gone and name not in shown:
                self._add(f"schedule {name!r} was acknowledged, and is lost")
            removed = any(
                each.outcome == "ok" and _value(each) and each.completed_at < look.invoked_at
                for each in removals
            )
            if removed and name in shown and put.outcome == "ok":
                self._add(f"schedule {name!r} was removed, and is there")

    def _check_fired(self, name: str, info: Mapping[str, Any]) -> None:
        """As many tasks as ticks that fired, and as were fired by hand; no other has the number of
        one."""
        if name in self._removals:
            return
        count = sum(each["task"] <= info["last_task"] for each in self._tasks.get(name, ()))
        by_hand = sum(task <= info["last_task"] for task in self._fired_by_hand(name))
        unknown = sum(each.outcome == "info" for each in self._triggers.get(name, ()))
        if not 0 <= count - by_hand - info["fired"] <= unknown:
            said = f"{by_hand} by hand, and perhaps {unknown} more" if by_hand or unknown else ""
            text = f"says that {info['fired']} fired, {count} tasks are there"
            self._add(f"schedule {name!r} {text} ({said})" if said else f"schedule {name!r} {text}")

    def _fired_by_hand(self, name: str) -> list[int]:
        """Tasks, as far as anybody was told."""
        fired = [each for each in self._triggers.get(name, ()) if each.outcome == "ok"]
        return [_value(each)["task"] for each in fired if _value(each)["task"]]

    def _check_paused(self, look: Operation, name: str, info: Mapping[str, Any]) -> None:
        """Whether it stands still is what was said last, if that is known."""
        said = [each for each in self._puts if each.invoked.value["name"] == name]
        said += self._switches.get(name, [])
        said += [each for each in self._freezes if each.outcome != "fail"]
        said = [each for each in said if each.invoked_at < look.completed_at]
        said.sort(key=lambda each: each.invoked_at)
        sure = [each.outcome == "ok" and each.completed_at < look.invoked_at for each in said]
        in_turn = all(one.completed_at < other.invoked_at for one, other in pairwise(said))
        if not all(sure) or not in_turn or not said:
            return
        last = said[-1].invoked
        paused = last.f in ("pause", "freeze") or (last.f == "put" and last.value.get("paused"))
        if bool(paused) != info.get("paused", False):
            self._add(f"schedule {name!r}, after {last.f!r}, is shown as {dict(info)}")

    def _check_between(self, name: str, one: Mapping[str, Any], other: Mapping[str, Any]) -> None:
        asked = self.asked[name]
        fired, skipped = other["fired"] - one["fired"], other["skipped"] - one["skipped"]
        if fired < 0 or skipped < 0:
            self._add(f"schedule {name!r} counts {other}, and counted {one} before")
        if one["revision"] == other["revision"] and one.get("paused"):
            if fired or skipped or one["next_ms"] != other["next_ms"]:
                self._add(f"schedule {name!r} is paused as {dict(one)}, and goes to {dict(other)}")
            return
        if one["revision"] != other["revision"] or not one["next_ms"]:
            return
        ticks, rest = divmod(other["next_ms"] - one["next_ms"], asked["step_ms"])
        missed = ticks - fired - skipped
        self.facts["ticks"] += ticks
        self.facts["ticks_missed"] += missed
        what = f"schedule {name!r}, misfire {asked['misfire']!r}: {ticks} ticks, {fired} fired"
        what = f"{what}, {skipped} were passed over"
        if rest or ticks < 0:
            self._add(f"schedule {name!r} goes from {one['next_ms']} to {other['next_ms']}")
        elif not _as_asked(asked, ticks, missed, skipped):
            self._add(what)

    # --- what became of them ----------------------------------------------------------------------

    def check_tasks(self) -> None:
        """Each ended; where ticks are not to overlap, one after the other."""
        for name, tasks in self._tasks.items():
            if name not in self.asked:
                self._add(f"task {tasks[0]['task']} is of schedule {name!r}, which nobody put")
                continue
            for task in tasks:
                if task["state"] != "done":
                    self._add(f"task {task['task']} of schedule {name!r} is {task['state']}")
            self._check_triggered(name, [each["task"] for each in tasks])
            self._check_grid(name, tasks)
            if self.asked[name]["overlap"]:
                continue
            for one, other in pairwise(sorted(tasks, key=lambda each: int(each["task"]))):
                if one["ended_ms"] > other["enqueued_ms"]:
                    self._add(
                        f"schedule {name!r}: task {other['task']} came at {other['enqueued_ms']}, "
                        f"and task {one['task']} ended at {one['ended_ms']}"
                    )

    def _check_triggered(self, name: str, tasks: Sequence[int]) -> None:
        """Who fires it has a task for it, of his own; none only where ticks are not to overlap."""
        fired = self._fired_by_hand(name)
        for task in fired:
            if task not in tasks or fired.count(task) > 1:
                self._add(f"schedule {name!r} was fired as task {task}, of {fired}, {tasks}")
        none = [each for each in self._triggers.get(name, ()) if each.outcome == "ok"]
        if len(none) > len(fired) and self.asked[name]["overlap"]:
            self._add(f"schedule {name!r} was fired, and there is no task for it")

    def _check_grid(self, name: str, tasks: Sequence[Mapping[str, Any]]) -> None:
        """A tick by cluster time fires in the entry that reaches it: the last that was due by then,
        or, if all are made up for, each that was."""
        grid, step_ms = self._grids.get(name), self.asked[name]["step_ms"]
        if grid is None or self.asked[name]["misfire"] == "all" or name in self._switches:
            return
        if any(each.outcome == "info" for each in self._triggers.get(name, ())):
            return
        by_hand = self._fired_by_hand(name)
        own = [each for each in tasks if each["task"] not in by_hand]
        ticks = [(each["enqueued_ms"] - grid) // step_ms for each in own]
        if len(ticks) != len(dict.fromkeys(ticks)):
            self._add(f"schedule {name!r} fired more than once in one step: {ticks}")


def _as_asked(asked: Mapping[str, Any], ticks: int, missed: int, skipped: int) -> bool:
    """Whether so many of *ticks* may be *missed*, and passed over. Without overlap, any may be that
    come while the task of the one before runs."""
    misfire, free = asked["misfire"], asked["overlap"]
    if missed < 0:
        return False
    if misfire == "all":
        return (not missed or ticks >= CATCH_UP_MAX) and not (free and skipped)
    if misfire == "once":
        return not (free and skipped)
    return not free or bool(missed) == bool(skipped)


def _by_name(by_f: Mapping[str, Sequence[Operation]], *kinds: str) -> dict[str, list[Operation]]:
    """Operations of these kinds that may have happened, by the schedule that they are about."""
    found: dict[str, list[Operation]] = {}
    for kind in kinds:
        for each in by_f.get(kind, ()):
            if each.outcome != "fail":
                found.setdefault(each.invoked.value["name"], []).append(each)
    return found


def _value(each: Operation) -> Any:  # noqa: ANN401  of any kind
    return None if each.completed is None else each.completed.value
