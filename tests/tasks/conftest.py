"""What holds for all tests of this room."""

from __future__ import annotations

import pytest

from quorate.replication import sessions


@pytest.fixture(autouse=True)
def _no_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leases of a second end after a second."""
    monkeypatch.setattr(sessions, "TERM_GRACE_MS", 0)
