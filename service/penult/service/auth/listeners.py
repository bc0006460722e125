"""TLS and tokens of both ports, and a warning if an open address has neither."""

import asyncio
import logging
import ssl
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import grpc

from penult.service.auth.file_watcher import REFUSED, TAKEN
from penult.service.auth.tls import Tls
from penult.service.auth.tokens import Tokens
from penult.service.config import ServeConfig
from penult.service.observability.metrics import Metrics

log = logging.getLogger(__name__)


class SecureListeners:
    """TLS and tokens of both ports; watches the files of certificates and tokens."""

    def __init__(self, config: ServeConfig, metrics: Metrics | None = None) -> None:
        """Read the files; raise ConfigError."""
        self._config = config
        ca = Path(config.tls_client_ca) if config.tls_client_ca else None
        self._tls = Tls(Path(config.tls_cert), Path(config.tls_key), ca, metrics) if config.tls_cert else None
        self.tokens = Tokens(Path(config.tokens), _counting(metrics)) if config.tokens else None
        self._followed = [each.watched_file for each in (self._tls, self.tokens) if each]
        if metrics:  # series start at 0, so that the first event shows as a rise
            for kind in [*(["certificate"] if self._tls else []), *(["tokens"] if self.tokens else [])]:
                for outcome in (TAKEN, REFUSED):
                    metrics.credentials.labels(kind, outcome)

    def bind(self, server: grpc.aio.Server, address: str) -> int:
        """Bind a gRPC server's port and return its number; raise RuntimeError if the port cannot be bound."""
        if self._tls:
            return int(server.add_secure_port(address, self._tls.grpc_credentials()))
        return int(server.add_insecure_port(address))

    @property
    def http_context(self) -> ssl.SSLContext | None:
        """The TLS context of the HTTP port; None without TLS."""
        return self._tls.http_context() if self._tls and self._config.http_tls else None

    def check(self) -> None:
        """Read changed files now."""
        for watched in self._followed:
            watched.check(force=True)

    def following(self) -> list[Coroutine[Any, Any, None]]:
        """Return coroutines that must run while the ports are open."""
        return [watched.run() for watched in self._followed]

    def warn(self) -> None:
        """Log a warning if an open address has no TLS, or no authentication."""
        config = self._config
        if config.is_loopback:
            return
        if not self._tls:
            log.warning(
                "%s is open without TLS: photos%s can be read on their way; set --tls-cert and --tls-key, or let a "
                "proxy in front do it", config.host, " and tokens" if self.tokens else "",
            )  # fmt: skip
        if not (self.tokens or config.tls_client_ca):
            log.warning(
                "%s is open to every client that reaches it%s; set --tokens, --tls-client-ca, or a private network",
                config.host, ", models can be loaded and unloaded too" if config.model_control == "on" else "",
            )  # fmt: skip


def _counting(metrics: Metrics | None) -> Callable[[str], object]:
    def count(outcome: str) -> None:
        if metrics:
            metrics.credentials.labels("tokens", outcome).inc()

    return count


async def follow(listeners: SecureListeners) -> None:
    """Watch the files until cancelled."""
    await asyncio.gather(*listeners.following())
