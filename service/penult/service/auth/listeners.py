"""How the ports are guarded: TLS and tokens where they are set, and a warning where an open address has neither."""

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
    """What guards both ports, as set; it follows the files of certificates and tokens."""

    def __init__(self, config: ServeConfig, metrics: Metrics | None = None) -> None:
        """Read the files; raise ConfigError."""
        self._config = config
        ca = Path(config.tls_client_ca) if config.tls_client_ca else None
        self._tls = Tls(Path(config.tls_cert), Path(config.tls_key), ca, metrics) if config.tls_cert else None
        tell = _counting(metrics)
        self.tokens = Tokens(Path(config.tokens), tell) if config.tokens else None
        self._followed = [each.watched_file for each in (self._tls, self.tokens) if each]
        if metrics:  # at 0 before the first, so that a rise is seen
            for kind in [*(["certificate"] if self._tls else []), *(["tokens"] if self.tokens else [])]:
                for outcome in (TAKEN, REFUSED):
                    metrics.credentials.labels(kind, outcome)

    def bind(self, server: grpc.aio.Server, address: str) -> int:
        """Bind a gRPC server's port and return its number; raise RuntimeError where it cannot be had."""
        if self._tls:
            return int(server.add_secure_port(address, self._tls.grpc_credentials()))
        return int(server.add_insecure_port(address))

    @property
    def http_context(self) -> ssl.SSLContext | None:
        """The HTTP port's TLS, None for none."""
        return self._tls.http_context() if self._tls and self._config.http_tls else None

    def check(self) -> None:
        """Take up what has changed, now."""
        for watched in self._followed:
            watched.check(force=True)

    def following(self) -> list[Coroutine[Any, Any, None]]:
        """Return what has to run for as long as the ports are open."""
        return [watched.run() for watched in self._followed]

    def warn(self) -> None:
        """Say where strangers may listen, or ask."""
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
                "%s is open to whoever reaches it%s; set --tokens or --tls-client-ca, or close the network around it",
                config.host, ", models can be loaded and unloaded too" if config.model_control == "on" else "",
            )  # fmt: skip


def _counting(metrics: Metrics | None) -> Callable[[str], object]:
    def tell(outcome: str) -> None:
        if metrics:
            metrics.credentials.labels("tokens", outcome).inc()

    return tell


async def follow(doors: SecureListeners) -> None:
    """Follow the files until cancelled."""
    await asyncio.gather(*doors.following())
