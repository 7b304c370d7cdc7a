"""``python -m jepsen_like mutants``: whether the kit finds bugs that are put in on purpose."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

from jepsen_like.errors import UsageError
from jepsen_like.mutants.registry import MUTANTS, ROOMS
from jepsen_like.mutants.running import Catch, Report, hunt


def add_to(commands: Any) -> None:  # noqa: ANN401  argparse's type has no public name
    """See ``jepsen_like.cli.Command``."""
    parser = commands.add_parser("mutants", help="bugs put in on purpose: are all of them found?")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these, or rooms")
    parser.add_argument("--list", action="store_true", help="say what there is, and run nothing")
    parser.add_argument("--jobs", type=int, default=2, help="processes (default 2)")
    parser.add_argument("--json", action="store_true", help="the result as one line of JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """0: all were caught, and the product as it is broke nothing on the same seeds."""
    chosen = _chosen(arguments.only)
    if arguments.list:
        _list(chosen)
        return 0
    report = hunt(chosen, jobs=arguments.jobs)
    if arguments.json:
        print(json.dumps(report.summary()))
    else:
        _print(report)
    for failure in report.failures():
        print(f"without any bug: {failure}", file=sys.stderr)
    return 0 if report.good else 1


def _chosen(names: list[str] | None) -> list[int]:
    places = {mutant.name: [at] for at, mutant in enumerate(MUTANTS)}
    for room, mutants in ROOMS.items():
        places[room] = [at for mutant in mutants for at in places[mutant.name]]
    unknown = [name for name in names or () if name not in places]
    if unknown:
        raise UsageError(f"no mutants {unknown}; --list names them all")
    chosen = [at for name in names or ROOMS for at in places[name]]
    return list(dict.fromkeys(chosen))


def _list(chosen: Sequence[int]) -> None:
    names = {MUTANTS[at].name: None for at in chosen}
    for room, mutants in ROOMS.items():
        listed = [mutant for mutant in mutants if mutant.name in names]
        if listed:
            print(f"{room}:")
        for mutant in listed:
            print(f"  {mutant.name:32} {mutant.bug} ({mutant.source})")


def _print(report: Report) -> None:
    for catch in report.catches:
        print(_line(catch))
    print(
        f"{report.caught} of {len(report.catches)} caught in {report.seeds_total} seeds; without "
        f"a bug, {report.unmutated_violations} violations in {len(report.unmutated)} of them; "
        f"{report.wall_s:.0f} s"
    )


def _line(catch: Catch) -> str:
    caught = f"seed {catch.seed:3}  {catch.caught_by}" if catch.seed else "NOT CAUGHT"
    return f"{catch.name:32} {catch.profile:18} of {catch.budget:3} seeds: {caught}"
