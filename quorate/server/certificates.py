"""Makes and reads the certificates of a cluster: its authority, nodes and clients.

What the names in them mean is said in ``tls``.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from quorate.errors import ConfigError
from quorate.server.tls import CLIENT_URI, NODE_URI

AUTHORITY_NAME: Final = "ca"  # ca.crt goes everywhere, ca.key stays where certificates are made
AUTHORITY_DAYS_DEFAULT: Final = 3650
LEAF_DAYS_DEFAULT: Final = 365
DAYS_MAX: Final = 36_500
#: A certificate is valid a little before it was made: clocks of machines differ.
BACKDATE: Final = dt.timedelta(hours=1)
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class CertificateInfo(msgspec.Struct, frozen=True):
    """What an operator asks of a certificate."""

    names: tuple[str, ...]
    not_before: dt.datetime
    not_after: dt.datetime


def certificate_info(file: Path) -> CertificateInfo:
    """Names and dates of the (first) certificate in *file*.

    Raises:
        ConfigError: it cannot be read, or is no certificate.
    """
    certificate = _load_certificate(file)
    try:
        alternatives = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        names = tuple(str(name.value) for name in alternatives.value)
    except x509.ExtensionNotFound:
        names = ()
    return CertificateInfo(names, certificate.not_valid_before_utc, certificate.not_valid_after_utc)


# --- making certificates --------------------------------------------------------------------------


class CertificateFiles(msgspec.Struct, frozen=True):
    """Where a certificate and its key were written."""

    cert: str
    key: str
    not_after: dt.datetime


def create_authority(
    directory: Path, cluster: str, days: int = AUTHORITY_DAYS_DEFAULT
) -> CertificateFiles:
    """Make the authority of a cluster: ``ca.crt`` and ``ca.key`` in *directory*.

    Raises:
        ConfigError: the files exist already or cannot be written; nothing was changed.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"quorate {cluster}")])
    builder = (
        _builder(subject, subject, key.public_key(), days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(authority=True), critical=True)
    )
    return _write(directory, AUTHORITY_NAME, builder.sign(key, hashes.SHA256()), key)


def issue_node(
    directory: Path, node_id: int, hosts: Sequence[str], days: int = LEAF_DAYS_DEFAULT
) -> CertificateFiles:
    """Make ``node-ID.crt`` and ``node-ID.key``. *hosts*: names and addresses by which others call
    the node; this machine's own loopback names come on top.

    Raises:
        ConfigError: there is no authority in *directory*, a host is not one, or the files exist.
    """
    if node_id < 1:
        raise ConfigError(f"--id must be 1 or more, not {node_id}")
    wanted = dict.fromkeys([*hosts, "localhost", "127.0.0.1", "::1"])
    names = [x509.UniformResourceIdentifier(f"{NODE_URI}{node_id}"), *map(_host_name, wanted)]
    usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    return _issue(directory, f"node-{node_id}", names, usages, days)


def issue_client(directory: Path, name: str, days: int = LEAF_DAYS_DEFAULT) -> CertificateFiles:
    """Make ``NAME.crt`` and ``NAME.key`` for a client.

    Raises:
        ConfigError: as ``issue_node``, or *name* cannot be a file's.
    """
    if not _FILE_NAME.fullmatch(name) or name == AUTHORITY_NAME:
        raise ConfigError(
            f"{name!r} cannot name a client: use letters, digits, '.', '_' or '-' (not 'ca')"
        )
    names = [x509.UniformResourceIdentifier(f"{CLIENT_URI}{name}")]
    return _issue(directory, name, names, [ExtendedKeyUsageOID.CLIENT_AUTH], days)


def _issue(
    directory: Path,
    name: str,
    names: Sequence[x509.GeneralName],
    usages: Sequence[x509.ObjectIdentifier],
    days: int,
) -> CertificateFiles:
    authority = _load_certificate(directory / f"{AUTHORITY_NAME}.crt")
    authority_key = _load_key(directory / f"{AUTHORITY_NAME}.key")
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = (
        _builder(subject, authority.subject, key.public_key(), days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()),
            critical=False,
        )
    )
    return _write(directory, name, builder.sign(authority_key, hashes.SHA256()), key)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    if not 1 <= days <= DAYS_MAX:
        raise ConfigError(f"--days must be from 1 to {DAYS_MAX}, not {days}")
    now = _now()
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATE)
        .not_valid_after(now + dt.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )


def _host_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?", host):
        raise ConfigError(f"--host {host!r} is no host name or address (give it without a port)")
    return x509.DNSName(host)


# --- files ----------------------------------------------------------------------------------------


def _write(
    directory: Path, name: str, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey
) -> CertificateFiles:
    cert_file, key_file = directory / f"{name}.crt", directory / f"{name}.key"
    for file in (cert_file, key_file):
        if file.exists():
            raise ConfigError(f"{file} exists already; move it away, or use another --dir")
    secret = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        _create(key_file, secret, 0o600)
        _create(cert_file, certificate.public_bytes(serialization.Encoding.PEM), 0o644)
    except OSError as error:
        raise ConfigError(f"{error.filename} cannot be written: {error.strerror}") from error
    return CertificateFiles(str(cert_file), str(key_file), certificate.not_valid_after_utc)


def _create(file: Path, content: bytes, mode: int) -> None:
    """A new file; its mode holds from its first byte on."""
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as opened:
        opened.write(content)
        opened.flush()
        os.fsync(descriptor)


def _load_certificate(file: Path) -> x509.Certificate:
    content = _read(file)
    try:
        return x509.load_pem_x509_certificate(content)
    except ValueError as error:
        raise ConfigError(f"{file} holds no PEM certificate") from error


def _load_key(file: Path) -> ec.EllipticCurvePrivateKey:
    content = _read(file)
    try:
        key = serialization.load_pem_private_key(content, password=None)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{file} holds no PEM key without a password") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"{file} was not made by `quorate certs init`")
    return key


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        hint = "; make it with `quorate certs init`" if file.stem == AUTHORITY_NAME else ""
        raise ConfigError(f"{file} cannot be read: {error.strerror}{hint}") from error


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)
