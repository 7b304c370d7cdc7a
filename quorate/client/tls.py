"""TLS for callers of a cluster, from the files that ``quorate certs`` issues."""

from __future__ import annotations

import ssl
from pathlib import Path

from quorate.errors import ConfigError


def tls_context(*, ca: str | Path, cert: str | Path, key: str | Path) -> ssl.SSLContext:
    """A context for ``connect(..., tls=...)``: nodes must show a certificate signed by *ca* that
    names their host, and are shown *cert*. All three are PEM files; *key* has no password.

    Raises:
        ConfigError: a file cannot be read, holds nothing of its kind, or key and certificate do
            not make a pair.
    """
    for name, path in (("ca", ca), ("cert", cert), ("key", key)):
        try:
            with Path(path).open("rb"):
                pass
        except OSError as error:
            raise ConfigError(f"{name}: {path} cannot be read: {error.strerror}") from error
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_verify_locations(cafile=ca)
    except ssl.SSLError as error:
        raise ConfigError(f"ca: {ca} holds no certificate: {error.reason}") from error
    try:
        context.load_cert_chain(cert, key, password=_no_password)
    except ssl.SSLError as error:
        raise ConfigError(
            f"cert {cert} and key {key} do not make a pair: {error.reason}"
        ) from error
    return context


def _no_password() -> str:
    # Or OpenSSL would ask for it on the terminal.
    raise ConfigError("the key is protected by a password; store it without, readable by its owner")
