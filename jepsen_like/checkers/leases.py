"""Leases: what is bound to one stays until its end, and not after it.

Each lease has one key. Cluster time runs at the pace of the leader's clock and only while there is
a leader, so a lease lasts at least its time to live divided by how fast a clock may run, after the
beginning of its last renewal; how long it lasts at most has no bound under faults, and is asked
for at the end. What is certain without any clock: once a key was seen to be gone, nothing brings it
back, and no renewal succeeds any more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from jepsen_like.checkers.base import Findings, readable, show
from jepsen_like.checkers.clocks import Bent
from jepsen_like.checkers.grants import AFTERMATH_S
from jepsen_like.checkers.linearizable import split
from jepsen_like.errors import HistoryError
from jepsen_like.history import Event, Operation, operations
from jepsen_like.verdict import Verdict

#: Clocks that are not bent run at most so much too fast.
PACE_MAX: Final = 1.25
_KINDS: Final = ("grant", "hold", "bind", "renew", "revoke", "read", "look", "end")


class LeaseChecker:
    """For these operations, with the lease's own key as their key:

    =======  ======================================================================
    grant    value: its time to live in ms; "hold": and the client keeps it alive
    bind     the key is put, bound to the lease; ok, or failed as "gone"
    renew    ok, or failed as "gone"
    revoke   ok, or failed as "gone"
    read     whether the key is there, linearizable; "end": it is not
    look     {"there": as of "read", "alive": the holder believes in it after that}
    =======  ======================================================================
    """

    name = "lease"

    def check(self, history: Sequence[Event]) -> Verdict:
        """Unknown if no key was ever bound."""
        with readable(self.name):
            return self._check(history)

    def _check(self, history: Sequence[Event]) -> Verdict:
        findings = Findings()
        facts = dict.fromkeys(("leases", "bound", "renewals", "refused", "ended"), 0)
        bent = Bent(history, int(AFTERMATH_S * 1e9))
        for key, found in split(operations(history)):
            facts["leases"] += 1
            one = _Lease(findings, show(key), found)
            facts["bound"] += bool(one.bound)
            facts["renewals"] += len(one.renewals)
            facts["refused"] += len(one.refusals)
            facts["ended"] += bool(one.absent)
            one.check_before(bent)
            one.check_belief(bent)
            one.check_after()
        return findings.verdict(self.name, proves=facts["bound"] > 0, **facts)


class _Lease:
    """One lease and its key."""

    def __init__(self, findings: Findings, title: str, found: list[Operation]) -> None:
        self._findings = findings
        self._title = title
        by_kind: dict[str, list[Operation]] = {kind: [] for kind in _KINDS}
        for each in found:
            if each.invoked.f not in by_kind:
                raise HistoryError(
                    f"event {each.invoked_at}: {each.invoked.f!r} is none of {', '.join(_KINDS)}"
                )
            by_kind[each.invoked.f].append(each)
        # One that a client keeps alive is given back when the client leaves, which is no operation.
        self._granted = [each for each in by_kind["grant"] if each.outcome == "ok"]
        self._binds = [each for each in by_kind["bind"] if each.outcome != "fail"]
        self.bound = [each for each in self._binds if each.outcome == "ok"]
        self.renewals = [each for each in by_kind["renew"] if each.outcome == "ok"]
        self.refusals = [
            each for f in ("renew", "bind", "revoke") for each in by_kind[f] if _says_gone(each)
        ]
        self._revokes = [each for each in by_kind["revoke"] if each.outcome != "fail"]
        self._looks = [each for each in by_kind["look"] if each.outcome == "ok"]
        reads = (*by_kind["read"], *by_kind["end"], *by_kind["look"])
        reads = tuple(each for each in reads if each.outcome == "ok")
        self._present = [each for each in reads if _there(each)]
        bound_at = min((each.completed_at for each in self.bound), default=-1)
        #: Reads that show that it has ended.
        self.absent = [
            each for each in reads if not _there(each) and 0 <= bound_at < each.invoked_at
        ]

    def _add(self, text: str) -> None:
        self._findings.add(f"lease {self._title}: {text}")

    def check_before(self, bent: Bent) -> None:
        """It does not end before its time, unless somebody revokes it."""
        revoked_at = min((each.invoked_at for each in self._revokes), default=-1)
        for sign in (*self.absent, *self.refusals):
            if 0 <= revoked_at < sign.completed_at or sign.completed is None:
                continue
            for each in (*self._granted, *self.renewals) if self._granted else ():
                lasts_ns = int(self._ttl_ms * 1e6 / PACE_MAX)
                ends_ns = each.invoked.time_ns + lasts_ns
                if sign.completed.time_ns >= ends_ns:
                    continue
                if not bent.touches(each.invoked.time_ns, sign.completed.time_ns):
                    left_ms = (ends_ns - sign.completed.time_ns) / 1e6
                    self._add(
                        f"{_at(sign)} says that it is gone, at least {left_ms:.0f} ms before the "
                        f"{self._ttl_ms} ms can have passed that {_at(each)} gave it"
                    )

    def check_belief(self, bent: Bent) -> None:
        """A holder that believes in it after the read of a key cannot have missed that key."""
        revoked_at = min((each.invoked_at for each in self._revokes), default=-1)
        for each in self.absent:
            value = each.completed.value if each.completed is not None else None
            if not isinstance(value, dict) or not value["alive"] or each.completed is None:
                continue
            if 0 <= revoked_at < each.completed_at:
                continue
            if not bent.touches(each.invoked.time_ns, each.completed.time_ns):
                self._add(f"{_at(each)} does not show its key, and its holder believes in it yet")

    @property
    def _ttl_ms(self) -> int:
        return int(self._granted[0].invoked.value) if self._granted else 0

    def check_after(self) -> None:
        """Once it has ended, nothing brings it back."""
        signs = [
            *((each, "shows that its key is gone") for each in self.absent),
            *((each, "was refused, because it is gone") for each in self.refusals),
            *((each, "ended it") for each in self._revokes if each.outcome == "ok"),
        ]
        if not signs:
            return
        first, what = min(signs, key=lambda sign: sign[0].completed_at)
        for each in self.renewals:
            if each.invoked_at > first.completed_at:
                self._add(f"{_at(each)} renewed it, although {_at(first)} {what}")
        for each in self._present:
            if each.invoked_at > first.completed_at:
                self._add(f"{_at(each)} shows its key, although {_at(first)} {what}")
        for each in self.bound:
            if each.invoked_at > first.completed_at:
                self._add(f"{_at(each)} bound a key to it, although {_at(first)} {what}")


def _there(each: Operation) -> bool:
    value = each.completed.value if each.completed is not None else False
    if each.invoked.f == "end":
        return False
    return bool(value["there"] if isinstance(value, dict) else value)


def _says_gone(each: Operation) -> bool:
    completed = each.completed
    return completed is not None and completed.type == "fail" and completed.value == "gone"


def _at(operation: Operation) -> str:
    return (
        f"the {operation.invoked.f} by process {operation.invoked.process} "
        f"(event {operation.invoked_at})"
    )
