"""All runs of one CI together try everything."""

from __future__ import annotations

import pytest

from tests import sharing


@pytest.mark.parametrize("parts", [1, 2, 3, 5])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 7, 60])
def test_the_parts_are_the_whole(parts: int, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tried, examples = [], 0
    for part in range(parts):
        monkeypatch.setattr(sharing, "PARTS", parts)
        monkeypatch.setattr(sharing, "PART", part)
        tried += sharing.turn(range(count))
        examples += sharing.examples(count)
    assert sorted(tried) == list(range(count))
    assert examples >= count
