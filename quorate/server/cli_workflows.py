"""``quorate workflows``: look at workflows, follow one, cancel one, tell one what it waits for."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, cast

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from quorate.base.task_specs import DONE, STATE_NAMES
from quorate.base.workflow_commands import (
    WF_DONE,
    WORKFLOW_STATE_NAMES,
    NodeInfo,
    WorkflowEvent,
    WorkflowInfo,
)
from quorate.client.coordinator_tables import read_result
from quorate.client.workflows import ENDS, Run, State
from quorate.errors import TaskPendingError, WorkflowNotFoundError
from quorate.server.cli_common import (
    Exit,
    Target,
    client_command,
    emit,
    opened,
    say,
    shown,
)
from quorate.server.cli_tasks import given_value
from quorate.server.cli_views import columns

app = typer.Typer(no_args_is_help=True, help="Look at workflows, follow, cancel and signal them.")

WorkflowArgument = Annotated[
    int, typer.Argument(metavar="WORKFLOW", min=1, max=2**63 - 1, help="Its id.")
]


async def list_(
    target: Target,
    *,
    state: Annotated[
        str, typer.Option("--state", help=f"One of {', '.join(WORKFLOW_STATE_NAMES[1:])}.")
    ] = "",
    limit: Annotated[int, typer.Option("--limit", min=1, help="At most so many.")] = 1_000,
) -> Exit:
    """Print workflows by id, with how many of their nodes have ended."""
    rows: list[tuple[str, ...]] = []
    async with opened(target) as db:
        async for info in db.workflows.list(cast("State", state) if state else None):
            if target.json:
                emit(_fields(info))
            rows.append(_row(info))
            if len(rows) >= limit:
                break
    if rows and not target.json:
        say("\n".join(columns([("workflow", "name", "state", "ended", "cause"), *rows])))
    return Exit.OK


def _row(info: WorkflowInfo) -> tuple[str, ...]:
    return (
        str(info.workflow),
        shown(info.name.encode()),
        WORKFLOW_STATE_NAMES[info.state],
        f"{info.done + info.dead + info.cancelled}/{info.total}",
        shown(info.cause.encode()),
    )


def _fields(info: WorkflowInfo) -> dict[str, Any]:
    return {
        "workflow": info.workflow,
        "name": info.name,
        "state": WORKFLOW_STATE_NAMES[info.state],
        "nodes": info.total,
        "done": info.done,
        "dead": info.dead,
        "cancelled": info.cancelled,
        "cause": info.cause,
        "started_ms": info.started_ms,
        "ended_ms": info.ended_ms,
    }


async def show(
    target: Target,
    workflow: WorkflowArgument,
    *,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Until it has ended, with a progress bar.")
    ] = False,
) -> Exit:
    """Print WORKFLOW and its nodes; with --follow, how it goes on until it has ended. Exit status 4
    if it is not known, or if it was followed and has not ended well."""
    async with opened(target) as db:
        run = db.workflows.run(workflow)
        try:
            if follow:
                await _follow(run, as_json=target.json)
            info, nodes = await run.info(), await run.nodes()
        except WorkflowNotFoundError as error:
            emit({"workflow": None}) if target.json else sys.stderr.write(f"quorate: {error}\n")
            return Exit.NO
    _print(info, nodes, as_json=target.json)
    return Exit.NO if follow and info.state != WF_DONE else Exit.OK


def _print(info: WorkflowInfo, nodes: dict[str, NodeInfo], *, as_json: bool) -> None:
    if as_json:
        names = {each.task: each.name for each in nodes.values()}
        emit(_fields(info) | {"tasks": [_node(each, names) for each in nodes.values()]})
        return
    say("\t".join(_row(info)).rstrip())
    rows = [("node", "task", "state", "attempt", "error")]
    for each in nodes.values():
        error = (each.error or each.error_kind).partition("\n")[0]
        state = STATE_NAMES[each.state]
        rows.append((shown(each.name.encode()), str(each.task), state, str(each.attempt),
                     shown(error.encode())))  # fmt: skip
    say("\n".join(columns(rows)))


def _node(node: NodeInfo, names: dict[int, str]) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "node": node.name,
        "task": node.task,
        "state": STATE_NAMES[node.state],
        "attempt": node.attempt,
        "after": [names.get(each, "") for each in node.after],
    }
    if node.state == DONE:
        result = read_result(node.result)
        fields["result"] = repr(result) if isinstance(result, bytes) else result
    if node.error or node.error_kind:
        fields |= {"kind": node.error_kind, "error": node.error}
    return fields


async def _follow(run: Run, *, as_json: bool) -> None:
    if as_json:
        async for event in run.progress():
            emit(_event(event))
        return
    with _bar() as draw:
        async for event in run.progress():
            draw(event)


def _event(event: WorkflowEvent) -> dict[str, Any]:
    return {
        "what": event.what,
        "workflow": event.workflow,
        "nodes": event.total,
        "done": event.done,
        "dead": event.dead,
        "cancelled": event.cancelled,
    }


@contextmanager
def _bar() -> Iterator[Any]:
    console = Console(stderr=True)
    parts = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(),
             TimeElapsedColumn())  # fmt: skip
    with Progress(*parts, console=console, auto_refresh=False) as progress:
        task = progress.add_task("", total=None)

        def draw(event: WorkflowEvent) -> None:
            ended = event.done + event.dead + event.cancelled
            state = event.what if event.what in ENDS else f"{ended} of {event.total}"
            name = shown(event.name.encode()).replace("[", "\\[")
            progress.update(task, description=f"{name} {state}", total=event.total, completed=ended)
            progress.refresh()

        yield draw


async def cancel(
    target: Target,
    workflow: WorkflowArgument,
    *,
    undo: Annotated[bool, typer.Option("--undo", help="And undo what was done.")] = False,
    wait: Annotated[
        float, typer.Option("--wait", min=0.0, help="For its end, so many seconds at most.")
    ] = 0.0,
) -> Exit:
    """Cancel all of WORKFLOW that has not ended. Exit status 4 if it has ended, or is ending, or is
    not known."""
    async with opened(target) as db:
        run, done = db.workflows.run(workflow), False
        try:
            done = await run.cancel(undo=undo)
            if wait and done:
                await run.wait(timeout=wait)
        except WorkflowNotFoundError as error:
            emit({"cancelled": False}) if target.json else sys.stderr.write(f"quorate: {error}\n")
            return Exit.NO
        except TaskPendingError as error:
            sys.stderr.write(f"quorate: {error}\n")
    if target.json:
        emit({"cancelled": done})
    elif not done:
        sys.stderr.write(f"quorate: workflow {workflow} has ended, or is ending\n")
    return Exit.OK if done else Exit.NO


async def signal(
    target: Target,
    workflow: WorkflowArgument,
    node: Annotated[str, typer.Argument(help="The node that waits for it.")],
    value: Annotated[
        str, typer.Argument(help="What is said, as JSON; what is no JSON is a text.")
    ] = "null",
) -> Exit:
    """Say what NODE of WORKFLOW waits for. Exit status 4 if it has been said before, or the
    workflow has ended or is not known."""
    async with opened(target) as db:
        try:
            new = await db.workflows.run(workflow).signal(node, given_value(value))
        except WorkflowNotFoundError as error:
            emit({"signalled": False}) if target.json else sys.stderr.write(f"quorate: {error}\n")
            return Exit.NO
    if target.json:
        emit({"signalled": new})
    elif not new:
        sys.stderr.write("quorate: it has been said before, or the workflow has ended\n")
    return Exit.OK if new else Exit.NO


app.command("list")(client_command(list_))
app.command("show")(client_command(show))
app.command("cancel")(client_command(cancel))
app.command("signal")(client_command(signal))
