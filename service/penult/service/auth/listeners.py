"""TLS and tokens of both ports, and a warning if an open address has neither."""

import asyncio
import logging
import ssl
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from penult.proxies import is_loopback
from penult.service.auth.file_watcher import REFUSED, TAKEN
from penult.service.auth.tls import Tls
from penult.service.auth.tokens import Tokens
from penult.service.observability.metrics import Metrics

log = logging.getLogger(__name__)


class Ports(Protocol):
    """A gRPC server, of any make."""

    def add_insecure_port(self, address: str) -> int:
        """Bind an address."""
        ...

    def add_secure_port(self, address: str, credentials: Any) -> int:
        """Bind an address with TLS."""
        ...


@dataclass(frozen=True)
class ListenerSecurity:
    """The files that guard the ports; None if there is no such file."""

    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_client_ca: Path | None = None
    tokens: Path | None = None
    has_http_tls: bool = True


class SecureListeners:
    """TLS and tokens of both ports; watches the files of certificates and tokens."""

    def __init__(self, security: ListenerSecurity, metrics: Metrics | None = None) -> None:
        """Read the files; raise ConfigError."""
        self._security = security
        self._tls: Tls | None = None
        if security.tls_cert and security.tls_key:
            self._tls = Tls(security.tls_cert, security.tls_key, security.tls_client_ca, metrics)
        self.tokens = Tokens(security.tokens, _counting(metrics)) if security.tokens else None
        self._followed = [each.watched_file for each in (self._tls, self.tokens) if each]
        if metrics:  # series start at 0, so that the first event shows as a rise
            for kind in [*(["certificate"] if self._tls else []), *(["tokens"] if self.tokens else [])]:
                for outcome in (TAKEN, REFUSED):
                    metrics.credentials.labels(kind, outcome)

    def bind(self, server: Ports, address: str) -> int:
        """Bind a gRPC server's port and return its number; raise RuntimeError if the port cannot be bound."""
        if self._tls:
            return int(server.add_secure_port(address, self._tls.grpc_credentials()))
        return int(server.add_insecure_port(address))

    @property
    def http_context(self) -> ssl.SSLContext | None:
        """The TLS context of the HTTP port; None without TLS."""
        return self._tls.http_context() if self._tls and self._security.has_http_tls else None

    def check(self) -> None:
        """Read changed files now."""
        for watched in self._followed:
            watched.check(force=True)

    def following(self) -> list[Coroutine[Any, Any, None]]:
        """Return coroutines that must run while the ports are open."""
        return [watched.run() for watched in self._followed]

    def warn(self, host: str, can_load_models: bool) -> None:
        """Log a warning if `host` is not loopback and has no TLS, or no authentication."""
        if is_loopback(host):
            return
        if not self._tls:
            log.warning(
                "%s is open without TLS: photos%s can be read on their way; set --tls-cert and --tls-key, or let a "
                "proxy in front do it", host, " and tokens" if self.tokens else "",
            )  # fmt: skip
        if not (self.tokens or self._security.tls_client_ca):
            log.warning(
                "%s is open to every client that reaches it%s; set --tokens, --tls-client-ca, or a private network",
                host, ", models can be loaded and unloaded too" if can_load_models else "",
            )  # fmt: skip


def _counting(metrics: Metrics | None) -> Callable[[str], object]:
    def count(outcome: str) -> None:
        if metrics:
            metrics.credentials.labels("tokens", outcome).inc()

    return count


async def follow(listeners: SecureListeners) -> None:
    """Watch the files until cancelled."""
    await asyncio.gather(*listeners.following())
