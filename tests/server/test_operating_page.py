"""docs/operating.md: each command on it exists with these options, and no setting is forgotten."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import msgspec
import pytest
import typer

from quorate.server import metrics
from quorate.server.cli_app import app
from quorate.server.cli_common import Exit
from quorate.server.config import SETTINGS, NodeConfig

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "operating.md").read_text("utf-8")


def commands() -> list[str]:
    fences = re.findall(r"^```sh\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    lines = [line for fence in fences for line in fence.splitlines()]
    inline = [found for found in re.findall(r"`(quorate [^`]+)`", PAGE) if " --" in found]
    return [line for line in lines + inline if line.startswith("quorate ")]


@pytest.mark.parametrize("line", commands())
def test_every_command_on_the_page_can_be_given(line: str) -> None:
    words = shlex.split(line)[1:]
    command = typer.main.get_command(app)
    while hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    command.make_context(command.name, words)  # raises if an option or argument is wrong


def test_the_page_has_commands() -> None:
    assert len(commands()) > 20


def test_every_setting_stands_on_the_page_with_its_default() -> None:
    for field in msgspec.structs.fields(NodeConfig):
        row = re.search(rf"^\|[^|]*`{field.name}`[^|]*\|([^|]*)\|", PAGE, re.MULTILINE)
        assert row is not None, f"{field.name} is not in the table"
        if isinstance(field.default, int | bool):
            assert row[1].strip(" `") == str(field.default).lower(), field.name
    assert len(SETTINGS) > 15


def test_every_exit_status_stands_on_the_page() -> None:
    for status in Exit:
        assert re.search(rf"^\| {status.value} \|", PAGE, re.MULTILINE), status


def test_every_metric_on_the_page_exists() -> None:
    fixed = {"alarms", "read_only", "loop_lag_seconds_max", "certificate_expiry_timestamp_seconds"}
    known = {*metrics.GAUGES, *fixed, *(f"{name}_total" for name in metrics.COUNTERS)}
    for name in re.findall(r"quorate_(\w+)", PAGE):
        assert name in known, name
