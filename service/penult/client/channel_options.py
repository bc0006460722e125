"""Options of channels: addresses, limits, keepalive, retries.

gRPC itself retries a call that ended with UNAVAILABLE, RESOURCE_EXHAUSTED or CANCELLED. It waits as long as the server
asks (`grpc-retry-pushback-ms`), else with exponential backoff. It uses the next address if there are several. The
deadline limits all attempts together. gRPC makes at most five attempts (gRFC A6).
"""

import json
import socket
from collections.abc import Sequence
from typing import Any

import grpc

from penult.client.converters import MESSAGE_BYTES
from penult.client.targets import Target, TargetError, proxy_options, read_targets
from penult.client.types import RequestFailed

MAX_RETRIES = 4
# The reason of a failure if what answers is no gRPC server.
NOT_GRPC = "NOT_GRPC"
# Words of gRPC's TLS library, and what to do.
_TLS_CAUSES = {
    "CERTIFICATE_VERIFY_FAILED": "its certificate is of an unknown authority; give --ca FILE",
    "certificate signature failure": "its certificate is of another authority; give the right one as --ca FILE",
    "WRONG_VERSION_NUMBER": "the server has no TLS; leave --tls and --ca out",
    "CERTIFICATE_REQUIRED": "the server requires a client certificate; give --client-cert and --client-key",
    "not in peer certificate": "its certificate is for another name; give --server-name",
}
_PING_MS, _PONG_MS = 30_000, 10_000
_SERVICE = "penult.v1.PenultService"


def options(retries: int, is_one_of_several: bool = False) -> list[tuple[str, int | str]]:
    """Return a channel's options; raise ValueError if there are more retries than gRPC makes.

    With `is_one_of_several`, gRPC watches the health of the servers, and sends no request to one that drains.
    """
    if not 0 <= retries <= MAX_RETRIES:
        raise ValueError(f"retries must be 0 to {MAX_RETRIES}; this is {retries}")
    return [
        ("grpc.max_receive_message_length", MESSAGE_BYTES),
        ("grpc.max_send_message_length", MESSAGE_BYTES),
        # A request is kept for another attempt only if it fits here; the default is 256 KiB, less than one photo.
        ("grpc.per_rpc_retry_buffer_size", MESSAGE_BYTES),
        # Also without retries: gRPC resends a request that never reached the server, because the connection ended at
        # that instant.
        ("grpc.enable_retries", 1),
        # Detects that a server is gone, or that a proxy dropped the connection. Our servers allow a ping every 10 s.
        ("grpc.keepalive_time_ms", _PING_MS),
        ("grpc.keepalive_timeout_ms", _PONG_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.service_config_disable_resolution", 1),
        ("grpc.service_config", service_config(retries, is_one_of_several)),
    ]


def service_config(retries: int, is_one_of_several: bool = False) -> str:
    """Return gRPC's service config for clients in any language: round robin over all addresses, and the retries."""
    config: dict[str, Any] = {"loadBalancingConfig": [{"round_robin": {}}]}
    if is_one_of_several:  # a single server is used even if it is not healthy
        config["healthCheckConfig"] = {"serviceName": ""}
    if retries:
        policy = {
            "maxAttempts": retries + 1,
            "initialBackoff": "0.1s",
            "maxBackoff": "2s",
            "backoffMultiplier": 2,
            # An overloaded server drops calls with CANCELLED, before its own code runs.
            "retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED", "CANCELLED"],
        }
        config["methodConfig"] = [{"name": [{"service": _SERVICE}], "retryPolicy": policy}]
    return json.dumps(config)


def are_several(target: str | Sequence[str]) -> bool:
    """Return True if a target names several servers, or a DNS name that gRPC resolves."""
    targets = read_targets(target)
    return len(targets) > 1 or targets[0].name.startswith("dns:")


def address(target: str | Sequence[str]) -> str:
    """Return gRPC's name for one address, or for several ("a:1,b:2" or a sequence); raise TargetError.

    gRPC resolves a single name, and follows its DNS records. Several names are resolved here, once.
    """
    return route(read_targets(target))[0]


def route(targets: Sequence[Target]) -> tuple[str, list[tuple[str, int | str]]]:
    """Return gRPC's name for targets as address() does, and the proxy options; raise TargetError."""
    if len(targets) == 1:
        return targets[0].name, proxy_options(targets)
    found = [_resolve(one) for one in targets]
    for family, scheme in ((socket.AF_INET, "ipv4"), (socket.AF_INET6, "ipv6")):
        if all(family in one for one in found):
            hosts = [one[family] for one in found]
            listed = ",".join(_joined(host, one.port) for host, one in zip(hosts, targets, strict=True))
            return f"{scheme}:{listed}", proxy_options(targets, hosts)
    names = ", ".join(one.name for one in targets)
    raise TargetError(f"{names}: some have IPv4 addresses only, some IPv6 only; name either kind")


def _resolve(target: Target) -> dict[int, str]:
    """Return an IP address by family."""
    if not target.host or not target.port:
        raise TargetError(f"{target.name!r} is not HOST:PORT")
    try:
        entries = socket.getaddrinfo(target.host, int(target.port), type=socket.SOCK_STREAM)
    except OSError as error:
        raise TargetError(f"{target.host} is not known here ({error.strerror}); check the name") from error
    return {family: str(socket_address[0]) for family, *_, socket_address in reversed(entries)}


def _joined(host: str, port: str) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _unreachable(details: str, target: str | Sequence[str]) -> str:
    """Return why no server answers, as far as gRPC's details show."""
    if _is_another_protocol(details):
        return f"what answers at {target} is no gRPC server"
    if "handshak" in details.lower() or "CERTIFICATE" in details:
        cause = next((word for word in _TLS_CAUSES if word in details), "")
        return f"no TLS with {target}: {_TLS_CAUSES.get(cause, 'the handshake failed')}; {details[-200:]}"
    if "closed" in details.lower() or "reset" in details.lower():
        return f"{target} hung up; a server with TLS does that to clients without: add --tls or --ca FILE"
    ports = [one.port or "" for one in read_targets(target) if one.host]
    if not all(ports):
        return f"no server answers at {target}; gRPC's default port is 443: write HOST:PORT, for example {target}:50051"
    return f"no server answers at {target}; start one with penult serve, or name another with --target"


def _is_another_protocol(details: str) -> bool:
    return "http1.x server" in details or "Expected SETTINGS frame as the first frame" in details


def failure(error: Any, target: str | Sequence[str]) -> RequestFailed:
    """Return what a gRPC error means to the caller."""
    trailing = dict(error.trailing_metadata() or ())
    if error.code() is grpc.StatusCode.UNAVAILABLE and "penult-reason" not in trailing:
        details = str(error.details())
        return RequestFailed(
            "UNAVAILABLE", NOT_GRPC if _is_another_protocol(details) else "", _unreachable(details, target)
        )
    return RequestFailed(
        error.code().name,
        str(trailing.get("penult-reason", "")),
        str(error.details()),
        str(trailing.get("penult-request-id", "")),
    )
