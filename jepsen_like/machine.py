"""A machine of your own in the simulator: random calls under faults, judged by the machine itself.

    from jepsen_like.machine import Call, simulate_machine

    def calls(random):
        sku = random.choice(["bolt", "nut"])
        if random.random() < 0.5:
            return Call("reserve", sku, random.randint(1, 3))
        return Call("left", sku)

    report = simulate_machine(Inventory, calls, seeds=50)
    assert report.ok, report

Each seed is a whole run of the swarm: nodes crash, disks tear, networks split, clocks drift, and
all its invariants hold or are violations (equal state on all replicas among them, which catches a
machine that looks at a clock). Then the history is judged: there must be an order of the calls, in
which each takes effect between its beginning and its end, that brings the machine, run on its own
without a cluster, to the same answers.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Hashable, Iterable, Sequence
from random import Random
from typing import Any, Final

import msgspec

from jepsen_like.checkers.base import freeze, show
from jepsen_like.checkers.linearizable import Linearizable
from jepsen_like.checkers.models import Answer, Model
from jepsen_like.checkers.models import Call as Checked
from jepsen_like.errors import HistoryError, UsageError
from jepsen_like.history import Event
from jepsen_like.simulation.outcome import Outcome
from jepsen_like.simulation.plan import Plan, draw, replace_settings
from jepsen_like.simulation.swarm import Run
from jepsen_like.systems.base import OutcomeError
from jepsen_like.verdict import Verdict
from jepsen_like.workloads.base import Invocation
from quorate.base.declaring import Caller, Declaration
from quorate.client.handles import Handle, declaration_of
from quorate.errors import CommandError, MachineError, QuorateError
from quorate.replication.machine import Context, Machine
from quorate.replication.tables import Tables

#: The name of the workload, in reports.
WORKLOAD: Final = "machine"
#: States that are kept while a history is judged.
STATES_MAX: Final = 200_000


class Call:
    """A call of a command or query by name. *key*: calls with different keys must have nothing to
    do with each other; their histories are then judged apart, which is much faster."""

    __slots__ = ("arguments", "key", "name")

    def __init__(self, name: str, *arguments: Any, key: str | None = None) -> None:  # noqa: ANN401
        self.name = name
        self.arguments = arguments
        self.key = key


#: Draws what some client does next.
Calls = Callable[[Random], Call]
#: Says what is wrong with a history, "" if nothing is.
Check = Callable[[Sequence[Event]], str]


class Report(msgspec.Struct, frozen=True):
    """What came of all seeds."""

    outcomes: tuple[Outcome, ...]
    wall_s: float

    @property
    def ok(self) -> bool:
        """No violation in any run, and not one that nobody could judge."""
        return not any(each.violations for each in self.outcomes) and not self.undecided

    @property
    def undecided(self) -> list[int]:
        """Seeds whose history was too much to judge: use keys, or fewer clients."""
        return [each.seed for each in self.outcomes if "unknown" in each.verdicts.values()]

    @property
    def operations(self) -> int:
        """Of all runs, whatever came of them."""
        return sum(each.operations for each in self.outcomes)

    def __str__(self) -> str:
        faults = sum(each.fault_count for each in self.outcomes)
        runs = len(self.outcomes)
        lines = [f"{runs} runs, {self.operations} calls, {faults} faults, {self.wall_s:.1f} s"]
        for each in self.outcomes:
            lines += [f"seed {each.seed}: {found.name}: {found.text}" for found in each.violations]
        lines += [f"seed {seed}: undecided" for seed in self.undecided]
        return "\n".join(lines)


def simulate_machine(
    machine: Callable[[], Machine],
    calls: Calls,
    *,
    seeds: int | Iterable[int] = 20,
    last: Sequence[Call] = (),
    check: Check | None = None,
    adjust: Callable[[Plan], Plan] = copy.copy,
) -> Report:
    """Run *machine* in simulated clusters under faults, once for each seed.

    Args:
        machine: makes one for each node; a class whose methods are marked will do.
        calls: draws the next call of some client; all its chance comes from the argument.
        seeds: how many, from 1, or which ones.
        last: calls that are made at the end, once everything is healed.
        check: judges the history instead of the machine itself, which cannot if what it answers
            depends on time or chance.
        adjust: changes the plan of a seed, such as its settings or faults.

    Raises:
        UsageError: a call that the machine does not have, or with wrong arguments.
    """
    began_s = time.perf_counter()
    name, declaration = declaration_of(machine())
    workload = MachineWorkload(machine, name, declaration, calls, last, check)
    outcomes = []
    for seed in range(1, seeds + 1) if isinstance(seeds, int) else seeds:
        drawn = adjust(draw(seed))
        plan = replace_settings(drawn, workloads={WORKLOAD: 1.0})
        seed_began_s = time.perf_counter()
        run = Run(plan, workloads={WORKLOAD: workload}, machines=lambda: [machine()])
        try:
            run.complete()
        finally:
            run.close()
        outcomes.append(run.outcome(time.perf_counter() - seed_began_s))
    return Report(tuple(outcomes), time.perf_counter() - began_s)


class MachineWorkload:
    """Calls of one machine, as a workload (``workloads.base``)."""

    name = WORKLOAD

    def __init__(
        self,
        machine: Callable[[], Machine],
        name: str,
        declaration: Declaration,
        calls: Calls,
        last: Sequence[Call],
        check: Check | None,
    ) -> None:
        self._machine = machine
        self._named = machine()
        self._declaration = declaration
        self._calls = calls
        self._last = last
        self._check = check
        self._where = name
        self._raised: dict[str, None] = {}

    async def setup(self, client: Any) -> None:  # noqa: ANN401  a QuorateClient
        """Nothing: it begins as it is."""

    def next(self, random: Random, process: int) -> Invocation:
        """One of the user's calls."""
        del process
        return self._invocation(self._calls(random))

    def last(self) -> Sequence[Invocation]:
        """The user's last calls."""
        return [self._invocation(call) for call in self._last]

    def _invocation(self, call: Call) -> Invocation:
        method = self._declaration.by_attribute.get(call.name)
        if method is None:
            raise UsageError(f"machine {self._where} has no command or query {call.name!r}")
        try:
            Caller(method, call.name).make(call.arguments, {})
        except QuorateError as error:
            raise UsageError(f"a call that cannot be made: {error}") from error
        return Invocation(call.name, call.key, list(call.arguments))

    async def do(self, client: Any, invocation: Invocation) -> tuple[bool, Any]:  # noqa: ANN401
        """Make the call. What the machine refuses is an answer like any other."""
        handle: Handle = client.database.machine(self._named)
        try:
            result = await getattr(handle, invocation.f)(*invocation.value)
        except CommandError as error:
            if isinstance(error, MachineError):
                self._raised[str(error)] = None
            return True, {"refused": error.code}
        except QuorateError as error:
            raise OutcomeError(f"{error.code}: {error}", definite=error.definite) from error
        return True, plain(result)

    def check(self, history: Sequence[Event]) -> Verdict:
        """By the user's check, or by the machine run on its own."""
        if self._raised:
            return Verdict(checker=WORKLOAD, valid=False, problems=tuple(self._raised))
        if self._check is None:
            return Linearizable(MachineModel(self._machine())).check(history)
        problem = self._check(history)
        return Verdict(checker=WORKLOAD, valid=not problem, problems=(problem,) if problem else ())


