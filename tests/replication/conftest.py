"""What holds for most tests of this room."""

from __future__ import annotations

import pytest

from quorate.replication import sessions


@pytest.fixture(autouse=True)
def _no_grace(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Deadlines of a few milliseconds count at once, but where the grace itself is tested."""
    if request.node.get_closest_marker("grace") is None:
        monkeypatch.setattr(sessions, "TERM_GRACE_MS", 0)
