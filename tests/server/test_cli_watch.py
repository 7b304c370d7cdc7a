"""``quorate watch``: lines for people and for programs, where it begins, and how it ends."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from quorate.server.cli import main
from quorate.server.local_cluster import LocalCluster

pytestmark = pytest.mark.shared

WRITES = (
    ["put", "a/1", "x"],
    ["put", "a/2", "é"],
    ["put", "b", "y"],
    ["put", "a/1", "z"],
    ["del", "a/", "--prefix"],
)


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    cluster = LocalCluster(1)
    try:
        asyncio.run(cluster.start())
        where = ["-e", cluster.endpoints]
        for words in WRITES:
            assert main(["kv", *words, *where]) == 0
        yield cluster.endpoints
    finally:
        cluster.close()


def test_lines_for_people(endpoint: str, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    words = ["watch", "a/", "--from", "1", "--limit", "5", "--previous", "-e", endpoint]
    assert main(words) == 0
    assert capsys.readouterr().out.splitlines() == [
        "1\tput\ta/1\tx",
        "2\tput\ta/2\té",
        "4\tput\ta/1\tz\t(was x)",
        "5\tdelete\ta/1\t(was z)",
        "5\tdelete\ta/2\t(was é)",
    ]


def test_lines_for_programs(endpoint: str, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    words = ["watch", "a/1", "--key", "--from", "2", "--limit", "2", "--json", "-e", endpoint]
    assert main(words) == 0
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == [
        {
            "revision": 4, "type": "put", "key": "a/1", "value": "z",
            "create_revision": 1, "version": 2, "lease": 0,
        },
        {"revision": 5, "type": "delete", "key": "a/1"},
    ]  # fmt: skip


def test_what_is_refused(endpoint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["watch", "a", "--from", "0", "-e", endpoint]) == 2
    assert main(["watch", "", "--key", "-e", endpoint]) == 2
    assert "at least one byte" in capsys.readouterr().err


def test_an_interrupt_ends_it_and_it_says_how_to_go_on(endpoint: str) -> None:
    command = [sys.executable, "-m", "quorate", "watch", "--from", "4", "-e", endpoint]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ}
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        lines = [process.stdout.readline() for _ in range(3)]
        assert lines[0] == "4\tput\ta/1\tz\n"
        process.send_signal(signal.SIGINT)
        try:
            assert process.wait(10) == 130
        finally:
            process.kill()  # where interrupts are ignored, as under nohup, it would go on for ever
        assert process.stderr.read() == "quorate: go on with --from 6\n"
