"""The tree of commands, and how one command line becomes an exit status."""

from __future__ import annotations

import functools
import platform
import sys
from collections.abc import Callable, Sequence
from typing import Any

import typer

from quorate.base.version import VERSION
from quorate.server import (
    cli_certs,
    cli_crdt,
    cli_demo,
    cli_kv,
    cli_lease,
    cli_lock,
    cli_machines,
    cli_members,
    cli_rescue,
    cli_schedules,
    cli_serve,
    cli_status,
    cli_tasks,
    cli_views,
    cli_watch,
    cli_worker,
    cli_workflows,
)
from quorate.server.cli_common import Exit, JsonOption, emit, say

HELP = """A replicated key-value store that keeps its promises: run nodes, tend them, use them.

Commands that talk to a cluster find it by --endpoints or QUORATE_ENDPOINTS. Exit status: 0 done,
1 failed and nothing happened, 2 wrong arguments or configuration, 3 the outcome is unknown,
4 the answer is no, 5 the node's data or disk is damaged, 6 the lock or leadership under which a
command ran was lost, 70 a bug in quorate.
"""

app = typer.Typer(
    help=HELP, no_args_is_help=True, add_completion=False, rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip
app.command("serve")(cli_serve.serve)
app.command("status")(cli_status.status)
app.add_typer(cli_kv.app, name="kv")
app.command("watch")(cli_watch.command)
app.add_typer(cli_crdt.app, name="crdt")
cli_crdt.app.command("rescue")(cli_rescue.command)
app.command("lock")(cli_lock.lock_command)
app.command("elect")(cli_lock.elect_command)
app.command("locks")(cli_lock.locks_command)
app.add_typer(cli_lease.app, name="lease")
app.add_typer(cli_tasks.app, name="tasks")
cli_views.add_commands(cli_tasks.app)
app.add_typer(cli_workflows.app, name="workflows")
app.add_typer(cli_schedules.app, name="schedules")
app.command("worker")(cli_worker.worker_command)
app.add_typer(cli_members.app, name="members")
app.command("transfer-leader")(cli_members.transfer_leader)
app.command("snapshot")(cli_members.snapshot)
app.command("upgrade")(cli_machines.upgrade)
app.add_typer(cli_certs.app, name="certs")
app.command("demo")(cli_demo.demo)


@app.command("version")
def version(*, json: JsonOption = False) -> None:
    """Print the version."""
    if json:
        emit({"quorate": VERSION, "python": platform.python_version()})
    else:
        say(f"quorate {VERSION} (Python {platform.python_version()})")


@functools.cache
def _built() -> Callable[..., Any]:
    """The tree, ready to parse: 30 ms of work, and the same for every command line."""
    return typer.main.get_command(app)


def dispatch(arguments: Sequence[str]) -> int:
    """Run one command line.

    Raises:
        QuorateError: what the command could not do.
    """
    try:
        result: Any = _built()(list(arguments), prog_name="quorate", standalone_mode=False)
    except RuntimeError as error:
        if type(error).__name__ != "Abort":  # not the same class in all versions of typer
            raise
        return Exit.INTERRUPTED
    except Exception as error:
        # Wrong usage. Its class has no public name that all versions of typer share.
        if not hasattr(error, "format_message"):
            raise
        text, context = str(error.format_message()), getattr(error, "ctx", None)
        if type(error).__name__ == "NoArgsIsHelpError":
            sys.stderr.write(f"{text}\n")
        else:
            path = context.command_path if context is not None else "quorate"
            sys.stderr.write(
                f"quorate: {' '.join(text.split()).rstrip('.')}; see `{path} --help`\n"
            )
        return Exit.USAGE
    return result if isinstance(result, int) else Exit.OK
