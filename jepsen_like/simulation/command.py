"""``python -m jepsen_like simulate``: whole clusters on virtual time, one seed each."""

from __future__ import annotations

import argparse
import functools
import importlib
import json
import statistics
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import msgspec

from jepsen_like.errors import UsageError
from jepsen_like.simulation import plan as plans
from jepsen_like.simulation.outcome import Outcome, add_up_all
from jepsen_like.simulation.plan import Plan
from jepsen_like.simulation.pool import limited, results
from jepsen_like.simulation.shrink import shrink
from jepsen_like.simulation.swarm import run_plan, run_seed
from jepsen_like.systems.registry import ON_VIRTUAL_TIME, SYSTEMS
from jepsen_like.workloads.registry import WORKLOADS

#: Real seconds for one seed, some hundred times what it takes.
WALL_S: Final = 120.0
SHRINK_TRIES_MAX: Final = 400
#: Failing seeds that are printed whole.
SHOWN_MAX: Final = 20
#: Of a call that says nothing of seeds.
SEEDS_DEFAULT: Final = 100
#: The product itself: what is here is made for it; other systems have a command of their own.
QUORATE: Final = "quorate"


def add_to(commands: Any) -> None:  # noqa: ANN401  argparse's type has no public name
    """See ``jepsen_like.cli.Command``."""
    parser = commands.add_parser("simulate", help="clusters on virtual time, one per seed")
    names = ", ".join((QUORATE, *ON_VIRTUAL_TIME))
    parser.add_argument("--system", default=QUORATE, help=f"one of {names} (default {QUORATE})")
    parser.add_argument("--seeds", type=int, help=f"run so many (default {SEEDS_DEFAULT})")
    parser.add_argument("--first", type=int, default=1, help="the first of them (default 1)")
    parser.add_argument("--seed", type=int, help="run one seed")
    parser.add_argument(
        "--workload", default="", help=f"some of {','.join(WORKLOADS)} instead of those drawn"
    )
    parser.add_argument("--schedule", metavar="FILE", help="run what --shrink or --save wrote")
    parser.add_argument("--jobs", type=int, default=2, help="processes (default 2)")
    parser.add_argument("--budget", type=float, default=0.0, help="begin none after SECONDS")
    parser.add_argument("--json", action="store_true", help="the result as one line of JSON")
    parser.add_argument("--trace", metavar="FILE", help="with one seed: what happened, as text")
    parser.add_argument("--save", metavar="FILE", help="with --seed: write its schedule")
    parser.add_argument("--shrink", action="store_true", help="look for a smaller failing schedule")
    parser.add_argument(
        "--unsafe-no-fsync",
        action="store_true",
        help="disks that never sync: a positive control, which must fail",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """0: no violation; 1: at least one."""
    if arguments.system != QUORATE:
        return _other(arguments)
    given = [arguments.seeds, arguments.seed, arguments.schedule]
    if sum(each is not None for each in given) > 1:
        raise UsageError("simulate takes only one of --seeds N, --seed N and --schedule FILE")
    if arguments.seed is not None or arguments.schedule is not None:
        return _one(arguments)
    return _many(arguments)


def _other(arguments: argparse.Namespace) -> int:
    """A system whose simulation is a command of its own."""
    name = arguments.system
    if name not in ON_VIRTUAL_TIME:
        known = ", ".join((QUORATE, *ON_VIRTUAL_TIME))
        if name in SYSTEMS:
            raise UsageError(
                f"{name} runs as real processes only: python -m jepsen_like run --system {name} "
                f"--workload NAME; on virtual time there are {known}"
            )
        raise UsageError(f"no system {name!r} on virtual time; there are {known}")
    flags = ("workload", "schedule", "trace", "save", "shrink", "unsafe_no_fsync", "budget")
    useless = [f"--{flag.replace('_', '-')}" for flag in flags if getattr(arguments, flag)]
    if useless:
        raise UsageError(f"{' and '.join(useless)}: only of --system {QUORATE}")
    status: int = importlib.import_module(ON_VIRTUAL_TIME[name]).run(arguments)
    return status


# --- one ------------------------------------------------------------------------------------------


def _one(arguments: argparse.Namespace) -> int:
    if arguments.schedule is not None:
        plan = plans.read(arguments.schedule)
    else:
        plan = plans.draw(arguments.seed, _workloads(arguments))
    plan = _tuned(plan, arguments)
    if arguments.save:
        plans.write(arguments.save, plan)
    if arguments.trace:
        with Path(arguments.trace).open("w", encoding="utf-8") as text:
            outcome = limited(lambda _: run_plan(plan, trace=text), plan.seed, WALL_S)
    else:
        outcome = limited(lambda _: run_plan(plan), plan.seed, WALL_S)
    if arguments.json:
        print(json.dumps(msgspec.to_builtins(outcome)))
    else:
        print(_description(plan, outcome))
        for violation in outcome.violations:
            print(_violation_text(violation))
    if outcome.violations and arguments.shrink:
        _shrink(plan, outcome)
    return 1 if outcome.violations else 0


def _workloads(arguments: argparse.Namespace) -> tuple[str, ...]:
    """Those named after ``--workload``."""
    names = tuple(name.strip() for name in arguments.workload.split(",") if name.strip())
    for name in names:
        if name not in WORKLOADS:
            raise UsageError(f"there is no workload {name!r}; there are {', '.join(WORKLOADS)}")
    if names and arguments.schedule is not None:
        raise UsageError("--workload: a schedule has its own")
    return names


def _tuned(plan: Plan, arguments: argparse.Namespace) -> Plan:
    if not arguments.unsafe_no_fsync:
        return plan
    settings = msgspec.structs.replace(plan.settings, fsync=False)
    return msgspec.structs.replace(plan, settings=settings)


def _shrink(plan: Plan, outcome: Outcome) -> None:
    name = outcome.violations[0].name
    print(f"shrinking: looking for less that still ends in {name!r} ...", file=sys.stderr)

    def fails(candidate: Plan) -> bool:
        return limited(lambda _: run_plan(candidate), plan.seed, WALL_S).failed_by(name)

    shrunk = shrink(plan, fails, tries_max=SHRINK_TRIES_MAX)
    path = f"shrunk-{plan.seed}.json"
    plans.write(path, shrunk.plan)
    print(plans.encode(shrunk.plan).decode())
    print(
        f"{len(shrunk.plan.faults)} of {len(plan.faults)} faults are left after {shrunk.tries} "
        f"runs; replay with: python -m jepsen_like simulate --schedule {path}"
    )


def _description(plan: Plan, outcome: Outcome) -> str:
    settings = plan.settings
    faults = ", ".join(f"{kind} {count}" for kind, count in sorted(outcome.faults.items()))
    return (
        f"seed {plan.seed}: {settings.voters} voters, {settings.learners} learners, "
        f"{settings.clients} clients; {outcome.operations} operations (ok {outcome.ok}, fail "
        f"{outcome.fail}, unknown {outcome.info}); faults: {faults or 'none'}; "
        f"{outcome.virtual_s:.1f} virtual s, {outcome.steps} steps, {outcome.wall_s:.2f} s; "
        f"digest {outcome.digest}"
    )


def _violation_text(violation: Any) -> str:  # noqa: ANN401
    lines = [f"VIOLATION {violation.name} at {violation.at_s:.6f} s: {violation.text}"]
    lines += [f"    {key}: {value}" for key, value in violation.evidence.items()]
    return "\n".join(lines)


# --- many -----------------------------------------------------------------------------------------


def _many(arguments: argparse.Namespace) -> int:
    count = SEEDS_DEFAULT if arguments.seeds is None else arguments.seeds
    seeds = range(arguments.first, arguments.first + count)
    workloads = _workloads(arguments)
    runner = functools.partial(run_seed, fsync=not arguments.unsafe_no_fsync, workloads=workloads)
    began_s = time.monotonic()
    outcomes: list[Outcome] = []
    shown = 0
    for outcome in results(
        runner, seeds, jobs=arguments.jobs, wall_s=WALL_S, budget_s=arguments.budget
    ):
        outcomes.append(outcome)
        if outcome.violations and shown < SHOWN_MAX:
            shown += 1
            _report(outcome, arguments)
    summary = summarize(outcomes, time.monotonic() - began_s)
    if arguments.json:
        print(json.dumps(summary))
    else:
        for key, value in summary.items():
            print(f"{key:28} {value}")
    return 1 if summary["violations"] else 0


def _report(outcome: Outcome, arguments: argparse.Namespace) -> None:
    first = outcome.violations[0]
    print(f"seed {outcome.seed}: {_violation_text(first)}", file=sys.stderr)
    flags = f" --workload {arguments.workload}" if arguments.workload else ""
    flags += " --unsafe-no-fsync" if arguments.unsafe_no_fsync else ""
    print(
        f"  replay: python -m jepsen_like simulate --seed {outcome.seed}{flags}",
        file=sys.stderr,
        flush=True,
    )


def summarize(outcomes: Iterable[Outcome], wall_s: float) -> dict[str, Any]:
    """The numbers of many seeds."""
    all_of_them = sorted(outcomes, key=lambda outcome: outcome.seed)
    faults: dict[str, int] = {}
    notes: dict[str, int] = {}
    names: dict[str, int] = {}
    for outcome in all_of_them:
        for kind, count in outcome.faults.items():
            faults[kind] = faults.get(kind, 0) + count
        for kind, count in outcome.notes.items():
            notes[kind] = notes.get(kind, 0) + count
        for name in dict.fromkeys(violation.name for violation in outcome.violations):
            names[name] = names.get(name, 0) + 1
    virtual_s = sum(outcome.virtual_s for outcome in all_of_them)
    cpu_s = sum(outcome.wall_s for outcome in all_of_them)
    return {
        "seeds": len(all_of_them),
        "violations": sum(len(outcome.violations) for outcome in all_of_them),
        "violations_by_name": dict(sorted(names.items())),
        "failing_seeds": [outcome.seed for outcome in all_of_them if outcome.violations],
        "virtual_seconds": round(virtual_s, 1),
        "steps": sum(outcome.steps for outcome in all_of_them),
        "operations": {
            "ok": sum(outcome.ok for outcome in all_of_them),
            "fail": sum(outcome.fail for outcome in all_of_them),
            "info": sum(outcome.info for outcome in all_of_them),
        },
        "operations_median": _median(outcome.operations for outcome in all_of_them),
        "faults": dict(sorted(faults.items())),
        "faults_median": _median(outcome.fault_count for outcome in all_of_them),
        "skipped_faults": sum(outcome.skipped for outcome in all_of_them),
        "notes": dict(sorted(notes.items())),
        "checked": add_up_all(all_of_them),
        "wall_s": round(wall_s, 2),
        "seconds_per_seed": round(cpu_s / max(len(all_of_them), 1), 3),
        "virtual_seconds_per_wall_second": round(virtual_s / max(wall_s, 1e-9), 1),
    }


def _median(numbers: Iterable[int]) -> float:
    found = list(numbers)
    return float(statistics.median(found)) if found else 0.0
