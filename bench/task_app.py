"""Tasks that ``python -m bench tasks`` has a worker run: nothing, a look at the clock, waiting."""

from __future__ import annotations

import asyncio
import time

import quorate

app = quorate.App("bench")


@app.task(name="nothing", queue="lives")
async def nothing(payload: bytes) -> None:
    """As little as can be."""


@app.task(name="since", queue="lives")
async def since(sent_s: float) -> float:
    """Seconds from *sent_s*, by the clock that all processes of a machine share, to this line."""
    return time.monotonic() - sent_s


@app.task(name="stay", queue="lives")
async def stay(seconds: float) -> float:
    """Run for so long; when this attempt began, by that clock."""
    began = time.monotonic()
    await asyncio.sleep(seconds)
    return began
