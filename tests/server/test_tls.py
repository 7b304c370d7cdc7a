"""Certificates that `quorate certs` makes, and who gets in with them."""

from __future__ import annotations

import asyncio
import ssl
import stat
from datetime import timedelta
from pathlib import Path

import pytest

from quorate.errors import ConfigError, RefusedError
from quorate.server import certificates, tls
from quorate.server.config import NodeConfig


def config_of(directory: Path, node_id: int = 1) -> NodeConfig:
    return NodeConfig(
        node_id=node_id,
        data="d",
        tls_cert=str(directory / f"node-{node_id}.crt"),
        tls_key=str(directory / f"node-{node_id}.key"),
        tls_ca=str(directory / "ca.crt"),
    )


@pytest.fixture
def authority(tmp_path: Path) -> Path:
    directory = tmp_path / "certs"
    certificates.create_authority(directory, "test")
    certificates.issue_node(directory, 1, ["db1.example", "10.0.0.1"])
    certificates.issue_client(directory, "alice")
    return directory


async def handshake(
    server: ssl.SSLContext, client: ssl.SSLContext, host: str = "localhost"
) -> dict[str, object]:
    """What the server learns of the caller's certificate."""
    seen: asyncio.Future[dict[str, object]] = asyncio.get_running_loop().create_future()

    def accepted(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.set_result(writer.get_extra_info("peercert") or {})
        writer.write(b"hello")
        writer.close()

    listener = await asyncio.start_server(accepted, "127.0.0.1", 0, ssl=server)
    port = listener.sockets[0].getsockname()[1]
    try:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", port, ssl=client, server_hostname=host
        )
        received = await reader.read()  # TLS 1.3 tells a refused caller only when it reads
        writer.close()
        if received != b"hello":
            raise ConnectionError("closed by the server")
        return await seen
    finally:
        listener.close()


def test_key_files_are_for_their_owner_only(authority: Path) -> None:
    for key in authority.glob("*.key"):
        assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert len(list(authority.glob("*.key"))) == 3


async def test_a_member_is_known_by_its_certificate(authority: Path) -> None:
    config = config_of(authority)
    server, client = tls.server_context(config), tls.peer_context(config)
    assert server is not None
    assert client is not None
    for host in ("localhost", "db1.example"):
        seen = await handshake(server, client, host)
        tls.check_member(seen, 1)
        with pytest.raises(RefusedError, match="names quorate:node:1, not node 2"):
            tls.check_member(seen, 2)


async def test_a_client_gets_in_and_is_no_member(authority: Path) -> None:
    server = tls.server_context(config_of(authority))
    assert server is not None
    ca = str(authority / "ca.crt")
    client = tls.client_context(str(authority / "alice.crt"), str(authority / "alice.key"), ca)
    with pytest.raises(RefusedError, match="names quorate:client:alice"):
        tls.check_member(await handshake(server, client), 1)


async def test_a_client_certificate_cannot_listen(authority: Path) -> None:
    posing = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    posing.load_cert_chain(authority / "alice.crt", authority / "alice.key")
    client = tls.peer_context(config_of(authority))
    assert client is not None
    with pytest.raises(ssl.SSLCertVerificationError):
        await handshake(posing, client)


async def test_strangers_and_wrong_names_stay_outside(authority: Path, tmp_path: Path) -> None:
    server = tls.server_context(config_of(authority))
    assert server is not None
    bare = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    bare.load_verify_locations(authority / "ca.crt")
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await handshake(server, bare)
    other = tmp_path / "other"
    certificates.create_authority(other, "other")
    files = certificates.issue_client(other, "mallory")
    stranger = tls.client_context(files.cert, files.key, str(authority / "ca.crt"))
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await handshake(server, stranger)
    client = tls.peer_context(config_of(authority))
    assert client is not None
    with pytest.raises(ssl.SSLCertVerificationError):
        await handshake(server, client, "db2.example")


def test_without_tls_there_are_no_contexts() -> None:
    config = NodeConfig(node_id=1, data="d")
    assert tls.server_context(config) is tls.peer_context(config) is None
    assert tls.metrics_context(config) is None
    with pytest.raises(RefusedError, match="names nobody"):
        tls.check_member(None, 1)


def test_nothing_is_overwritten(authority: Path) -> None:
    before = {file: file.read_bytes() for file in authority.iterdir()}
    with pytest.raises(ConfigError, match="exists already"):
        certificates.create_authority(authority, "again")
    with pytest.raises(ConfigError, match="exists already"):
        certificates.issue_node(authority, 1, [])
    assert {file: file.read_bytes() for file in authority.iterdir()} == before


def test_wrong_arguments_say_which(authority: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="certs init"):
        certificates.issue_client(tmp_path / "empty", "bob")
    with pytest.raises(ConfigError, match="--host 'db1:7400'"):
        certificates.issue_node(authority, 2, ["db1:7400"])
    with pytest.raises(ConfigError, match="--days"):
        certificates.issue_client(authority, "bob", days=0)
    with pytest.raises(ConfigError, match="cannot name a client"):
        certificates.issue_client(authority, "../bob")
    with pytest.raises(ConfigError, match="--id"):
        certificates.issue_node(authority, 0, [])


def test_wrong_files_say_which(authority: Path) -> None:
    cert, key, ca = (str(authority / name) for name in ("node-1.crt", "node-1.key", "ca.crt"))
    with pytest.raises(ConfigError, match=r"key: .*none cannot be read"):
        tls.client_context(cert, str(authority / "none"), ca)
    with pytest.raises(ConfigError, match="do not make a pair"):
        tls.client_context(cert, str(authority / "alice.key"), ca)
    (authority / "empty").write_text("")
    with pytest.raises(ConfigError, match=r"ca: .* holds no certificate"):
        tls.client_context(cert, key, str(authority / "empty"))
    with pytest.raises(ConfigError, match="do not make a pair"):
        tls.client_context(str(authority / "empty"), key, ca)


def test_an_expired_certificate_is_refused_at_start(
    authority: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    later = tls._now() + timedelta(days=certificates.LEAF_DAYS_DEFAULT + 1)
    monkeypatch.setattr(tls, "_now", lambda: later)
    with pytest.raises(ConfigError, match="which is not now"):
        tls.server_context(config_of(authority))
