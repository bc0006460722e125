"""TLS for both ports: the server's certificate, the clients' authority, and their renewal.

gRPC reads the certificate at every handshake, and the HTTP port swaps its context at every handshake. Open connections
keep the certificate that they began with.
"""

import os
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ed25519

from penult.service.auth.file_watcher import WatchedFile
from penult.service.errors import ConfigError
from penult.service.observability.metrics import Metrics

_MAX_BYTES = 1 << 20


@dataclass(frozen=True)
class Certificate:
    """A chain, its key and the authority of client certificates, as PEM, verified to belong together."""

    chain: bytes
    key: bytes
    client_ca: bytes | None
    expires: datetime


def read_certificate(chain: Path, key: Path, client_ca: Path | None) -> Certificate:
    """Read and check the files; raise ConfigError if they do not belong together, or are not valid now."""
    data = [_read(path) for path in (chain, key)]
    ca = _read(client_ca) if client_ca else None
    first, last = _validity(chain, data[0])
    if not first <= datetime.now(UTC) < last:
        raise ConfigError("TLS_EXPIRED", f"{chain} is valid from {first:%F %R} to {last:%F %R} UTC, not now; renew it")
    certificate = Certificate(data[0], data[1], ca, last)
    try:
        http_context(certificate)
    except (ssl.SSLError, ValueError, OSError) as error:
        what = " ".join(str(error).split())
        raise ConfigError("TLS_INVALID", f"{chain} and {key} cannot be used together: {what}") from error
    if ca is not None:
        _check_authority(client_ca, ca)
    return certificate


def http_context(certificate: Certificate) -> ssl.SSLContext:
    """Return a context for the HTTP port, TLS 1.2 and up, without client certificates: probes have none."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # OpenSSL reads files only; these are in memory, so that what was checked is what is used.
    with _in_memory(certificate.chain) as chain, _in_memory(certificate.key) as key:
        context.load_cert_chain(chain, key, password=_no_passphrase)
    return context


class Tls:
    """Watches the files and provides the credentials of both ports."""

    def __init__(self, chain: Path, key: Path, client_ca: Path | None, metrics: Metrics | None = None) -> None:
        """Read the files; raise ConfigError."""
        paths = [chain, key, *([client_ca] if client_ca else [])]
        self._metrics = metrics
        self.watched_file = WatchedFile(
            "certificate", paths, lambda: read_certificate(chain, key, client_ca), self._on_read
        )
        self._handed_out: Certificate | None = None
        self._http = self._swapped = http_context(self.watched_file.value)
        self._http.sni_callback = self._swap
        self._http_of = self.watched_file.value
        self._note_expiry()

    def grpc_credentials(self) -> grpc.ServerCredentials:
        """Return credentials that follow renewals; with an authority, clients must present a certificate."""
        certificate = self._handed_out = self.watched_file.value
        return grpc.dynamic_ssl_server_credentials(
            _configuration(certificate), self._renewed, bool(certificate.client_ca)
        )

    def http_context(self) -> ssl.SSLContext:
        """Return the HTTP port's context, which follows renewals too."""
        return self._http

    def _renewed(self) -> Any:
        """Return the certificate if gRPC does not have it yet. Called by gRPC's own threads at every handshake."""
        certificate = self.watched_file.value
        if certificate is self._handed_out:
            return None
        self._handed_out = certificate
        return _configuration(certificate)

    def _swap(self, connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        # A context of its own, not the old one loaded again: that would keep a former key of another kind.
        if self._http_of is not self.watched_file.value:
            self._http_of = self.watched_file.value
            self._swapped = http_context(self._http_of)
        connection.context = self._swapped

    def _on_read(self, outcome: str) -> None:
        if self._metrics:
            self._metrics.credentials.labels("certificate", outcome).inc()
        self._note_expiry()

    def _note_expiry(self) -> None:
        if self._metrics:
            self._metrics.certificate_expiry.set(self.watched_file.value.expires.timestamp())


def _configuration(certificate: Certificate) -> Any:
    return grpc.ssl_server_certificate_configuration(
        [(certificate.key, certificate.chain)], root_certificates=certificate.client_ca
    )


def _validity(path: Path, chain: bytes) -> tuple[datetime, datetime]:
    """Return from when to when a chain's first certificate is valid."""
    try:
        certificate = x509.load_pem_x509_certificates(chain)[0]
    except ValueError as error:
        raise ConfigError("TLS_INVALID", f"{path} holds no certificate in PEM that can be read") from error
    if isinstance(certificate.public_key(), ed25519.Ed25519PublicKey):
        raise ConfigError("TLS_KIND", f"{path} is of an ed25519 key, which gRPC's clients do not take; use EC or RSA")
    return certificate.not_valid_before_utc, certificate.not_valid_after_utc


def _check_authority(path: Path | None, data: bytes) -> None:
    try:
        x509.load_pem_x509_certificates(data)
    except ValueError as error:
        raise ConfigError("TLS_INVALID", f"{path} holds no certificate in PEM that can be read") from error


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_BYTES)
    except OSError as error:
        raise ConfigError("TLS_UNREADABLE", f"{path} cannot be read ({error.strerror}); check the path") from error


@contextmanager
def _in_memory(data: bytes) -> Iterator[str]:
    """Yield a path from which bytes in memory can be read."""
    with os.fdopen(os.memfd_create("tls"), "wb") as file:
        file.write(data)
        file.flush()
        yield f"/proc/self/fd/{file.fileno()}"


def _no_passphrase() -> bytes:
    # Else OpenSSL would ask on the terminal.
    raise ValueError("the key is encrypted; give one without a passphrase, readable by penult only")
