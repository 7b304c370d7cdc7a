"""``python -m jepsen_like run``: a workload against real processes under faults."""

from __future__ import annotations

import argparse
import asyncio
import importlib
import json
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from shutil import rmtree
from typing import Any, Final

from jepsen_like.errors import SetupError, UsageError
from jepsen_like.history import write_history
from jepsen_like.processes.crew import Crew, staffed
from jepsen_like.processes.nemesis.schedule import PACKAGES, packages
from jepsen_like.processes.nemesis.workers import Workers
from jepsen_like.processes.nodes import all_ended
from jepsen_like.processes.report import Run, write_report
from jepsen_like.processes.runner import Outcome, Runner, Settings
from jepsen_like.systems.registry import ON_VIRTUAL_TIME, SYSTEMS, system_class
from jepsen_like.systems.system import System
from jepsen_like.workloads.base import Workload

VALID, INVALID, UNKNOWN = 0, 1, 3
RUNS_DIRECTORY: Final = "jepsen-runs"
#: Facts of a run with tasks that stand in the result by themselves.
_COUNTED: Final = {
    "lost": "lost",
    "duplicated_completions": "duplicated_completions",
    "unexpected": "unexpected",
    "redeliveries": "redelivered",
}


def add_to(commands: Any) -> None:  # noqa: ANN401  argparse's type has no public name
    """Add the parser of ``run``."""
    parser = commands.add_parser("run", help=__doc__, description=__doc__)
    settings = Settings()
    parser.add_argument(
        "--workload",
        help="what clients do, and what must hold, one or a,b; may be left out for "
        f"{', '.join(ON_VIRTUAL_TIME)}, which then runs on virtual time",
    )
    parser.add_argument(
        "--nemesis", default="none", help=f"faults: some of {','.join(PACKAGES)}, or all, or none"
    )
    parser.add_argument(
        "--system",
        default="quorate",
        help=f"one of {', '.join(dict.fromkeys((*SYSTEMS, *ON_VIRTUAL_TIME)))}",
    )
    parser.add_argument("--nodes", type=int, default=3, help="how many [3]")
    for name, what in (
        ("seconds", "how long faults last"),
        ("interval-s", "seconds between two strikes of a package, on average"),
        ("timeout-s", "deadline of one operation"),
    ):
        default = getattr(settings, name.replace("-", "_"))
        text = f"{what} [{default:g}]"
        parser.add_argument(f"--{name}", type=type(default), default=default, help=text)
    text = f"operations per second, of all clients together [{settings.rate:g}, less for tasks]"
    parser.add_argument("--rate", type=float, help=text)
    text = f"clients at a time [as the workload needs, mostly {settings.workers}]"
    parser.add_argument("--workers", type=int, help=text)
    parser.add_argument("--seed", type=int, help="of what is drawn; timing is not repeated")
    parser.add_argument("--seeds", type=int, help="how many, of a system on virtual time")
    parser.add_argument(
        "--unsafe-no-fsync",
        action="store_true",
        help="without --workload: quorate on virtual time, on disks that never sync, which must "
        "fail; real kills lose nothing that the kernel holds",
    )
    parser.add_argument(
        "--unsafe-workers",
        action="store_true",
        help="a positive control: workers say that a task is done before it has run",
    )
    parser.add_argument("--out", help=f"directory of the results [{RUNS_DIRECTORY}/TIME-WORKLOAD]")
    parser.add_argument("--keep", action="store_true", help="keep data and logs of a valid run too")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run as *arguments* say; the exit status is 0 if valid, 1 if not, 3 if unknown."""
    if arguments.unsafe_no_fsync:
        return _unsafe(arguments)
    if arguments.workload is None:
        if arguments.system not in ON_VIRTUAL_TIME:
            raise UsageError(f"--workload is missing; there are {', '.join(_workloads())}")
        status: int = importlib.import_module(ON_VIRTUAL_TIME[arguments.system]).run(arguments)
        return status
    workload = _workload(arguments.workload)
    staff = staffed(workload)
    if arguments.unsafe_workers and not staff:
        raise UsageError(f"--unsafe-workers: workload {workload.name} has no workers of tasks")
    if arguments.rate is None:
        rates = [getattr(each, "rate", Settings().rate) for each in staff]
        arguments.rate = min(rates, default=Settings().rate)
    if arguments.workers is None:
        arguments.workers = getattr(workload, "workers", Settings().workers)
    for name in ("seconds", "workers", "rate", "interval_s", "timeout_s", "nodes"):
        if getattr(arguments, name) <= 0:
            raise UsageError(f"--{name.replace('_', '-')} must be above 0")
    settings = Settings(
        seconds=arguments.seconds,
        workers=arguments.workers,
        rate=arguments.rate,
        interval_s=arguments.interval_s,
        timeout_s=arguments.timeout_s,
        last_timeout_s=max((each.last_timeout_s for each in staff), default=0.0),
    )
    chosen = system_class(arguments.system)
    if missing := chosen.missing():
        raise SetupError(missing)
    seed = arguments.seed if arguments.seed is not None else int.from_bytes(os.urandom(4))
    out = _out_directory(arguments)
    data = Path(tempfile.mkdtemp(prefix="nodes-", dir=out))
    random = Random(seed)
    began_s = time.monotonic()
    with all_ended():
        system = chosen(data, count=arguments.nodes, timeout_s=settings.timeout_s, random=random)
        for each in staff:
            crew = Crew(
                each.name, data, lambda: [system.address(number) for number in system.nodes],
                timeout_s=settings.timeout_s, hasty=arguments.unsafe_workers,
            )  # fmt: skip
            system.crews.append(crew)
            each.staff(crew)
        strikes = packages(_nemesis(arguments.nemesis, system), system)
        outcome = asyncio.run(Runner(system, workload, strikes, random, settings).run())
    history, report = out / "history.jsonl", out / "report.html"
    write_history(history, outcome.history)
    result = _result(arguments, outcome, seed, time.monotonic() - began_s)
    result |= _of_tasks(result["checked"], system.crews)
    result |= {"history": str(history), "report": str(report)}
    write_report(report, Run(outcome=outcome, result=result, settings=settings))
    (out / "result.json").write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    if outcome.verdict.valid is True and not arguments.keep:
        rmtree(data, ignore_errors=True)
    _show(result, as_json=arguments.json)
    if outcome.verdict.valid == "unknown":
        return UNKNOWN
    return VALID if outcome.verdict.valid else INVALID


def _nemesis(names: str, system: System) -> str:
    """Where anything fails, workers do, too."""
    if not system.crews or names in ("", "none", "all") or Workers.name in names.split(","):
        return names
    return f"{names},{Workers.name}"


def _of_tasks(checked: Mapping[str, Any], crews: Sequence[Crew]) -> dict[str, int]:
    """What is told of tasks and their workers."""
    if not crews:
        return {}
    found = {ours: checked[theirs] for ours, theirs in _COUNTED.items() if theirs in checked}
    killed, stopped = sum(each.killed for each in crews), sum(each.stopped for each in crews)
    return {**found, "workers_killed": killed, "workers_stopped": stopped}


def _unsafe(arguments: argparse.Namespace) -> int:
    """The positive control, which needs a simulated disk."""
    if arguments.workload is not None or arguments.system != "quorate":
        raise UsageError(
            "--unsafe-no-fsync is for quorate on simulated disks, where a crash loses what was not "
            "synced: leave --workload out, or call python -m jepsen_like simulate --unsafe-no-fsync"
        )
    command = ["simulate", "--system", arguments.system, "--unsafe-no-fsync"]
    for name in ("seed", "seeds"):
        if getattr(arguments, name) is not None:
            command += [f"--{name}", str(getattr(arguments, name))]
    if arguments.json:
        command.append("--json")
    status: int = importlib.import_module("jepsen_like.cli").main(command)
    return status


def _result(
    arguments: argparse.Namespace, outcome: Outcome, seed: int, wall_s: float
) -> dict[str, Any]:
    return {
        "valid": outcome.verdict.valid,
        "workload": arguments.workload,
        "system": arguments.system,
        "nemesis": arguments.nemesis,
        "nodes": arguments.nodes,
        **outcome.counts,
        "faults": dict(sorted(outcome.faults.items())),
        "seconds": arguments.seconds,
        "wall_s": round(wall_s, 1),
        "recovery_s": round(outcome.recovery_s, 1),
        "seed": seed,
        "checked": _totals(outcome.parts[0].facts, {}),
        "violations": [
            {"name": part.checker, "evidence": list(part.problems)}
            for part in outcome.parts
            if part.valid is False
        ],
        "problems": list(outcome.verdict.problems),
    }


def _totals(facts: Mapping[str, Any], totals: dict[str, Any]) -> dict[str, Any]:
    """What checkers counted, all of them together; what holds, if it does for all."""
    for name, value in facts.items():
        if isinstance(value, Mapping):
            _totals(value, totals)
        elif isinstance(value, bool):
            totals[name] = value and totals.get(name, True)
        elif isinstance(value, int) and name != "problems":
            totals[name] = value + totals.get(name, 0)
    return totals


def _show(result: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(result))
        return
    words = {True: "valid", False: "INVALID"}.get(result["valid"], "unknown")
    print(f"{result['workload']} on {result['system']}: {words}")
    print(f"  {result['ok']} ok, {result['fail']} failed, {result['info']} unknown")
    faults = ", ".join(f"{count} {kind}" for kind, count in result["faults"].items())
    print(f"  faults: {faults or 'none'}; recovered in {result['recovery_s']} s")
    checked = ", ".join(f"{name} {value}" for name, value in result["checked"].items())
    print(f"  checked: {checked or 'nothing'}")
    for problem in result["problems"]:
        print(f"  - {problem}")
    print(f"  {result['report']}")


def _workloads() -> dict[str, Any]:
    known: dict[str, Any] = importlib.import_module("jepsen_like.workloads.registry").WORKLOADS
    return known


def _workload(name: str) -> Workload:
    made: Workload = importlib.import_module("jepsen_like.workloads.registry").make(name)
    return made


def _out_directory(arguments: argparse.Namespace) -> Path:
    if arguments.out:
        out = Path(arguments.out)
    else:
        stamp = time.strftime("%Y%m%d-%H%M%S")
        out = Path(RUNS_DIRECTORY) / f"{stamp}-{arguments.workload}-{os.getpid()}"
    out.mkdir(parents=True, exist_ok=True)
    return out.resolve()
