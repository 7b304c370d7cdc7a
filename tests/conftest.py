"""What holds for all tests."""

from __future__ import annotations

import gc

import pytest


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """What was imported and collected stays till the end: half a million objects that every full
    collection would walk again, and some tests ask for one."""
    gc.collect()
    gc.freeze()
