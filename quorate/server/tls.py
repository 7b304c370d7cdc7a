"""Mutual TLS: contexts for nodes and clients, and who stands at the other end.

One authority per cluster signs everything, and whoever shows one of its certificates may come in.
What the holder may be stands in the certificate: a node's has the URI name ``quorate:node:ID`` and
serves as both ends, a client's has the URI name ``quorate:client:NAME`` and cannot listen. So a
client cannot pose as a member, nor one member as another (``check_member``). ``certificates`` makes
them; it is imported only where needed, because its library takes 15 MB of a node's memory.
"""

from __future__ import annotations

import datetime as dt
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from quorate.client.tls import tls_context
from quorate.errors import ConfigError, RefusedError
from quorate.server.config import NodeConfig

#: URI names in certificates; the holder's number or name follows.
NODE_URI: Final = "quorate:node:"
CLIENT_URI: Final = "quorate:client:"

# --- contexts -------------------------------------------------------------------------------------


def server_context(config: NodeConfig) -> ssl.SSLContext | None:
    """For a node's listener, which demands a certificate of the caller; None without TLS.

    Raises:
        ConfigError: a file is missing or wrong, or the certificate is out of date.
    """
    if not config.tls:
        return None
    context = _listening(config)
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def peer_context(config: NodeConfig) -> ssl.SSLContext | None:
    """For a node that calls another one; None without TLS.

    Raises:
        ConfigError: as ``server_context``.
    """
    if not config.tls:
        return None
    return client_context(config.tls_cert, config.tls_key, config.tls_ca)


def client_context(cert: str, key: str, ca: str) -> ssl.SSLContext:
    """For a caller of nodes; checks the node's certificate against its host name.

    Raises:
        ConfigError: as ``server_context``.
    """
    context = tls_context(ca=ca, cert=cert, key=key)
    _check_in_date(cert)
    return context


def metrics_context(config: NodeConfig) -> ssl.SSLContext | None:
    """For the metrics listener: encrypted as the rest, but monitoring needs no certificate, since
    nothing there tells what the users stored. None without TLS.

    Raises:
        ConfigError: as ``server_context``.
    """
    if not config.tls:
        return None
    return _listening(config)


def _listening(config: NodeConfig) -> ssl.SSLContext:
    client_context(config.tls_cert, config.tls_key, config.tls_ca)  # its checks, and their errors
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(cafile=config.tls_ca)
    context.load_cert_chain(config.tls_cert, config.tls_key)
    return context


def _check_in_date(file: str) -> None:
    from quorate.server.certificates import certificate_info  # noqa: PLC0415  # see the module

    info = certificate_info(Path(file))
    now = _now()
    if not info.not_before <= now <= info.not_after:
        raise ConfigError(
            f"tls_cert: {file} is valid from {info.not_before:%Y-%m-%d} to "
            f"{info.not_after:%Y-%m-%d}, which is not now; issue a new one with `quorate certs`"
        )


# --- who is at the other end ----------------------------------------------------------------------


def check_member(certificate: Mapping[str, Any] | None, node_id: int) -> None:
    """Refuse a caller that says it is member *node_id* with somebody else's certificate.

    *certificate*: what ``ssl.SSLObject.getpeercert()`` gave.

    Raises:
        RefusedError: it is not that member's.
    """
    names = sorted(
        value
        for kind, value in (certificate or {}).get("subjectAltName", ())
        if kind == "URI" and value.startswith("quorate:")
    )
    if f"{NODE_URI}{node_id}" not in names:
        shown = ", ".join(names) or "nobody"
        raise RefusedError(
            f"the certificate shown names {shown}, not node {node_id}; issue one with "
            f"`quorate certs issue node --id {node_id}`"
        )


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)
