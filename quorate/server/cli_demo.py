"""``quorate demo``: the run of ``demo``, with a live table for people and JSON for programs."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from quorate.server.cli_common import Exit, JsonOption, emit, run
from quorate.server.demo import Demo, DemoReport
from quorate.server.texts import default_texts, text_files

REFRESH_S = 0.1
EVENTS_SHOWN = 12
_BAR_COLUMNS = 28


def demo(
    *,
    input_: Annotated[
        Path | None, typer.Option("--input", help="Any text file or directory.")
    ] = None,
    kills: Annotated[int, typer.Option("--kills", min=0, help="Leaders to kill.")] = 1,
    json: JsonOption = False,
) -> int:
    """See it keep its promise: three node processes on this machine, each line of a text written
    as a key, the leader killed with SIGKILL on the way, everything read back through each node.

    Without --input it takes text that ships with Python. Exit status 0 only if nothing was lost.
    """
    files = text_files(input_) if input_ is not None else default_texts()
    report = run(_demo(files, kills, as_json=json))
    if report is None:
        return Exit.INTERRUPTED
    if json:
        emit(_as_json(report))
    return Exit.OK if report.passed else Exit.FAILED


def _as_json(report: DemoReport) -> dict[str, object]:
    return {name: getattr(report, name) for name in report.__struct_fields__}


async def _demo(files: list[Path], kills: int, *, as_json: bool) -> DemoReport | None:
    demo_run = Demo(files, kills=kills)
    running = asyncio.ensure_future(demo_run.run())
    loop = asyncio.get_running_loop()
    for each in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        # Otherwise the end of this process would leave three nodes behind.
        loop.add_signal_handler(each, running.cancel)
    console = Console()
    try:
        if as_json or not console.is_terminal:
            report = await running
        else:
            report = await _show_live(console, demo_run, running)
    except asyncio.CancelledError:
        return None
    if not as_json:
        console.print(_summary(report))
    if not report.passed:
        sys.stderr.write(f"quorate: {demo_run.state.events[-1]}\n")
    return report


async def _show_live(
    console: Console, demo_run: Demo, running: asyncio.Future[DemoReport]
) -> DemoReport:
    with Live(console=console, auto_refresh=False, transient=False) as live:
        while not running.done():
            live.update(_render(demo_run), refresh=True)
            await asyncio.wait((running,), timeout=REFRESH_S)
        live.update(_render(demo_run), refresh=True)
    return await running


# --- what a person sees ---------------------------------------------------------------------------


def _render(demo_run: Demo) -> Group:
    state = demo_run.state
    total = max(1, state.keys)
    rate = state.acknowledged / state.writing_s if state.writing_s > 0 else 0.0
    written = Text(f" {state.acknowledged:,} of {state.keys:,}, {rate:,.0f} per s")
    reading = total * max(1, len(demo_run.nodes))
    checked = Text(f" {state.checked:,} read, linearizably")
    grid = Table.grid(padding=(0, 1))
    grid.add_row("written", ProgressBar(total, state.acknowledged, _BAR_COLUMNS), written)
    grid.add_row("verified", ProgressBar(reading, state.checked, _BAR_COLUMNS), checked)
    return Group(
        Text("quorate demo: ", style="bold") + Text(state.phase, style="cyan"),
        _nodes(demo_run),
        grid,
        *map(Text, state.events[-EVENTS_SHOWN:]),
    )


def _nodes(demo_run: Demo) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("node", "address", "process", "state", "term", "keys", "log index"):
        table.add_column(name, justify="left" if name in ("address", "state") else "right")
    for number, node in demo_run.nodes.items():
        status = demo_run.state.nodes.get(number) or {}
        if number == demo_run.state.killed and not node.running:
            state, style = "killed", "bold red"
        elif not status:
            state, style = "starting", "yellow"
        else:
            state = str(status.get("role", "?"))
            style = "bold green" if state == "leader" else ""
        table.add_row(
            str(number),
            node.endpoint,
            str(node.pid or "-"),
            Text(f"{state:<10}", style=style),
            str(status.get("term", "-")),
            f"{status['keys']:,}" if "keys" in status else "-",
            f"{status['applied']:,}" if "applied" in status else "-",
        )
    return table


def _summary(report: DemoReport) -> Text:
    text = Text()
    if report.passed:
        text.append("Nothing lost. ", style="bold green")
    else:
        text.append("FAILED. ", style="bold red")
    pauses = ", ".join(f"{pause:.0f} ms" for pause in report.failover_ms) or "none"
    text.append(
        f"{report.acknowledged:,} of {report.keys:,} keys ({report.lines:,} lines) acknowledged at "
        f"{report.puts_per_s:,.0f} per second, {report.lost:,} lost; leaders killed: "
        f"{report.leader_kills}, back to writing after: {pauses}; every node "
        f"{'holds exactly' if report.verified else 'DIFFERS from'} what was written. "
        f"{report.seconds:.1f} s in all."
    )
    return text
