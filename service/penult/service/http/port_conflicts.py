"""Why a port cannot be bound: what holds it, and what to do."""

import errno
import ipaddress
import socket

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from penult.metrics_port import serves_metrics
from penult.proxies import DIRECT
from penult.service.errors import ConfigError

# Timeout of one request to the program that holds a port.
_ASK_S = 1.0
# A health service of penult's own: other gRPC servers do not know it.
_LIVE = "live"


def address(host: str, port: int) -> str:
    """Return HOST:PORT, with the brackets that IPv6 needs."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def reachable(host: str) -> str:
    """Return the host by which this machine reaches a server that listens on `host`."""
    try:
        is_all = ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return host
    return ("::1" if ":" in host else "127.0.0.1") if is_all else host


def family(host: str) -> socket.AddressFamily:
    """Return the kind of socket that listens on `host`."""
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def port_refused(host: str, port: int, flag: str, error: OSError | None = None) -> ConfigError:
    """Return the error to raise for a port that cannot be bound; blocks for at most two seconds.

    Args:
        host: the address of the failed bind.
        port: its port.
        flag: the flag of `penult serve` that sets the port.
        error: what the bind raised; None binds again to find out.
    """
    error = error or _try(host, port)
    what = f"port {port} on {host} cannot be used: "
    another = f"choose another port with {flag} (0 picks a free one)"
    if error is None or error.errno == errno.EADDRINUSE:
        if _is_penult(reachable(host), port):
            todo = "use or stop that server, or choose other ports with --port and --metrics-port (0 picks free ones)"
            return ConfigError("PORT", f"{what}another penult server has it; {todo}")
        return ConfigError("PORT", f"{what}another program, or a penult server with TLS, has it; {another}")
    if error.errno == errno.EACCES:
        return ConfigError("PORT", f"{what}only root may listen below 1024; {another}")
    if (error.errno or 0) < 0:  # the name of the host does not resolve
        return ConfigError("PORT", f"{what}no address is known for {host}; give one of this machine's with --host")
    if error.errno == errno.EADDRNOTAVAIL:
        return ConfigError("PORT", f"{what}this machine has no address {host}; give one of its own with --host")
    return ConfigError("PORT", f"{what}{error.strerror or error}; {another}")


def _try(host: str, port: int) -> OSError | None:
    """Bind the port as a server does, and return what that raises."""
    with socket.socket(family(host)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return error
    return None


def _is_penult(host: str, port: int) -> bool:
    return serves_metrics(host, port, _ASK_S) or _answers_grpc(host, port)


def _answers_grpc(host: str, port: int) -> bool:
    with grpc.insecure_channel(address(host, port), options=DIRECT) as channel:
        try:
            request = health_pb2.HealthCheckRequest(service=_LIVE)
            health_pb2_grpc.HealthStub(channel).Check(request, timeout=_ASK_S)
        except grpc.RpcError:
            return False
    return True
