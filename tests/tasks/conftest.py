"""What holds for all tests of this room."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from quorate.replication import sessions
from quorate.server.cli import main
from quorate.server.local_cluster import LocalCluster
from tests.tasks.cli import Run, Said


@pytest.fixture(autouse=True)
def _no_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leases of a second end after a second."""
    monkeypatch.setattr(sessions, "TERM_GRACE_MS", 0)


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """Of a node process."""
    cluster = LocalCluster(1)
    try:
        asyncio.run(cluster.start())
        yield cluster.endpoints
    finally:
        cluster.close()


@pytest.fixture
def quorate_cli(
    endpoint: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Run:
    """The command, which knows the node by its environment."""
    monkeypatch.setenv("QUORATE_ENDPOINTS", endpoint)

    def call(*arguments: str) -> Said:
        capsys.readouterr()
        status = main([*arguments])
        found = Said(status, *capsys.readouterr())
        assert "Traceback" not in found.err
        return found

    return call
