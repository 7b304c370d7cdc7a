"""What holds for all tests."""

from __future__ import annotations

import gc

import pytest

from tests import sharing


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of the tests marked ``shared``, leave those to the other runs that are theirs."""
    if config.option.keyword or any("::" in each for each in config.args):
        return
    others = [
        item
        for item in items
        if item.get_closest_marker("shared") and not sharing.is_mine(item.nodeid)
    ]
    if others:
        config.hook.pytest_deselected(items=others)
        left = {item.nodeid for item in others}
        items[:] = [item for item in items if item.nodeid not in left]


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """What was imported and collected stays till the end: half a million objects that every full
    collection would walk again, and some tests ask for one."""
    gc.collect()
    gc.freeze()
