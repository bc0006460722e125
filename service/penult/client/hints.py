"""Hints for failed requests: the name that was probably meant, and the port with gRPC.

After a request has failed, the client asks the server for the names that its caller may list.
"""

import contextlib
from collections.abc import Iterator

from penult.client.channel_options import NOT_GRPC
from penult.client.credentials import Security
from penult.client.health import status
from penult.client.sync_client import Client
from penult.client.targets import TargetError, read_targets
from penult.client.types import DEFAULT_TARGET, RequestFailed
from penult.metrics_port import serves_metrics
from penult.nearest import did_you_mean
from penult.proxies import proxy_for

_TIMEOUT_S = 3.0
_SHOWN = 10


@contextlib.contextmanager
def explaining(target: str, security: Security, model: str = "", collection: str = "") -> Iterator[None]:
    """Add to a RequestFailed the names that the server knows, or its gRPC address."""
    try:
        yield
    except RequestFailed as error:
        hint = ""
        if error.reason == NOT_GRPC:
            hint = _grpc_address(target, security)
        elif error.reason in ("MODEL_UNKNOWN", "COLLECTION_UNKNOWN"):
            with contextlib.suppress(RequestFailed), Client(target, _TIMEOUT_S, 0, security) as client:
                if error.reason == "MODEL_UNKNOWN":
                    hint = did_you_mean(model, {each.version.name for each in client.list_models()})
                else:
                    hint = _listed(collection, [each.name for each in client.list_collections()])
        if not hint:
            raise
        raise RequestFailed(error.code, error.reason, error.message + hint, error.request_id) from error


def _listed(name: str, known: list[str]) -> str:
    shown = ", ".join(known[:_SHOWN]) + (f" and {len(known) - _SHOWN} more" if len(known) > _SHOWN else "")
    return (f"; there is {shown}" if known else "; there is none yet") + did_you_mean(name, known)


def _grpc_address(target: str, security: Security) -> str:
    """Return the gRPC address to use instead of a metrics port; "" if it is none."""
    try:
        (one,) = read_targets(target)
    except (ValueError, TargetError):
        return ""
    if not _is_metrics_port(one.host, one.port):
        return ""
    host = f"[{one.host}]" if ":" in one.host else one.host
    usual = f"{host}:{DEFAULT_TARGET.rpartition(':')[2]}"
    if usual != one.name and status(usual, timeout_s=_TIMEOUT_S, security=security) in ("SERVING", "NOT_SERVING"):
        return f"; it is penult's metrics port: gRPC is at {usual}"
    return "; it is penult's metrics port: the line `ready grpc=…` of penult serve says where gRPC is"


def _is_metrics_port(host: str, port: str) -> bool:
    if proxy_for(f"http://{host}:{port}/"):
        return False
    return serves_metrics(host, int(port or 0), _TIMEOUT_S)
