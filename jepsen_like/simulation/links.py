"""What a way from one host to another does to the bytes that pass, and the frames in them."""

from __future__ import annotations

from collections import deque
from random import Random
from typing import Any, Final

import msgspec

from quorate.base.frames import LENGTH_BYTES, ROLE_PEER, UNDECODABLE, FrameSplitter, Hello

#: Old frames of one way that may come again.
FRAMES_KEPT: Final = 64


class LinkSettings(msgspec.Struct, kw_only=True):
    """How a healthy or sick way behaves; chances are per write (per frame for the last three).

    *delay_s_min*, *delay_s_max*: mostly near the least. *stall_chance*, *stall_s_max*: now and then
    a connection stands still for a while, and what follows on it waits too. *chunk_chance*: bytes
    are split anywhere. *reset_chance*: the connection breaks in the middle of what is sent.
    *refuse*: connections are refused as if nobody listened. *heal_reset_chance*: a connection that
    was cut breaks when the cut is healed, instead of going on.

    Beyond what TCP does, on connections between members: *repeat_chance*: a frame comes twice, or
    an old one again, perhaps from an earlier connection; *swap_chance*: a frame is held back until
    after the next one; *lose_chance*: a frame vanishes.
    """

    delay_s_min: float = 0.000_2
    delay_s_max: float = 0.002
    stall_chance: float = 0.0
    stall_s_max: float = 1.0
    chunk_chance: float = 0.0
    reset_chance: float = 0.0
    refuse: bool = False
    heal_reset_chance: float = 0.3
    repeat_chance: float = 0.0
    swap_chance: float = 0.0
    lose_chance: float = 0.0

    @property
    def meddles(self) -> bool:
        """Whether it looks at frames."""
        return (self.repeat_chance + self.swap_chance + self.lose_chance) > 0


class Link:
    """The way from *source* to *target*. *cut*: bytes stop arriving, until healed."""

    def __init__(self, source: str, target: str, settings: LinkSettings, random: Random) -> None:
        self.source = source
        self.target = target
        self.settings = settings
        self.random = random
        self.cut = False
        self.pipes: dict[Any, None] = {}  #: of ``network.Pipe``, those that are open
        #: Frames of members that passed here, on any connection; see ``LinkSettings``.
        self.frames: deque[bytes] = deque(maxlen=FRAMES_KEPT)
        self.meddled_count = 0

    def delay_s(self) -> float:
        """Of what is sent now."""
        settings = self.settings
        draw = self.random.random()
        return (
            settings.delay_s_min
            + (settings.delay_s_max - settings.delay_s_min) * draw * draw * draw
        )

    def stall_s(self) -> float:
        """How long the connection stands still before that."""
        settings = self.settings
        if settings.stall_chance and self.random.random() < settings.stall_chance:
            return self.random.random() * settings.stall_s_max
        return 0.0


_decode_hello = msgspec.msgpack.Decoder(Hello).decode


class FrameTap:
    """Cuts the bytes of one direction into frames and meddles with those between members.

    Only the first frame is looked into: what role does its connection have?
    """

    def __init__(self, link: Link, *, hello: bool) -> None:
        self._link = link
        self._splitter: FrameSplitter | None = FrameSplitter()
        self._hello = hello  # the first frame is a hello; of the other direction, a welcome
        self._first = True
        self.peers = not hello  #: whether members talk; the answering side is told by the asking
        self._held: bytes | None = None

    def pass_on(self, data: bytes) -> bytes:
        """What is to be sent in the place of *data*."""
        if self._splitter is None:
            return data
        out = []
        for body in self._splitter.feed(data):
            frame = len(body).to_bytes(LENGTH_BYTES, "big") + body
            if self._first:
                self._first = False
                if self._hello:
                    self.peers = _is_peer(body)
                out.append(frame)
            elif self.peers:
                out.extend(self._meddle(frame))
            else:
                out.append(frame)
        return b"".join(out)

    def _meddle(self, frame: bytes) -> list[bytes]:
        link, random, settings = self._link, self._link.random, self._link.settings
        out = [frame]
        if settings.lose_chance and random.random() < settings.lose_chance:
            out = []
        elif settings.swap_chance and self._held is None and random.random() < settings.swap_chance:
            self._held, out = frame, []
        elif self._held is not None:
            out.append(self._held)
            self._held = None
        if settings.repeat_chance and random.random() < settings.repeat_chance:
            at = random.randrange(2 * FRAMES_KEPT)
            out.append(link.frames[at] if at < len(link.frames) else frame)
        if out != [frame]:
            link.meddled_count += 1
        link.frames.append(frame)
        return out


def _is_peer(body: bytes) -> bool:
    try:
        return _decode_hello(body).role == ROLE_PEER
    except UNDECODABLE:
        return False
