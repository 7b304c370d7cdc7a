"""The exact conversations of ``scenarios/*.txt``. After a change that is meant, rewrite them with
``QUORATE_REWRITE=1 pytest tests/consensus/test_scenarios.py`` and read the diff: it is the review.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.consensus.scenario import rewrite

FILES = sorted((Path(__file__).parent / "scenarios").glob("*.txt"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_scenario(path: Path) -> None:
    found = rewrite(path)
    if os.environ.get("QUORATE_REWRITE"):
        path.write_text(found, "utf-8")
    assert found == path.read_text("utf-8")


def test_there_are_scenarios() -> None:
    assert len(FILES) >= 20
