"""``python -m jepsen_like pysyncobj``: many seeds, and every promise broken in any of them, with
evidence. ``simulate --system pysyncobj`` is the same, and so is ``run --system pysyncobj`` without
a workload."""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import importlib.util
import json
from typing import Any, Final

from jepsen_like.errors import SetupError, UsageError

SEEDS_DEFAULT: Final = 100


def add_to(commands: Any) -> None:  # noqa: ANN401  argparse's type has no public name
    """Add the parser of ``pysyncobj``."""
    text = "PySyncObj's members on virtual time under drawn faults; each broken promise by name"
    parser = commands.add_parser("pysyncobj", help=text, description=text)
    parser.add_argument("--seeds", type=int, help=f"how many, from 0 on [{SEEDS_DEFAULT}]")
    parser.add_argument("--seed", type=int, help="this one only; it runs the same every time")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.set_defaults(run=run)


def missing() -> str:
    """Why it cannot run here and how to mend that; "" if it can."""
    if importlib.util.find_spec("pysyncobj") is None:
        return "PySyncObj is not installed: pip install 'quorate[bench]'"
    return ""


def run(arguments: argparse.Namespace) -> int:
    """Run as *arguments* say; the exit status is 1 if any promise was broken.

    Raises:
        SetupError: the library is not installed.
        UsageError: an argument means nothing.
    """
    if reason := missing():
        raise SetupError(reason)
    count = SEEDS_DEFAULT if arguments.seeds is None else arguments.seeds
    if count < 1:
        raise UsageError("--seeds must be above 0")
    seeds = range(count) if arguments.seed is None else [arguments.seed]
    search = importlib.import_module("jepsen_like.systems.pysyncobj.search")
    result: dict[str, Any] = search.find_defects(seeds)
    if arguments.json:
        print(json.dumps(result))
    else:
        _show(result)
    return 0 if result["valid"] else 1


def _show(result: dict[str, Any]) -> None:
    words = "no promise broken" if result["valid"] else "INVALID"
    print(
        f"pysyncobj {result['version']}: {words}; {result['seeds']} seeds, "
        f"{result['virtual_seconds']:g} virtual seconds in {result['wall_s']} s"
    )
    print(f"  operations: {_counts(result['operations'])}; faults: {_counts(result['faults'])}")
    for violation in result["violations"]:
        evidence = violation["evidence"]
        print(
            f"  {violation['name']}: {violation['count']} times in {violation['seeds']} seeds; "
            f"first in seed {violation['first_seed']} at {evidence['time_s']:.3f} s"
        )
        print(f"    {evidence['text']}")
    if not result["valid"] and result["seeds"] > 1:
        seed = result["violations"][0]["first_seed"]
        print(f"  all evidence of a seed: python -m jepsen_like pysyncobj --seed {seed} --json")


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items()) or "none"
