"""A new node asks the nodes that it was given which cluster they are."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Sequence
from typing import Final

from quorate.base.frames import ROLE_CLIENT, WIRE_VERSION, Hello
from quorate.errors import ConfigError, QuorateError, UnavailableError
from quorate.server.greeting import greet

JOIN_TIMEOUT_S: Final = 60.0
JOIN_RETRY_S: Final = 0.5
DIAL_TIMEOUT_S: Final = 2.0


async def find_cluster(addresses: Sequence[str], name: str, context: ssl.SSLContext | None) -> str:
    """The id of the cluster of *addresses* ("host:port"), from the first node that answers.

    Raises:
        ConfigError: it is not of the name *name*.
        UnavailableError: no node answered in time, and why not.
    """
    loop = asyncio.get_running_loop()
    end_s = loop.time() + JOIN_TIMEOUT_S
    problems: dict[str, str] = {}
    while loop.time() < end_s:
        for address in addresses:
            hello = Hello(WIRE_VERSION, ROLE_CLIENT)
            try:
                connection, welcome = await greet(
                    address, hello, context=context, timeout_s=DIAL_TIMEOUT_S
                )
            except QuorateError as error:
                problems[address] = str(error)
                continue
            connection.close()
            found = welcome.cluster.rpartition("-")[0]
            if found != name:
                raise ConfigError(f"join: {address} is of cluster {found!r}, not {name!r}")
            return welcome.cluster
        await asyncio.sleep(JOIN_RETRY_S)
    reasons = "; ".join(f"{address}: {problem}" for address, problem in problems.items())
    raise UnavailableError(f"join: no node answered in {JOIN_TIMEOUT_S:g} s: {reasons}")
