"""The command line: ``python -m jepsen_like COMMAND``. Each command is a module of its own."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import Any, Final, Protocol

from jepsen_like.errors import JepsenLikeError

#: Modules of commands, in the order of the help text.
COMMANDS: Final[tuple[str, ...]] = (
    "jepsen_like.simulation.command",
    "jepsen_like.processes.command",
    "jepsen_like.check_command",
    "jepsen_like.mutants.command",
    "jepsen_like.systems.pysyncobj.command",
)


class Command(Protocol):
    """What each of these modules has."""

    def add_to(self, commands: Any) -> None:  # noqa: ANN401  argparse's type has no public name
        """Add a parser with ``set_defaults(run=...)``: a function of the parsed arguments that
        returns the exit status: 0, or 1 if the system under test broke a promise."""
        ...


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that *arguments* ask for; returns the exit status, 2 for a wrong call."""
    parser = argparse.ArgumentParser(prog="python -m jepsen_like", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name in COMMANDS:
        command: Command = importlib.import_module(name)
        command.add_to(commands)
    parsed = parser.parse_args(arguments)
    try:
        status: int = parsed.run(parsed)
    except JepsenLikeError as error:
        print(f"jepsen_like: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return status
