"""Bugs put in on purpose, each of which the quick tests of this room must catch."""

from __future__ import annotations

from tests.mutating import Mutant

MACHINE = "quorate/locks/machine.py"
BARRIERS = "quorate/locks/barriers.py"
LEASES = "quorate/client/leases.py"
LOSING = "quorate/client/losing.py"
GRANTING = "quorate/client/granting.py"
CLAIMS = "quorate/client/claims.py"
LOCKS = "quorate/client/locks.py"

MUTANTS = (
    Mutant(
        "the highest token is not part of the state",
        MACHINE,
        "            self._last.put(LAST_KEY, CountRecord(self._number))\n",
        "            pass\n",
        ("machine", "model"),
    ),
    Mutant(
        "after a command that broke, what was counted for it stays",
        MACHINE,
        "        self._number = self._number_before\n        self._count_all()\n",
        "        self._number = self._number_before\n",
        ("model", "machine"),
    ),
    Mutant(
        "a lock is given to one whose lease died in line",
        MACHINE,
        "            alive = context.lease_alive(claim.lease)\n",
        "            alive = True\n",
        ("machine", "model"),
    ),
    Mutant(
        "a lock is given to one whose lease is over",
        MACHINE,
        "        if not context.lease_alive(lease):\n            return refused(LeaseExpired",
        "        if not lease:\n            return refused(LeaseExpired",
        ("machine", "model"),
    ),
    Mutant(
        "tokens begin anew when a name is used again",
        MACHINE,
        "        self._number += 1\n        return self._number\n",
        "        self._number = self._number + 1 if len(self._names) > 1 else 1\n"
        "        return self._number\n",
        ("machine", "model"),
    ),
    Mutant(
        "a place in line counts as a token",
        MACHINE,
        "            token = self._draw()\n            record = self._grant(",
        "            token = number_of(key)\n            record = self._grant(",
        ("machine", "model"),
    ),
    Mutant(
        "who comes late overtakes the line",
        MACHINE,
        "(not record.waiters and record.free >= command.permits)",
        "(record.free >= command.permits)",
        ("machine", "model"),
    ),
    Mutant(
        "who wants few overtakes the head of the line",
        MACHINE,
        "            if alive and claim.permits > record.free:\n                break",
        "            if alive and not record.free:\n                break",
        ("machine", "model"),
    ),
    Mutant(
        "a release wakes everybody who waits",
        MACHINE,
        "            granted = True\n",
        "            granted = True\n"
        "            for _, other in self._waiters.range_prefix(scope(name)):\n"
        "                told = (LOCK_MACHINE, lease_topic(other.lease), Granted(name, 0, 0))\n"
        "                context.effects.append(told)\n",
        ("machine",),
    ),
    Mutant(
        "those in line stay when their lease has ended",
        MACHINE,
        "            if record is not None and (bound.token or bound.ticket):\n",
        "            if record is not None and bound.token:\n",
        ("machine", "model"),
    ),
    Mutant(
        "nobody is served when the head of the line leaves",
        MACHINE,
        "            self._pass_on(name, self._without(name, record, bound), context)\n",
        "            rest = self._without(name, record, bound)\n"
        "            if bound.token:\n"
        "                self._pass_on(name, rest, context)\n"
        "            else:\n"
        "                self._names.put(name, rest)\n",
        ("machine", "model"),
    ),
    Mutant(
        "an acquiring that comes after its withdrawal holds for ever",
        MACHINE,
        "            return self._forestall(lease, key, context)\n",
        "            return Released(0)\n",
        ("machine",),
    ),
    Mutant(
        "a fence holds for a grant that has passed on",
        MACHINE,
        "numbered(fence.name, fence.token) in self._holders",
        "fence.name in self._names",
        ("machine", "model"),
    ),
    Mutant(
        "a semaphore may be asked for at another size",
        MACHINE,
        "(record.kind, record.total) != (command.kind, command.total)",
        "record.kind != command.kind",
        ("machine",),
    ),
    Mutant(
        "a dead party is counted",
        BARRIERS,
        "            record = self._drop_dead(name, record, context)\n",
        "",
        ("barriers",),
    ),
    Mutant(
        "who comes early walks into the round that is inside",
        BARRIERS,
        "        if not record.inside and record.waiting >= record.parties:",
        "        if record.waiting >= record.parties:",
        ("barriers",),
    ),
    Mutant(
        "one that leaves a double barrier waits for nobody",
        BARRIERS,
        "        if not record.inside and record.leaving:",
        "        if record.leaving:",
        ("barriers",),
    ),
    Mutant(
        "a lease is good from when its renewal was answered",
        LEASES,
        "self._leases[lease].renewed(sent_at)",
        "self._leases[lease].renewed(self.clock())",
        ("judging",),
    ),
    Mutant(
        "the holder counts on the whole time of its lease",
        LEASES,
        "DRIFT_MARGIN: Final = 0.1",
        "DRIFT_MARGIN: Final = -0.2",
        ("simulated",),
    ),
    Mutant(
        "a lease that was seen to be over comes back",
        LEASES,
        "        if self._timer is not None and self._clock() >= self._good_until:\n",
        "        if self._timer is not None and self._good_until is None:\n",
        ("judging",),
    ),
    Mutant(
        "nobody asks whether a lease stands at this moment",
        LEASES,
        "return not self._over and self._clock() < self._good_until",
        "return not self._over",
        ("handles", "simulated"),
    ),
    Mutant(
        "time in which the machine slept does not count",
        "quorate/client/clocks.py",
        "    if not system:\n",
        "    if True:\n",
        ("handles",),
    ),
    Mutant(
        "a renewal that says gone is passed over",
        LEASES,
        '                    self._leases[lease].end("has ended")',
        "                    pass",
        ("judging",),
    ),
    Mutant(
        "who is cancelled in line stays there",
        GRANTING,
        "                self._calls.take_back(desk, command)\n",
        "                pass\n",
        ("handles", "simulated"),
    ),
    Mutant(
        "a withdrawal is tried once",
        CLAIMS,
        "            except QuorateError:\n                pass\n            else:",
        "            except QuorateError:\n                return\n            else:",
        ("judging",),
    ),
    Mutant(
        "after a gap in the watch nobody looks",
        CLAIMS,
        "            self._looking = self._desk.keeper.errand(self._look())",
        "            pass",
        ("simulated",),
    ),
    Mutant(
        "a guard swallows a cancellation from elsewhere",
        LOSING,
        "            if alone and isinstance(",
        "            if isinstance(",
        ("handles",),
    ),
    Mutant(
        "a body that ended by itself does not hear of the loss",
        LOSING,
        "        if error is None and (self._holding.lost.is_set() or not self._holding.alive):",
        "        if error is None and not self._task:",
        ("handles",),
    ),
    Mutant(
        "one task may wait for itself",
        LOCKS,
        "if waits and isinstance(other, Lock) and other.held",
        "if not waits and isinstance(other, Lock) and other.held",
        ("handles",),
    ),
)
