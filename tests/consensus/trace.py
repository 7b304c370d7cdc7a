"""Prints a digest of everything that happens in a few seeds: run with ``python -m``, it shows
whether another process sees the same (``test_determinism.py``)."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable

import msgspec

from quorate.consensus.events import Event
from quorate.consensus.output import Output
from tests.consensus.chaos import Chaos
from tests.consensus.harness import Member


def digest(seeds: Iterable[int], ticks: int) -> str:
    """Of every event and every output, of all members, in order."""
    total = hashlib.sha256()
    encode = msgspec.msgpack.Encoder(enc_hook=repr).encode

    def on_trace(member: Member, event: Event, output: Output) -> None:
        shown = (member.node, type(event).__name__, event, output)
        total.update(repr(shown).encode())
        total.update(encode(member.core.status()))

    for seed in seeds:
        chaos = Chaos(seed)
        chaos.cluster.on_trace = on_trace
        chaos.safety(ticks)
        chaos.liveness()
    return total.hexdigest()


if __name__ == "__main__":
    print(digest(range(int(sys.argv[1])), int(sys.argv[2])))
