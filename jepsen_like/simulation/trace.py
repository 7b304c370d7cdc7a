"""What happened in a run, as a digest that two runs of one seed share, and as text if wanted."""

from __future__ import annotations

import hashlib
import struct
from typing import Final, TextIO

_RECORD: Final = struct.Struct("<dHHI")
_FLUSH_BYTES: Final = 64 * 1024
#: Kinds of events, by their number in the digest. Append only: saved digests depend on it.
KINDS: Final[tuple[str, ...]] = (
    "data", "lost", "connect", "accept", "disk", "job", "role", "crash", "pause", "resume",
    "start", "fault", "note",
)  # fmt: skip
_NUMBERS: Final = {kind: number for number, kind in enumerate(KINDS)}


class Trace:
    """*text*: where to write each event as a line as well; it costs several times as much."""

    def __init__(self, text: TextIO | None = None) -> None:
        self.text = text
        self.count = 0
        self._hash = hashlib.blake2b(digest_size=16)
        self._buffer = bytearray()

    def add(self, now_s: float, kind: str, host: int, detail: int, text: str = "") -> None:
        """One event at *host* (its number, 0: the world). *detail*: below 2**32, a checksum or a
        count that tells it from others. *text*: for people, not in the digest."""
        self.count += 1
        buffer = self._buffer
        buffer += _RECORD.pack(now_s, _NUMBERS[kind], host, detail)
        if len(buffer) > _FLUSH_BYTES:
            self._hash.update(buffer)
            buffer.clear()
        if self.text is not None:
            self.text.write(f"{now_s:12.6f} {host:3} {kind:8} {detail:08x} {text}\n")

    def digest(self) -> str:
        """Of all events so far."""
        self._hash.update(self._buffer)
        self._buffer.clear()
        return self._hash.hexdigest()
