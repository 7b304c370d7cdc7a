from __future__ import annotations

import asyncio
import gc
from typing import Any

from quorate.client.connection import Link
from quorate.client.endpoints import Endpoint


class ClosingDials:
    """As asyncio does, a dial that is cancelled after the connection was made reports its loss."""

    async def dial(self, _endpoint: Any, _on_frame: Any, on_lost: Any, _on_writable: Any) -> Any:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            asyncio.get_running_loop().call_soon(on_lost, None)
            raise


async def test_a_dial_that_is_given_up_leaves_no_error_behind() -> None:
    complaints: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _loop, context: complaints.append(context))
    link = Link(None, Endpoint("127.0.0.1", 1), relay=False)  # type: ignore[arg-type]
    task = loop.create_task(link.open(ClosingDials(), ""))  # type: ignore[arg-type]
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await asyncio.sleep(0)
    del link, task
    gc.collect()
    await asyncio.sleep(0)
    assert complaints == []
