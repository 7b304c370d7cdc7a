"""``quorate status``: every member as it sees itself, live for people, once for programs."""

from __future__ import annotations

import asyncio
import ssl
from typing import Annotated, Any

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from quorate.base.frames import MemberInfo
from quorate.client.endpoints import Endpoint, parse_endpoint
from quorate.errors import QuorateError, UnavailableError
from quorate.server.cli_common import Exit, Target, client_command, emit
from quorate.server.one_node import OneNode

PROBE_TIMEOUT_S = 1.0  # of one node; a dead one must not hold up the table
WIDE_COLUMNS = 110
_ROLE_STYLES = {"leader": "bold green", "follower": "", "learner": "cyan", "candidate": "yellow"}

Report = dict[str, Any]


async def _status(
    target: Target,
    *,
    once: Annotated[bool, typer.Option("--once", help="Print the table once.")] = False,
    interval: Annotated[
        float, typer.Option("--interval", min=0.1, help="Seconds between looks.")
    ] = 1.0,
) -> Exit:
    """Show all members: who leads, who is behind, what is wrong.

    On a terminal the table stays and is refreshed until Ctrl-C. Exit status 1 if no node answers
    or none knows a leader.
    """
    context = target.ssl_context()
    report = await _look(target, context)
    if target.json:
        emit(report)
    else:
        console = Console()
        if once or not console.is_terminal:
            console.print(_render(report, narrow=_narrow(console)))
        else:
            await _live(console, target, context, interval)
            return Exit.OK
    return Exit.OK if report["leader"] else Exit.FAILED


status = client_command(_status)
status.__name__ = "status"


async def _live(
    console: Console, target: Target, context: ssl.SSLContext | None, interval: float
) -> None:
    with Live(console=console, auto_refresh=False, screen=False) as live:
        while True:
            try:
                report = await _look(target, context)
                live.update(_render(report, narrow=_narrow(console)), refresh=True)
            except UnavailableError as error:  # the cluster may come back
                live.update(Text(str(error), style="bold red"), refresh=True)
            await asyncio.sleep(interval)


async def _look(target: Target, context: ssl.SSLContext | None) -> Report:
    """One look at every member.

    Raises:
        UnavailableError: no endpoint answers.
    """
    members, cluster = await _members(target, context)
    asked = [_ask(member, target, context) for member in members]
    nodes: list[Report] = await asyncio.gather(*asked)
    best = max(nodes, key=lambda node: (node.get("term", -1), bool(node.get("leader"))))
    return {
        "cluster": cluster,
        "leader": best.get("leader", 0),
        "term": best.get("term", 0),
        "nodes": nodes,
    }


async def _members(
    target: Target, context: ssl.SSLContext | None
) -> tuple[tuple[MemberInfo, ...], str]:
    """The members and the cluster's id, from the endpoint that knows the newest term."""
    welcomes, problems = [], []
    for endpoint in target.places():
        try:
            async with await OneNode.open(endpoint, tls=context, timeout_s=PROBE_TIMEOUT_S) as node:
                welcomes.append(node.welcome)
        except QuorateError as error:
            problems.append(str(error))
    if not welcomes:
        raise UnavailableError(f"no node answers: {'; '.join(problems)}")
    best = max(welcomes, key=lambda welcome: (welcome.term, welcome.leader != 0))
    return best.members, best.cluster


async def _ask(member: MemberInfo, target: Target, context: ssl.SSLContext | None) -> Report:
    known = {"node": member.node, "address": member.address, "member": member.role}
    try:
        endpoint: Endpoint = parse_endpoint(member.address)
        opening = OneNode.open(
            endpoint, tls=context, timeout_s=min(PROBE_TIMEOUT_S, target.timeout)
        )
        async with await opening as node:
            found = await node.call("status", timeout_s=PROBE_TIMEOUT_S)
    except QuorateError as error:
        return {**known, "error": {"code": error.code, "message": str(error)}}
    return {**known, **found}


def _narrow(console: Console) -> bool:
    return console.width < WIDE_COLUMNS


#: Column: whether it is left out of a narrow terminal.
_COLUMNS = {
    "term": False, "applied": False, "behind": False, "keys": False, "clients": True,
    "log": True, "store": True, "memory": False, "up": False,
}  # fmt: skip


def _render(report: Report, *, narrow: bool) -> Group:
    leader = report["leader"]
    title = Text(f"cluster {report['cluster']}, term {report['term']}, ")
    if leader:
        title.append(f"node {leader} leads", style="bold green")
    else:
        title.append("no leader", style="bold red")
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("node", justify="right")
    table.add_column("address", no_wrap=True)
    table.add_column("role", no_wrap=True)
    columns = [name for name, wide in _COLUMNS.items() if not (wide and narrow)]
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    newest = max((node.get("commit", 0) for node in report["nodes"]), default=0)
    notes = []
    for node in report["nodes"]:
        role, cells = _cells(node, newest)
        shown = [cells.get(name, "") for name in columns]
        table.add_row(str(node["node"]), Text(node["address"]), role, *shown)
        notes += [Text(f"node {node['node']}: {note}", style="yellow") for note in _notes(node)]
    return Group(title, table, *notes)


def _cells(node: Report, newest: int) -> tuple[Text, dict[str, str]]:
    """The role, and the other cells by column."""
    if "error" in node:
        return Text("no answer", style="bold red"), {}
    role = node["role"] if node["member"] == "voter" else node["member"]
    return Text(role, style=_ROLE_STYLES.get(role, "")), {
        "term": str(node["term"]),
        "applied": f"{node['applied']:,}",
        "behind": f"{max(0, newest - node['applied']):,}",
        "keys": f"{node['keys']:,}",
        "clients": str(node["clients"]),
        "log": _size(node["log_bytes"]),
        "store": _size(node["store_bytes"]),
        "memory": _size(node["resident_bytes"]),
        "up": _duration(node["uptime_s"]),
    }


def _notes(node: Report) -> list[str]:
    if "error" in node:
        return [node["error"]["message"]]
    found = [f"ALARM: {alarm}" for alarm in node["alarms"]]
    if node["read_only"]:
        found.append(f"read-only: {node['read_only']}")
    return found + [
        f"cannot reach node {other}: {text}" for other, text in node["problems"].items()
    ]


def _size(size_bytes: int) -> str:
    size = float(size_bytes)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


def _duration(seconds: float) -> str:
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02}m"
