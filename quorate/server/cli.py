"""Entry point of the ``quorate`` command: what went wrong is one line, never a traceback."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

from quorate.errors import QuorateError

#: Packages of the extra ``cli``.
_EXTRA = ("typer", "rich", "click", "shellingham")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit status (see ``cli_common.Exit``)."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        app = importlib.import_module("quorate.server.cli_app")
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in _EXTRA:
            raise
        sys.stderr.write(
            f"quorate: the command line needs {error.name}; install it with: "
            "pip install 'quorate[cli]'\n"
        )
        return 1
    try:
        return int(app.dispatch(arguments))
    except BrokenPipeError:
        # Whoever read our output has gone, as `head` does; the interpreter must not complain
        # about the flush at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130
    except QuorateError as error:
        common = importlib.import_module("quorate.server.cli_common")
        return int(common.report_error(error, as_json="--json" in arguments))
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        sys.stderr.write(f"quorate: {where}{error.strerror or error}\n")
        return 1
