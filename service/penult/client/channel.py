"""Open gRPC channels, with TLS and tokens."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import grpc

from penult.client.channel_options import are_several, options, route
from penult.client.credentials import Security, SecurityError, read_file
from penult.client.targets import Target, read_targets

_HEADER = "authorization"


def channel(target: str | Sequence[str], retries: int, security: Security) -> grpc.Channel:
    """Open a synchronous channel; raise TargetError, SecurityError."""
    return channel_with(target, options(retries, are_several(target)), security)


def channel_with(target: str | Sequence[str], chosen: Sequence[Any], security: Security) -> grpc.Channel:
    """Open a synchronous channel with other options."""
    address, all_options, security, token = _plan(target, chosen, security)
    if security.is_tls:
        return grpc.secure_channel(address, _credentials(security), options=all_options)
    opened = grpc.insecure_channel(address, options=all_options)
    return grpc.intercept_channel(opened, _Bearer(token)) if token else opened


def aio_channel(target: str | Sequence[str], retries: int, security: Security) -> grpc.aio.Channel:
    """Open a channel for asyncio, as channel() does."""
    return aio_channel_with(target, options(retries, are_several(target)), security)


def aio_channel_with(target: str | Sequence[str], chosen: Sequence[Any], security: Security) -> grpc.aio.Channel:
    """Open a channel for asyncio with other options."""
    address, all_options, security, token = _plan(target, chosen, security)
    if security.is_tls:
        return grpc.aio.secure_channel(address, _credentials(security), options=all_options)
    bearers = [_AioUnary(token), _AioStream(token)] if token else None
    return grpc.aio.insecure_channel(address, options=all_options, interceptors=bearers)


def _plan(
    target: str | Sequence[str], chosen: Sequence[Any], security: Security
) -> tuple[str, list[Any], Security, str]:
    """Return gRPC's name for a target, all options, the security, and the token to send without TLS ("": none)."""
    targets = read_targets(target)
    if targets[0].is_tls:  # https://
        security = replace(security, tls=True)
    token = "" if security.is_tls else security.own_token()
    if token and not all(one.is_here for one in targets):
        raise SecurityError("a token is sent without TLS to this machine only; add --tls, or --ca FILE")
    address, route_options = route(targets)
    name = _name(targets, security) if security.is_tls else []
    return address, [*chosen, *route_options, *name], security, token


def _name(targets: Sequence[Target], security: Security) -> list[tuple[str, str]]:
    """Return the option for the name on the certificate; several servers share the name of the first."""
    name = security.server_name or (targets[0].host if len(targets) > 1 else "")
    return [("grpc.ssl_target_name_override", name)] if name else []


def _credentials(security: Security) -> grpc.ChannelCredentials:
    if bool(security.certificate) != bool(security.key):
        raise SecurityError("a client's certificate needs its key; give both")
    ca, key, chain = (read_file(path) if path else None for path in (security.ca, security.key, security.certificate))
    over_tls = grpc.ssl_channel_credentials(ca, key, chain)
    token = security.own_token()
    return (
        grpc.composite_channel_credentials(over_tls, grpc.access_token_call_credentials(token)) if token else over_tls
    )


def _with(details: Any, token: str) -> Any:
    """Return a call's details with the token among the metadata."""
    return details._replace(metadata=grpc.aio.Metadata(*(details.metadata or ()), (_HEADER, f"Bearer {token}")))


class _Details(grpc.ClientCallDetails):
    """A call's details with other metadata, as gRPC's own type cannot be copied."""

    def __init__(self, of: Any, metadata: tuple[Any, ...]) -> None:
        self.method = of.method
        self.timeout = of.timeout
        self.credentials = of.credentials
        self.wait_for_ready = of.wait_for_ready
        self.compression = of.compression
        self.metadata = metadata


class _Bearer(grpc.UnaryUnaryClientInterceptor):
    """Sends the token on a connection without TLS, which cannot have call credentials."""

    def __init__(self, token: str) -> None:
        self._entry = (_HEADER, f"Bearer {token}")

    def intercept_unary_unary(self, proceed: Callable[..., Any], details: Any, request: Any) -> Any:
        return proceed(_Details(details, (*(details.metadata or ()), self._entry)), request)


class _AioUnary(grpc.aio.UnaryUnaryClientInterceptor):
    def __init__(self, token: str) -> None:
        self._token = token

    async def intercept_unary_unary(self, proceed: Callable[..., Any], details: Any, request: Any) -> Any:
        return await proceed(_with(details, self._token), request)


class _AioStream(grpc.aio.StreamStreamClientInterceptor):
    def __init__(self, token: str) -> None:
        self._token = token

    async def intercept_stream_stream(self, proceed: Callable[..., Any], details: Any, requests: Any) -> Any:
        return await proceed(_with(details, self._token), requests)