def plain(value: Any) -> Any:  # noqa: ANN401
    """A result as histories hold it."""
    return msgspec.to_builtins(value, str_keys=True)


#: The records of all tables, encoded: what a state of the model is.
State = tuple[tuple[str, bytes, bytes], ...]


class MachineModel(Model):
    """A machine run on its own, as the sequential model of itself."""

    def __init__(self, machine: Machine) -> None:
        self.name, self._declaration = declaration_of(machine)
        self._machine = machine
        self._tables = Tables()
        machine.attach(self._tables)
        machine.loaded()
        self._callers = {
            method.attribute: Caller(method, method.attribute)
            for method in self._declaration.methods
        }
        self._known: dict[tuple[Any, ...], tuple[State, Any]] = {}

    def initial(self) -> Hashable:
        """Nothing is in the tables."""
        return ()

    def validate(self, call: Checked) -> None:
        """Raises HistoryError: the machine has no such call."""
        if call.f not in self._callers:
            raise HistoryError(f"machine {self.name} has no command or query {call.f!r}")

    def reads(self, call: Checked) -> bool:
        """Queries change nothing."""
        return self._declaration.by_attribute[call.f].mark.kind == "query"

    def step(self, state: Any, call: Checked) -> Hashable | None:  # noqa: ANN401
        """The state after *call*, or None if it answered something else."""
        key = (state, call.f, call.input)
        found = self._known.get(key)
        if found is None:
            if len(self._known) >= STATES_MAX:
                self._known.clear()
            found = self._known[key] = self._run(state, call)
        after, answer = found
        if call.output is not Answer.UNKNOWN and answer != call.output:
            return None
        return after

    def _run(self, state: State, call: Checked) -> tuple[State, Any]:
        self._load(state)
        method = self._declaration.by_attribute[call.f]
        item = self._callers[call.f].make(call.operation.invoked.value, {})
        try:
            if method.mark.kind == "query":
                result: Any = self._machine.query(item)
            else:
                result = self._machine.apply(item, _context(self._machine.version))
        except CommandError as error:
            return state, freeze({"refused": error.code})
        except Exception:  # noqa: BLE001  as a node has it; the workload reports it
            return state, freeze({"refused": MachineError.code})
        read = msgspec.msgpack.decode(msgspec.msgpack.encode(result), type=method.result)
        return self._dump(), freeze(plain(read.value))  # type: ignore[attr-defined]

    def _load(self, state: State) -> None:
        for _ in self._tables.clear():
            pass
        by_table: dict[str, list[tuple[bytes, bytes]]] = {}
        for name, key, record in state:
            by_table.setdefault(name, []).append((key, record))
        for name, records in by_table.items():
            for _ in self._tables[name].load(records):
                pass
        self._machine.loaded()

    def _dump(self) -> State:
        return tuple(
            (table.name, key, self._tables.encode(table.name, record))
            for table in self._tables
            for key, record in table.items()
        )

    def show(self, state: Any) -> str:  # noqa: ANN401
        """The records, by table and key."""
        return show([[name, repr(key), repr(record)] for name, key, record in state])


def _context(version: int) -> Context:
    """A moment that is always the same: the model knows neither time nor chance."""
    return Context(
        index=1, term=1, time_ms=0, wall_ms=0, seed=0, position=0, session=0, version=version
    )
