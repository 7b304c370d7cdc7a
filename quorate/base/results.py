"""What every machine may answer, whatever its own results are: a refusal."""

from __future__ import annotations

import msgspec


class Failure(msgspec.Struct, frozen=True, array_like=True, tag=0, gc=False):
    """A command's result when it was refused. *code* is that of a ``CommandError`` class.

    Tag 0 is taken: the result types of a machine use tags from 1.
    """

    code: str
    message: str
