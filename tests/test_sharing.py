"""All runs of one CI together try everything."""

from __future__ import annotations

import pytest

from tests import sharing


@pytest.mark.parametrize("parts", [1, 2, 3, 5])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 7, 60])
def test_the_parts_are_the_whole(parts: int, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tried, mine, examples = [], [], 0
    names = [f"tests/test_this.py::test_{number}" for number in range(count)]
    for part in range(parts):
        monkeypatch.setattr(sharing, "PARTS", parts)
        monkeypatch.setattr(sharing, "PART", part)
        tried += sharing.turn(range(count))
        mine += [name for name in names if sharing.is_mine(name)]
        examples += sharing.examples(count)
    assert sorted(tried) == list(range(count))
    assert sorted(mine) == sorted(names)
    assert examples >= count
