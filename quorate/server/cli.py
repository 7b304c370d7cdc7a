"""Entry point of the ``quorate`` command: what went wrong is one line, never a traceback."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Sequence

from quorate.errors import QuorateError

INTERNAL = 70  # EX_SOFTWARE of sysexits.h: a bug; what was under way may have happened
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
    except Exception as error:  # noqa: BLE001  # the last resort
        return _give_up(error)


def _give_up(error: BaseException) -> int:
    """The status after an error that no command foresaw."""
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        sys.stderr.write(f"quorate: {where}{error.strerror or error}\n")
        return 1
    text = " ".join(f"{type(error).__name__}: {error}".split())
    sys.stderr.write(
        f"quorate: a bug in quorate, please report it: {text} (QUORATE_LOG_LEVEL=debug shows "
        "where)\n"
    )
    if os.environ.get("QUORATE_LOG_LEVEL", "").lower() == "debug":
        traceback.print_exception(error, file=sys.stderr)
    return INTERNAL
