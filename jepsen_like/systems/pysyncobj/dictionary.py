"""What the replicated object does, and what the library's error numbers mean; needs no library."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

#: The library's reasons (``FAIL_REASON``), and whether the command surely had no effect.
REASONS: Final[Mapping[int, tuple[str, bool]]] = {
    1: ("the queue is full", True),
    2: ("there is no leader", True),
    3: ("discarded", True),
    4: ("not the leader", True),
    5: ("the leader changed", False),
    6: ("request denied", True),
    7: ("unknown outcome", False),
}


def reason(error: int) -> tuple[str, bool]:
    """What the library's error number *error* says, and whether the command surely had no
    effect."""
    return REASONS.get(error, (f"error {error}", False))


class Dictionary:
    """The commands, without the library: key to (value, version)."""

    data: dict[str, tuple[bytes, int]]

    def do_get(self, key: str) -> tuple[bytes | None, int]:
        """(None, 0) if it is not there."""
        return self.data.get(key, (None, 0))

    def do_put(self, key: str, value: bytes) -> None:
        """Versions count the puts."""
        self.data[key] = (value, self.do_get(key)[1] + 1)

    def do_compare_and_set(self, key: str, expected: bytes | None, value: bytes) -> bool:
        """Whether it did."""
        holds = self.do_get(key)[0] == expected
        if holds:
            self.do_put(key, value)
        return holds

    def do_add(self, key: str, number: int) -> int:
        """The new number."""
        total = int(self.do_get(key)[0] or 0) + number
        self.do_put(key, b"%d" % total)
        return total

    def do_transact(
        self, expected: Mapping[str, int], reads: Iterable[str], writes: Mapping[str, bytes]
    ) -> tuple[bool, dict[str, tuple[bytes | None, int]]]:
        """As ``Client.transact``."""
        if any(self.do_get(key)[1] != version for key, version in expected.items()):
            return False, {}
        for key, value in writes.items():
            self.do_put(key, value)
        return True, {key: self.do_get(key) for key in reads}
