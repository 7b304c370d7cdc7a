"""``python -m jepsen_like check``: judge a history that was stored before."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import msgspec

from jepsen_like.edn import write_edn
from jepsen_like.errors import UsageError
from jepsen_like.history import read_history
from jepsen_like.verdict import Validity, Verdict
from jepsen_like.workloads.registry import WORKLOADS, make


def add_to(commands: Any) -> None:  # noqa: ANN401  argparse's type has no public name
    """Add ``check``."""
    text = __doc__ or ""
    parser: argparse.ArgumentParser = commands.add_parser(
        "check",
        help="judge a stored history",
        description=text,
        epilog="exit status: 0 valid, 1 invalid, 3 unknown, 2 a wrong call or no history",
    )
    parser.add_argument("history", metavar="HISTORY.jsonl", help="events, one JSON object a line")
    parser.add_argument(
        "--workload", required=True, help=f"whose checker: of {', '.join(WORKLOADS)}, or a,b"
    )
    parser.add_argument("--edn", metavar="FILE", help="write the history as EDN, too")
    parser.add_argument("--picture", metavar="FILE", help="write an SVG of the counterexample")
    parser.add_argument("--json", action="store_true", help="the verdict as one JSON object")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the verdict; returns the exit status."""
    workload = make(arguments.workload)
    history = list(read_history(arguments.history))
    verdict = workload.check(history)
    if arguments.edn:
        write_edn(arguments.edn, history)
    if arguments.picture and verdict.picture:
        try:
            Path(arguments.picture).write_text(verdict.picture, encoding="utf-8")
        except OSError as error:
            raise UsageError(f"{arguments.picture}: {error.strerror or error}") from error
    if arguments.json:
        shown = {
            "valid": verdict.valid,
            "workload": arguments.workload,
            "events": len(history),
            "problems": verdict.problems,
            "facts": verdict.facts,
            "picture": arguments.picture if verdict.picture else None,
        }
        print(msgspec.json.encode(shown).decode())
    else:
        print(_told(verdict, arguments, len(history)))
    return status(verdict.valid)


def status(valid: Validity) -> int:
    """The exit status that says so."""
    if valid == "unknown":
        return 3
    return 0 if valid else 1


def _told(verdict: Verdict, arguments: argparse.Namespace, events: int) -> str:
    word = ("valid", "INVALID", "", "unknown")[status(verdict.valid)]
    lines = [f"{arguments.history}: {word} ({verdict.checker}, {events} events)"]
    lines += [f"  - {problem}" for problem in verdict.problems]
    facts = ", ".join(f"{name} {value}" for name, value in verdict.facts.items())
    lines.append(f"  {facts}")
    if arguments.picture:
        lines.append(
            f"  picture: {arguments.picture}" if verdict.picture else "  there is nothing to draw"
        )
    return "\n".join(lines)
