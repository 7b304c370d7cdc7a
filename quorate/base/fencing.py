"""Fencing tokens: how a store tells the holder of a grant from one who only believes to hold it.

A process that was paused beyond its lease goes on where it stood, and writes. What stops it is not
a clock, but a number: every grant of a name carries a token that is higher than all before it, and
whoever is written to refuses a token that is not the present one.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from quorate.base.limits import KEY_BYTES_MAX, MACHINE_NAME_MAX


class Fence(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """One grant: *token* of *name* by *machine* ("locks" for locks, semaphores, elections)."""

    machine: Annotated[str, msgspec.Meta(min_length=1, max_length=MACHINE_NAME_MAX)]
    name: Annotated[bytes, msgspec.Meta(min_length=1, max_length=KEY_BYTES_MAX)]
    token: Annotated[int, msgspec.Meta(ge=1)]
